"""Laws on what an algorithm says of itself: what it synchronises, and that it heeds rejected steps."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.core import collectives
from jaxdist.core.protocol import diverging_states, synchronising_states
from jaxdist.core.registry import Syncs
from jaxdist.laws.law import Law, LawBroken, same_bits
from jaxdist.laws.trial import Trial

REJECTED = 1
"""The step at which a worker's gradient is rejected, counted from 0."""


def declares(syncs: Syncs) -> Law:
    """The declaration of what an algorithm synchronises is that of its states and types.

    Args:
        syncs: what `@algorithm(..., syncs=...)` says.

    >>> declares('updates').name
    "declares syncs='updates'"
    """

    def check(trial: Trial) -> None:
        params, opt_state = trial.simulated.layout
        of_updates: Syncs = '' if any(jax.tree.leaves(params)) else 'updates'
        actual: Syncs = 'parameters' if synchronising_states(opt_state) else of_updates
        if actual != syncs:
            raise LawBroken(f'{_REASONS[actual]}: declare syncs={actual!r}, not syncs={syncs!r}')

    return Law(f'declares syncs={syncs!r}', check)


_REASONS = {
    'parameters': 'its state says that workers diverge, or is sharded, so it synchronises parameters',
    'updates': 'updates that differ between workers come out the same on all of them',
    '': 'updates that differ between workers come out different, and no state says that workers diverge',
}


def rejects() -> Law:
    """What the gradient of a rejected step is has no effect, on any worker: for algorithms that let workers diverge.

    A worker whose step the guard rejects must not move by itself; see `jaxdist.core.protocol`.

    >>> rejects().name
    'a rejected step has no effect'
    """

    def check(trial: Trial) -> None:
        if not diverging_states(trial.simulated.layout[1]):
            return
        axis, inner = trial.axis, optax.with_extra_args_support(trial.update)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            step, own = state
            rejected = (step == REJECTED) & (collectives.axis_index(axis) == 0)
            updates, own = inner.update(updates, own, params, rejected=rejected, **extra)
            return updates, (step + 1, own)

        first = lambda params: (jnp.zeros((), jnp.int32), inner.init(params))  # noqa: E731
        rejecting = replace(trial, update=optax.GradientTransformationExtraArgs(first, update))
        one = trial.gradients(6)
        other = jax.tree.map(np.copy, one)
        for g in jax.tree.leaves(other):
            g[REJECTED, 0] = -2 * g[REJECTED, 0] + 1
        same_bits(
            rejecting.run(one).params,
            rejecting.run(other).params,
            f'the parameters, whatever the gradient of a step that is rejected (step {REJECTED}, worker 0)',
        )

    return Law('a rejected step has no effect', check)
