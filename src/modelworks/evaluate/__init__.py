"""Evaluation: models measured on datasets, side by side. Knows nothing of HTTP or of the database."""
