"""A step of training under constraints: the gradient of the Lagrangian, and where the multipliers go."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core import collectives
from jaxdist.core.guard import is_finite
from jaxdist.constraints.dual_ascent import DualAscent, Duals, Seen
from jaxdist.core.gradient import cast, gradients, inverse, pullback
from jaxdist.core.types import Batch, Loss, Params

Ahead = Callable[[Params], Params]
"""From a gradient to the parameters that the update would move to, to look from there and come back."""


class Found(NamedTuple):
    """What a worker has to move by.

    Attributes:
        sums: the loss's, at the parameters.
        counted: the loss's count of its examples.
        grads: of this worker's part of the Lagrangian; their mean over workers is that of the Lagrangian.
        duals: the dual side after this step, unless `primal_first` has it move last.
        shown: `constraints`: see `DualAscent.shown`, at the parameters; nothing without constraints.
    """

    sums: dict[str, jax.Array]
    counted: jax.Array
    grads: Params
    duals: Any
    shown: dict[str, Any]

    @property
    def multipliers(self) -> Any:
        """The multipliers, () without constraints."""
        return self.duals.multipliers if self.duals else ()


class Plain(NamedTuple):
    """A loss without constraints, for one worker of many; see `Constrained`."""

    loss: Loss
    accumulate: int
    compute: Any
    axis: str

    def begin(self, params: Params, batch: Batch) -> Any:
        """No dual side."""
        del params, batch
        return ()

    def gradient(self, state: Any, batch: Batch, key: jax.Array, ahead: Ahead) -> Found:
        """Each worker's own gradient."""
        del ahead
        # Of what all share, the gradient would be summed over workers at once.
        local = collectives.per_worker(state.params, self.axis)
        sums, count, grads = gradients(self.loss, self.accumulate, self.compute)(local, batch, key)
        return Found(sums, count, grads, (), {})

    def after(self, params: Params, duals: Any, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """No dual side."""
        del params, step, batch, key
        return duals


class Constrained(NamedTuple):
    """Dual ascent beside a loss, for one worker of many.

    Attributes:
        ascent: the constraints, and how their multipliers move.
        loss: see `jaxdist.core.types.Loss`.
        accumulate: parts in which the batch is taken; all are looked at twice, for no gradient of a constraint is
            known before its value is.
        compute: the dtype in which the loss and the measures of data see the parameters.
        uneven: whether the loss's counts can differ between workers.
        axis: the worker axis.
    """

    ascent: DualAscent
    loss: Loss
    accumulate: int
    compute: Any
    uneven: bool
    axis: str

    def begin(self, params: Params, batch: Batch) -> Duals:
        """The dual side before the first step; the batch is this worker's part, or its shapes."""
        return self.ascent.begin(params, batch)

    def gradient(self, state: Any, batch: Batch, key: jax.Array, ahead: Ahead) -> Found:
        """The gradient at parameters that all workers share, and the dual side after the step.

        Args:
            state: has `params`, `duals` and `step`.
            batch: this worker's part.
            key: for the loss.
            ahead: where a gradient would lead, for an extragradient.
        """
        ascent, duals = self.ascent, state.duals
        due, penalty = state.step % ascent.every == 0, ascent.penalty_of(duals)
        out, seen, pull = self._look(state.params, batch, key)
        if ascent.order == 'primal_first':
            grads = pull(ascent.weights(duals, seen, penalty, batch, self.axis))
            return Found(out['sums'], out['count'], grads, duals, self._shown(duals, seen))
        moved = self._ascend(duals, due, seen, batch)
        against = moved if ascent.order == 'alternating' else duals
        grads = pull(ascent.weights(against, seen, penalty, batch, self.axis))
        found = Found(out['sums'], out['count'], grads, moved, self._shown(against, seen))
        if ascent.order == 'extragradient':
            _, seen, pull = self._look(ahead(grads), batch, key)
            grads = pull(ascent.weights(moved, seen, penalty, batch, self.axis))
            return found._replace(grads=grads, duals=self._ascend(duals, due, seen, batch))
        return found

    def after(self, params: Params, duals: Duals, step: jax.Array, batch: Batch, key: jax.Array) -> Duals:
        """The dual side after the parameters have moved: for `primal_first`, which looks again; else as it is."""
        if self.ascent.order != 'primal_first':
            return duals
        _, seen, _ = self._look(params, batch, key)
        moved = self._ascend(duals, (step + 1) % self.ascent.every == 0, seen, batch)
        # The workers have voted on what was found before; what is found here must not spoil multipliers either.
        bad = collectives.total(1.0 - is_finite(moved.multipliers), self.axis)
        return jax.tree.map(lambda new, old: jnp.where(bad == 0, new, old), moved, duals)

    def _shown(self, duals: Duals, seen: Seen) -> dict[str, Any]:
        return {'constraints': collectives.per_worker(self.ascent.shown(duals, seen), self.axis)}

    def _look(self, params: Params, batch: Batch, key: jax.Array) -> tuple[Any, Seen, Callable[..., Params]]:
        """The worker's own sums, what all agree on, and the gradient for given weights of the constraints' sums."""
        local = collectives.per_worker(params, self.axis)
        whole = {c.name for c in self.ascent.constraints if c.over == 'none'}

        def of_data(params: Params, batch: Batch, key: jax.Array) -> Any:
            seen = cast(params, self.compute)
            sums, count = self.loss(seen, batch, key)
            parts = {c.name: c.sums(seen, batch) for c in self.ascent.constraints if c.name not in whole}
            out = {'sums': sums, 'count': jnp.asarray(count, float), 'parts': parts}
            return collectives.per_worker(out, self.axis)

        def of_parameters(params: Params) -> Any:
            parts = {c.name: c.sums(params, batch) for c in self.ascent.constraints if c.name in whole}
            return collectives.per_worker(parts, self.axis)

        out, back = pullback(of_data, local, batch, key, self.accumulate)
        parts, back_whole = jax.vjp(of_parameters, local)
        count = out['count'] if self.uneven else None
        seen = self.ascent.agree({**out['parts'], **parts}, params, batch, count, self.axis)
        share = collectives.size(self.axis) * inverse(seen.count) if self.uneven else inverse(out['count'])

        def pull(weights: dict[str, Any]) -> Params:
            zeros = jax.tree.map(jnp.zeros_like, out)
            zeros['sums']['loss'] = jnp.asarray(share, zeros['sums']['loss'].dtype)
            zeros['parts'] = {name: weights[name] for name in out['parts']}
            grads = back(collectives.per_worker(zeros, self.axis))
            more = back_whole(collectives.per_worker({name: weights[name] for name in parts}, self.axis))[0]
            return jax.tree.map(jnp.add, grads, more)

        return out, seen, pull

    def _ascend(self, duals: Duals, due: jax.Array, seen: Seen, batch: Batch) -> Duals:
        moved = self.ascent.ascend(duals, seen, batch, self.axis)
        if self.ascent.every == 1:
            return moved
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, duals)
