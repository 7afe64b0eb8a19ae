"""The synchroniser: a pure function from what learners hand in to new anchors.

A round of a fragment closes when all learners have handed it in, or some time after a quorum has. Learners are weighted
by tokens x tokens / steps, as in Decoupled DiLoCo (Douillard et al. 2026, arXiv 2604.21428), and by their share of the
data, where that differs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.algorithms._fragments import divide, join, pick
from jaxdist.learners.messages import Messenger, messenger
from jaxdist.learners.progress import Arrival, weights
from jaxdist.learners.terms import Terms

Params = Any


class Merged(NamedTuple):
    """The synchroniser's arrays.

    Attributes:
        anchor: the parameters of each fragment's last round.
        outer: the outer optimiser's state for each fragment.
    """

    anchor: Params
    outer: tuple[optax.OptState, ...]


class Synchroniser:
    """Merges arrivals. Its arrays are on the host; it has no clock and no state.

    Args:
        terms: how learners and synchroniser work together.
        params: the parameters, or their shapes.

    >>> terms = Terms(2, every=1, outer=optax.sgd(0.5))
    >>> synchroniser = Synchroniser(terms, np.zeros(1, np.float32))
    >>> before = synchroniser.first(np.float32([4.0]))
    >>> hand_in = lambda k, g: Arrival(k, 1, 0, 0, 0, 1, 8, (np.float32([g]),), 1.0, 1.0)
    >>> synchroniser.merge(before, [hand_in(0, 1.0), hand_in(1, 3.0)]).anchor
    array([3.], dtype=float32)
    """

    def __init__(self, terms: Terms, params: Params) -> None:
        self.terms = terms
        self.fragments = divide(params, terms.fragments, terms.rule)
        self.messengers = messengers(terms, params)
        self._merge = [self._merger(each) for each in self.messengers]

    def first(self, params: Params) -> Merged:
        """The arrays before the first round: the anchor is the initial parameters."""
        outer = tuple(self.terms.outer.init(pick(params, members)) for members in self.fragments)
        merged: Merged = jax.device_get(Merged(params, outer))
        return merged

    def merge(self, before: Merged, arrivals: Sequence[Arrival]) -> Merged:
        """The arrays after a round, whose arrivals are merged in the order of the learners."""
        (fragment,) = {arrival.fragment for arrival in arrivals}
        ordered = sorted(arrivals, key=lambda arrival: arrival.learner)
        add, step = self._merge[fragment]
        total = None
        for arrival, weight in zip(ordered, weights(ordered), strict=True):
            total = add(total, arrival.message, np.float32(weight))
        anchor = pick(before.anchor, self.fragments[fragment])
        anchor, outer = jax.device_get(step(total, before.outer[fragment], anchor))
        others = [pick(before.anchor, members) for p, members in enumerate(self.fragments) if p != fragment]
        outers = tuple(outer if p == fragment else state for p, state in enumerate(before.outer))
        return Merged(join([anchor, *others]), outers)

    def _merger(self, each: Messenger) -> tuple[Any, Any]:
        """`(total, message, weight) -> total` and `(total, outer state, anchor) -> (anchor, outer state)`."""

        @jax.jit
        def add(total: Any, message: Any, weight: jax.Array) -> Any:
            part = jax.tree.map(lambda x: weight * x, each.decode(message))
            return part if total is None else jax.tree.map(jnp.add, total, part)

        @jax.jit
        def step(total: Any, state: optax.OptState, anchor: Params) -> tuple[Params, optax.OptState]:
            gradient = jax.tree.map(lambda g, a: g.astype(a.dtype), total, anchor)
            updates, state = self.terms.outer.update(gradient, state, anchor)
            return optax.apply_updates(anchor, updates), state

        return add, step


def messengers(terms: Terms, params: Params) -> list[Messenger]:
    """The messenger of each fragment.

    >>> len(messengers(Terms(2, 1, optax.sgd(1.0), fragments=2), {'a': np.zeros(2), 'b': np.zeros(2)}))
    2
    """
    parts = divide(params, terms.fragments, terms.rule)
    return [messenger(pick(params, members), terms.codec, terms.feedback, params) for members in parts]
