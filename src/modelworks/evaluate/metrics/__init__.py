"""Ways to measure, one file each."""
