"""Merge methods, one file each, found by looking."""
