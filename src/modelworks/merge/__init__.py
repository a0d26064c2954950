"""Merging models: a streaming engine, and one plug-in a method."""
