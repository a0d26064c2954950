"""The SLM API: one small language model, its alpaca prompt, whole answers and streams, and a chat page."""
