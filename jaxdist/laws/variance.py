"""A law on random codecs: the published bound on the variance of the decoded vector."""

from collections.abc import Callable

import numpy as np

from jaxdist.laws.codecs import CodecTrial
from jaxdist.laws.law import Law, LawBroken


def variance_at_most(bound: Callable[[int], float], block: int) -> Law:
    """The expected squared error of a block is at most `bound(block)` times its squared norm.

    The estimate from 600 draws may exceed the bound by a tenth, since a tight bound would be exceeded in some trials.

    >>> variance_at_most(lambda n: n**0.5, 512).name
    'variance within its bound'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.rows(trial.vector).astype(np.float64)
        error = ((trial.draws(600) - x) ** 2).sum(2).mean(0)
        allowed = bound(block) * (x**2).sum(1)
        if np.any(error > 1.1 * allowed):
            worst = float(np.max(error / np.where(allowed > 0, allowed, np.inf)))
            raise LawBroken(f'the variance of a block is {worst:.3g} times the bound')

    return Law('variance within its bound', check)
