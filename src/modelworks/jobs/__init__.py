"""Jobs: a worker claims them, an executor starts a detached runner for each run, recovery looks after the rest."""
