"""Splitting methods for convex problems over workers: consensus ADMM, linearised ADMM, PDHG, dual decomposition.

They iterate until residuals are small, rather than for a number of steps: see `iteration.run`.
"""
