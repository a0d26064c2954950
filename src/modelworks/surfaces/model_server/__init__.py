"""The Model Server: entities of a model on devices, called, added and removed by name, under /api/v1."""
