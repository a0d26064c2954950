"""Our own engine: continuous batching of Llama-shaped models in torch. Runs only in an engine process."""
