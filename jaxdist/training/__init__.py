"""From an experiment to a run folder: the step, training, checkpoints, plans and comparisons."""
