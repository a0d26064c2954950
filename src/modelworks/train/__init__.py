"""Fine-tuning: a dataset and a model become an adapter or a new model. Knows nothing of HTTP or of the database."""
