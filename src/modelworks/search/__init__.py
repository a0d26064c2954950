"""Searching a merge's weights and densities: merges in memory, measured on held-out rows. Joins merge and evaluate."""
