"""Serving: engines in processes of their own, kept alive, and the gateway that finds the right one for a name."""
