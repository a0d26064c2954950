"""Engines, one file each, found by folder."""
