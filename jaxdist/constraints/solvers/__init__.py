"""Splitting methods for convex problems over workers: consensus ADMM, linearised ADMM, PDHG, dual decomposition."""
