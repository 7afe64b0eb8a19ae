"""Simulated time: how long workers compute, how long links take, and when each worker has taken each step.

A clock is the world, and a line is the algorithm: times do not depend on values, so they are computed on the host, from
a seed, beside the training or without any. Importing this package registers its compute times and rules.
"""

from jaxdist.clock import compute as compute
from jaxdist.clock import rules as rules
