"""What a model runs, read from the fields of its ``config.json``: one reader for the tuner and the plan."""
