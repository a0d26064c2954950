"""The Model Finetuning API: queue a fine-tuning, follow it, cancel it; its dashboard is a page of its own."""
