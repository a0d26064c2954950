"""The formats a file of rows may have, one a file."""
