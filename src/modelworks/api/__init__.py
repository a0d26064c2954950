"""Our own HTTP: the OpenAI-compatible /v1/* and, for what OpenAI has no word for, /modelworks/*."""
