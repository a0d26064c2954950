"""The Model Server's own start commands: `python -m model_api` and `python -m model_api.py`."""
