"""Where a runner runs: one file a kind."""
