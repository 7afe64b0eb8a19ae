"""The step guard: rejects steps with non-finite gradients, and weights gradients by example counts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core import collectives
from jaxdist.core.gradient import inverse
from jaxdist.core.layout import Layout
from jaxdist.core.protocol import diverges
from jaxdist.core.types import Params


class StepGuard(NamedTuple):
    """Decides whether a step is applied, and weights each worker's gradient by its example count.

    Attributes:
        layout: which leaves of the state, a NamedTuple with `params` and `opt_state`, vary over workers.
        diverge: whether workers diverge; then each decides for itself, otherwise all take the same decision.
        active: whether steps with a non-finite gradient are rejected.
        uneven: whether workers' example counts may differ.
        axis: the worker axis.
    """

    layout: Layout
    diverge: bool
    active: bool
    uneven: bool
    axis: str

    def admit(self, grads: Params, count: jax.Array, also: Any = ()) -> tuple[jax.Array, Params]:
        """Whether this worker applies the step, and its weighted gradient.

        If workers do not diverge, they all-reduce a vote of 4 bytes, and 4 bytes more for the counts if these are
        uneven.

        Args:
            grads: this worker's gradient.
            count: this worker's example count.
            also: further values that must be finite.
        """
        finite = is_finite((grads, also))
        if self.diverge:
            # This step may be a synchronisation round, so no non-finite number may be left to send.
            ok = finite if self.active else jnp.bool(True)
            return ok, jax.tree.map(lambda g: jnp.where(ok, g, 0), grads) if self.active else grads
        votes = {'bad': 1 - finite.astype(count.dtype)} if self.active else {}
        votes |= {'count': count} if self.uneven else {}
        sums = collectives.psum(votes, self.axis) if votes else {}
        if self.uneven:
            share = count * collectives.axis_size(self.axis) * inverse(sums['count'])
            grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
        return sums['bad'] == 0 if self.active else jnp.bool(True), grads

    def update_kwargs(self, ok: jax.Array) -> dict[str, jax.Array]:
        """The extra keyword arguments of `update`; see `jaxdist.core.protocol`."""
        # `idle` is the former name of `rejected`, for algorithms that were written for it.
        return {'rejected': ~ok, 'idle': ~ok} if self.diverge and self.active else {}

    def commit(self, ok: jax.Array, new: Any, old: Any) -> Any:
        """The new state or, if the step is rejected, the old one bit for bit.

        Where workers diverge, a worker that rejects the step keeps its optimiser state only. Its parameters, and the
        state of the algorithm that lets workers diverge, are taken from the new state: that algorithm was called with
        `rejected`, and the step may have been a synchronisation round.
        """
        if not self.active:
            return new
        if not self.diverge:
            return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)

        def keep(varies: Any, new: Any, old: Any) -> Any:
            return jnp.where(ok, new, old) if varies is True else new

        return new._replace(
            opt_state=jax.tree.map(keep, self.layout.opt_state, new.opt_state, old.opt_state, is_leaf=diverges)
        )


def is_finite(tree: Any) -> jax.Array:
    """Whether all inexact numbers of a pytree are finite, as one bool.

    >>> is_finite({'a': jnp.ones(2), 'b': jnp.array([jnp.inf]), 'steps': jnp.int32(3)})
    Array(False, dtype=bool)
    """
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]).all()
