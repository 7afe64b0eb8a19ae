"""Experiments, the training step, runs, checkpoints, plans and comparisons."""
