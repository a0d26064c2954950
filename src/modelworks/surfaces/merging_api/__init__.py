"""The Model Merging API: merges as jobs, by merging-eval's five methods and by all others there are."""
