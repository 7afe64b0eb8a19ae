"""A law on random codecs: the published bound on how far they scatter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.laws.codecs import CodecTrial
from jaxdist.laws.law import Law, LawBroken


def variance_at_most(bound: Callable[[int], float], block: int) -> Law:
    """The expected squared error of a block is at most `bound(block)` times its squared norm.

    The estimate from 600 draws may exceed the bound by a tenth, as a bound that is met exactly would in some trials.

    >>> variance_at_most(lambda n: n**0.5, 512).name
    'variance as published'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector.reshape(-1, trial.codec.block)
        keys = jax.random.split(jax.random.key(trial.seed), 600)
        journey = jax.jit(
            jax.vmap(lambda k: trial.codec.decode(trial.codec.encode(jnp.asarray(x).reshape(-1), k), x.size))
        )
        seen = np.asarray(journey(keys), np.float64).reshape(len(keys), *x.shape)
        error = ((seen - x) ** 2).sum(2).mean(0)
        allowed = bound(block) * (x.astype(np.float64) ** 2).sum(1)
        if np.any(error > 1.1 * allowed):
            worst = float(np.nanmax(error / allowed))
            raise LawBroken(f'the variance of a block is {worst:.3g} times the bound')

    return Law('variance as published', check)
