"""The Lagrangian as the objective of a training step: its gradient, and how the multipliers move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdist.constraints.checking import check_ascends, check_examples, check_replicated
from jaxdist.constraints.dual_ascent import DualAscent, Duals, Seen
from jaxdist.constraints.penalties import begin as begin_penalty
from jaxdist.constraints.penalties import current
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import cast_params, inverse, pullback
from jaxdist.core.guard import is_finite
from jaxdist.core.objective import Extreme, Lookahead, ObjectiveOutput, WorkerLoss
from jaxdist.core.types import Batch, Params
from jaxdist.core.workers import Workers, local_shapes


@dataclass(frozen=True)
class LagrangianObjective(DualAscent):
    """A loss under constraints, for `make_step(objective=...)`; its arguments are those of `DualAscent`.

    Its metrics are `constraints`: for each the scalars of `constraint_metrics`, of the worker that violates it most. With
    accumulation every part of the batch is evaluated twice, since no gradient of a constraint is known before its value.

    >>> import optax
    >>> from jaxdist.constraints.constraint import inequality
    >>> LagrangianObjective((inequality('ball', lambda w: w @ w),), optax.sgd(0.1)).metric_names
    ('constraints',)
    """

    weighted: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ('constraints',)
    state_name: ClassVar[str] = 'multipliers'

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Refuses constraints that do not fit.

        Args:
            params: shapes.
            batch: the whole batch, or its shapes.
            workers: the workers.
            accumulate: parts that each worker's batch is taken in.

        Raises:
            InputError: a measure of another shape than its constraint says; multipliers of single examples that move
                between workers or are taken in parts; a dual line that would lower the multiplier of a violated
                constraint.
        """
        for c in self.constraints:
            check_examples(c, batch, accumulate)
        duals = jax.eval_shape(lambda: self.begin(params, local_shapes(batch, workers.count)))
        now = current(self.penalty, begin_penalty(self.penalty), jnp.zeros((), jnp.int32))
        check_ascends(self.dual, duals.multipliers, now)

    def check_layout(self, layout: Any, diverge: bool) -> None:
        """Refuses workers that diverge, and replicated multipliers that would vary over workers."""
        if diverge:
            raise InputError(
                f'{", ".join(self.names)}: constraints are evaluated at parameters that all workers share, at every '
                'step, and this update lets workers diverge in between. Put mean() before the optimiser instead'
            )
        check_replicated(self.constraints, layout.multipliers)

    def check_resize(self, before: int, now: int) -> None:
        """Refuses another number of workers where multipliers of single examples lie with their workers."""
        each = [c.name for c in self.constraints if c.over == 'example']
        if each and before != now:
            raise InputError(
                f'{each[0]} has multipliers of single examples, which are stored by the workers that own these: go on '
                f'with {before} workers'
            )

    def gradient(
        self, loss: WorkerLoss, state: Duals, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """The gradient at replicated parameters, and the multipliers after the step."""
        due, penalty = step % self.every == 0, self.penalty_of(state)
        out, seen, pull = self._evaluate(loss, params, batch, key)
        if self.order == 'primal_first':
            grads = pull(self.weights(state, seen, penalty, batch, loss.axis))
            return self._output(out, grads, state, state, seen, loss.axis)
        moved = self._ascend(state, due, seen, batch, loss.axis)
        against = moved if self.order == 'alternating' else state
        grads = pull(self.weights(against, seen, penalty, batch, loss.axis))
        output = self._output(out, grads, moved, against, seen, loss.axis)
        if self.order == 'extragradient':
            _, seen, pull = self._evaluate(loss, lookahead(grads), batch, key)
            grads = pull(self.weights(moved, seen, penalty, batch, loss.axis))
            again = self._ascend(state, due, seen, batch, loss.axis)
            return output._replace(grads=grads, state=again, check=again.multipliers)
        return output

    def after(
        self, loss: WorkerLoss, state: Duals, params: Params, step: jax.Array, batch: Batch, key: jax.Array
    ) -> Duals:
        """The multipliers after the parameters have moved: for `primal_first`, which evaluates again; else as they are."""
        if self.order != 'primal_first':
            return state
        _, seen, _ = self._evaluate(loss, params, batch, key)
        moved = self._ascend(state, (step + 1) % self.every == 0, seen, batch, loss.axis)
        # The workers have voted on the first evaluation; this one must not spoil the multipliers either.
        bad = collectives.psum(1.0 - is_finite(moved.multipliers), loss.axis)
        return jax.tree.map(lambda new, old: jnp.where(bad == 0, new, old), moved, state)

    def _output(self, out: Any, grads: Params, state: Duals, against: Duals, seen: Seen, axis: str) -> ObjectiveOutput:
        values = collectives.pvary(self.metrics(against, seen), axis)
        metrics = {name: Extreme(each['violation'], each) for name, each in values.items()}
        return ObjectiveOutput(out['sums'], out['count'], grads, state, {'constraints': metrics}, state.multipliers)

    def _evaluate(
        self, loss: WorkerLoss, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[Any, Seen, Callable[..., Params]]:
        """This worker's sums, those of all workers, and the gradient for given weights of the constraints' sums."""
        local = collectives.pvary(params, loss.axis)
        whole = {c.name for c in self.constraints if c.over == 'none'}

        def of_data(params: Params, batch: Batch, key: jax.Array) -> Any:
            cast = cast_params(params, loss.compute)
            sums, count = loss.loss(cast, batch, key)
            parts = {c.name: c.sums(cast, batch) for c in self.constraints if c.name not in whole}
            out = {'sums': sums, 'count': jnp.asarray(count, float), 'parts': parts}
            return collectives.pvary(out, loss.axis)

        def of_parameters(params: Params) -> Any:
            parts = {c.name: c.sums(params, batch) for c in self.constraints if c.name in whole}
            return collectives.pvary(parts, loss.axis)

        out, back = pullback(of_data, local, batch, key, loss.accumulate)
        parts, back_whole = jax.vjp(of_parameters, local)
        count = out['count'] if loss.uneven else None
        seen = self.agree({**out['parts'], **parts}, params, batch, count, loss.axis)
        share = collectives.axis_size(loss.axis) * inverse(seen.count) if loss.uneven else inverse(out['count'])

        def pull(weights: dict[str, Any]) -> Params:
            zeros = jax.tree.map(jnp.zeros_like, out)
            zeros['sums']['loss'] = jnp.asarray(share, zeros['sums']['loss'].dtype)
            zeros['parts'] = {name: weights[name] for name in out['parts']}
            grads = back(collectives.pvary(zeros, loss.axis))
            more = back_whole(collectives.pvary({name: weights[name] for name in parts}, loss.axis))[0]
            return jax.tree.map(jnp.add, grads, more)

        return out, seen, pull

    def _ascend(self, duals: Duals, due: jax.Array, seen: Seen, batch: Batch, axis: str) -> Duals:
        moved = self.ascend(duals, seen, batch, axis)
        if self.every == 1:
            return moved
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, duals)
