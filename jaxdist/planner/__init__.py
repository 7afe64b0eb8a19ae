"""Estimates of what a training step costs under any layout of a model over devices. Pure Python."""
