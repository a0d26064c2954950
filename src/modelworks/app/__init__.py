"""The verbs: what a door may ask for, each kind of job, and how the objects are put together."""
