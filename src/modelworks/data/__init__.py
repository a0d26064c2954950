"""Datasets: import from files, split, look at, and turn into tokens."""
