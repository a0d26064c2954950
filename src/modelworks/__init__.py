"""Modelworks: the whole life of a small language model in one server, one command line and one web page."""

__version__ = "0.1.0"
