"""Checkpoints on disk: read lazily, written streaming, described, converted, fetched, and refused when unsafe."""
