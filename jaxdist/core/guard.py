"""The step guard: rejects steps whose gradient has no finite squared norm, and weights gradients by example counts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core import collectives
from jaxdist.core.gate import gate
from jaxdist.core.gradient import inverse
from jaxdist.core.layout import Layout
from jaxdist.core.protocol import diverges
from jaxdist.core.types import Params


class StepGuard(NamedTuple):
    """Decides whether a step is applied, and weights each worker's gradient by its example count.

    Attributes:
        layout: which leaves of the optimiser's state vary over workers.
        diverge: whether workers diverge; then each decides for itself, otherwise all take the same decision.
        active: whether steps are rejected.
        uneven: whether workers' example counts may differ.
        axis: the worker axis.
    """

    layout: Layout
    diverge: bool
    active: bool
    uneven: bool
    axis: str

    def admit(self, grads: Params, count: jax.Array, also: Any = ()) -> tuple[jax.Array, Params, jax.Array]:
        """Whether this worker applies the step, its weighted gradient, and whether that of this worker is finite.

        If workers do not diverge, they all-reduce a vote of 4 bytes, and 4 bytes more for the counts if these are
        uneven.

        Args:
            grads: this worker's gradient.
            count: this worker's example count.
            also: further values that must be finite.
        """
        finite = is_bounded((grads, also)) if self.active else jnp.bool(True)
        if self.diverge:
            # This step may be a synchronisation round, so no non-finite number may be left to send.
            grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads) if self.active else grads
            return finite, grads, finite
        votes = {'bad': 1 - finite.astype(count.dtype)} if self.active else {}
        votes |= {'count': count} if self.uneven else {}
        sums = collectives.psum(votes, self.axis) if votes else {}
        if self.uneven:
            share = count * collectives.axis_size(self.axis) * inverse(sums['count'])
            grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
        return sums['bad'] == 0 if self.active else finite, grads, finite

    def apply(
        self, ok: jax.Array, update: Callable[..., Any], grads: Params, params: Params, opt_state: Any
    ) -> tuple[Params, Params, Any]:
        """The parameters of the update, and the new parameters and optimiser state.

        If the step is rejected, both are the old ones bit for bit. Where workers diverge, a worker that rejects the
        step keeps its optimiser state only: its parameters, and the state of the algorithm that lets workers diverge,
        are new. That algorithm is called with `rejected`, and the step may be a synchronisation round.

        Args:
            ok: whether this worker applies the step.
            update: `(grads, params, opt_state, **extra) -> (params, opt_state)`; for `extra` see
                `jaxdist.core.protocol`.
            grads: this worker's weighted gradient.
            params: the parameters before the step.
            opt_state: the optimiser state before the step.
        """
        if not self.active:
            moved, opt_state = update(grads, params, opt_state)
            return moved, moved, opt_state
        # `idle` is the former name of `rejected`, for algorithms that were written for it.
        extra = {'rejected': ~ok, 'idle': ~ok} if self.diverge else {}
        before = (params, opt_state)
        (moved, _), choose = gate(lambda extra, *args: update(*args, **extra), (extra, grads, *before), before)
        return moved, *choose(self._keeps(ok, params, opt_state))

    def _keeps(self, ok: jax.Array, params: Params, opt_state: Any) -> Any:
        """For each leaf of the state, `ok` if a rejected step leaves it as it was, or None."""
        if not self.diverge:
            return jax.tree.map(lambda _: ok, (params, opt_state))

        def own(varies: Any, state: Any) -> Any:
            return jax.tree.map(lambda _: ok if varies is True else None, state)

        state_keeps = jax.tree.map(own, self.layout, opt_state, is_leaf=diverges)
        return jax.tree.map(lambda _: None, params), state_keeps

    def commit(self, ok: jax.Array, new: Any, old: Any) -> Any:
        """The new state of the objective; the old one if all workers reject the step."""
        if not self.active or self.diverge:
            return new
        return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def is_bounded(tree: Any) -> jax.Array:
    """Whether the squared norm of all inexact numbers of a pytree is finite, as one bool.

    So are then the numbers themselves, their mean over workers, the norm to clip by, and second moments. Numbers from
    1.8e19 on have no squares in float32.

    >>> is_bounded({'a': jnp.ones(2), 'b': jnp.array([jnp.inf]), 'steps': jnp.int32(3)})
    Array(False, dtype=bool)
    >>> is_bounded(jnp.array([1e30]))
    Array(False, dtype=bool)
    """
    numbers = [jnp.abs(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    squares = [jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))) for x in numbers]
    return jnp.isfinite(sum(squares, jnp.float32(0)))
