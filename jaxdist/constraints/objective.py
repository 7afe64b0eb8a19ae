"""The Lagrangian as the objective of a training step: one worker's gradient of it, and the update of the multipliers.

Loss and measures are evaluated together, and pulled back once: between the two, the sums are all-reduced and, in the
default order, the multipliers move.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdist.constraints.checking import check_ascends, check_examples, check_replicated
from jaxdist.constraints.dual_ascent import DualAscent, Duals, ReducedSums
from jaxdist.constraints.penalties import current
from jaxdist.constraints.penalties import init as init_penalty
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import as_seen, conjugate, evaluate_loss, inverse, pullback
from jaxdist.core.guard import is_bounded
from jaxdist.core.objective import Extreme, Lookahead, ObjectiveOutput, WorkerLoss
from jaxdist.core.types import Batch, Params
from jaxdist.core.workers import Workers, local_shapes


@dataclass(frozen=True)
class LagrangianObjective(DualAscent):
    """A loss under constraints, for `make_step(objective=...)`; its arguments are those of `DualAscent`.

    Its metric `constraints` has, for each constraint, the scalars of `constraint_metrics` of the worker with the
    largest violation. With accumulation each part of the batch is evaluated twice, since the gradient of a constraint
    depends on its value over the whole batch.

    >>> import optax
    >>> from jaxdist.constraints.constraint import inequality
    >>> LagrangianObjective((inequality('ball', lambda w: w @ w),), optax.sgd(0.1)).metric_names
    ('constraints',)
    """

    weighted: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ('constraints',)
    state_name: ClassVar[str] = 'multipliers'

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Checks the constraints against the model, the batch and the dual line.

        Args:
            params: the parameters' shapes.
            batch: the whole batch, or its shapes.
            workers: the workers.
            accumulate: the number of parts in which each worker's batch is processed.

        Raises:
            InputError: a measure returns another shape than its constraint requires; multipliers of single examples
                with a batch that lacks `row` or is processed in parts; a dual line that would lower the multiplier of a
                violated constraint.
        """
        for c in self.constraints:
            check_examples(c, batch, accumulate)
        duals = jax.eval_shape(lambda: self.begin(params, local_shapes(batch, workers.count)))
        now = current(self.penalty, init_penalty(self.penalty), jnp.zeros((), jnp.int32))
        check_ascends(self.dual, duals.multipliers, now)

    def check_layout(self, layout: Any, diverge: bool) -> None:
        """Checks the layout of the state.

        Raises:
            InputError: workers diverge, or multipliers that must be replicated would vary over workers.
        """
        if diverge:
            raise InputError(
                f'{", ".join(self.names)}: constraints are evaluated at replicated parameters, at every step, and this '
                'update lets workers diverge. Put mean() before the optimiser instead'
            )
        check_replicated(self.constraints, layout.multipliers)

    def check_resize(self, before: int, now: int) -> None:
        """Checks that a run can go on with another number of workers.

        Raises:
            InputError: multipliers of single examples, which are stored by the workers that own the examples.
        """
        each = [c.name for c in self.constraints if c.over == 'example']
        if each and before != now:
            raise InputError(
                f'{each[0]} has multipliers of single examples, which are stored by the workers that own the examples: '
                f'continue with {before} workers'
            )

    def gradient(
        self, loss: WorkerLoss, state: Duals, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """The gradient at replicated parameters, and the multipliers after the step."""
        due, penalty = step % self.every == 0, self.penalty_of(state)
        out, after, reduced, pull = self._evaluate(loss, params, batch, key)
        if self.order == 'primal_first':
            grads = pull(self.weights(state, reduced, penalty, batch, loss.axis))
            return self._output(out, grads, state, state, reduced, loss.axis)._replace(model_state=after)
        moved = self._ascend(state, due, reduced, batch, loss.axis)
        against = moved if self.order == 'alternating' else state
        grads = pull(self.weights(against, reduced, penalty, batch, loss.axis))
        output = self._output(out, grads, moved, against, reduced, loss.axis)._replace(model_state=after)
        if self.order == 'extragradient':
            # Korpelevich 1976: both sides step from where they were, with the gradients at the point looked ahead to.
            _, _, reduced, pull = self._evaluate(loss, lookahead(grads), batch, key)
            grads = pull(self.weights(moved, reduced, penalty, batch, loss.axis))
            corrected = self._ascend(state, due, reduced, batch, loss.axis)
            return output._replace(grads=grads, state=corrected, check=corrected.multipliers)
        return output

    def after(
        self, loss: WorkerLoss, state: Duals, params: Params, step: jax.Array, batch: Batch, key: jax.Array
    ) -> Duals:
        """The multipliers after the parameters have moved: only `primal_first` evaluates again and moves them here."""
        if self.order != 'primal_first':
            return state
        _, _, reduced, _ = self._evaluate(loss, params, batch, key)
        moved = self._ascend(state, (step + 1) % self.every == 0, reduced, batch, loss.axis)
        # The guard has admitted the first evaluation; non-finite numbers of the second must not reach the multipliers.
        bad = collectives.psum(1.0 - is_bounded(moved.multipliers), loss.axis)
        return jax.tree.map(lambda new, old: jnp.where(bad == 0, new, old), moved, state)

    def _output(
        self, out: Any, grads: Params, state: Duals, against: Duals, reduced: ReducedSums, axis: str
    ) -> ObjectiveOutput:
        values = collectives.pvary(self.metrics(against, reduced), axis)
        metrics = {name: Extreme(each['violation'], each) for name, each in values.items()}
        return ObjectiveOutput(out['sums'], out['count'], grads, state, {'constraints': metrics}, state.multipliers)

    def _evaluate(
        self, loss: WorkerLoss, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, ReducedSums, Callable[[dict[str, Any]], Params]]:
        """This worker's sums, its model state, the reduced sums, and from weights of its sums to its gradient."""
        # A gradient with respect to replicated parameters would be summed over workers at once.
        local = collectives.pvary(params, loss.axis)
        of_params = {c.name for c in self.constraints if c.over == 'none'}

        def data_sums(params: Params, state: Any, batch: Batch, key: jax.Array) -> Any:
            sums, count, after = evaluate_loss(loss.loss, params, state, batch, key)
            seen = as_seen(params, state)
            parts = {c.name: c.sums(seen, batch) for c in self.constraints if c.name not in of_params}
            out = {'sums': sums, 'count': jnp.asarray(count, float), 'parts': parts}
            return collectives.pvary(out, loss.axis), after

        def params_sums(params: Params) -> Any:
            parts = {c.name: c.sums(params, batch) for c in self.constraints if c.name in of_params}
            return collectives.pvary(parts, loss.axis)

        # A function of the parameters alone is evaluated once, also where the batch is processed in parts.
        how = loss.accumulate, loss.compute, loss.partition
        out, after, pull_data = pullback(data_sums, local, loss.state, batch, key, *how)
        parts, pull_params = jax.vjp(params_sums, local)
        count = out['count'] if loss.uneven else None
        reduced = self.reduce({**out['parts'], **parts}, as_seen(params, loss.state), batch, count, loss.axis)
        # The step takes the plain mean over workers of the gradients, so a worker's loss counts by its examples here.
        share = collectives.axis_size(loss.axis) * inverse(reduced.count) if loss.uneven else inverse(out['count'])

        def pull(weights: dict[str, Any]) -> Params:
            cotangents = jax.tree.map(jnp.zeros_like, out)
            cotangents['sums']['loss'] = jnp.asarray(share, cotangents['sums']['loss'].dtype)
            cotangents['parts'] = {name: weights[name] for name in out['parts']}
            grads = pull_data(collectives.pvary(cotangents, loss.axis))
            more = pull_params(collectives.pvary({name: weights[name] for name in parts}, loss.axis))[0]
            return jax.tree.map(jnp.add, grads, conjugate(more))

        return out, after, reduced, pull

    def _ascend(self, duals: Duals, due: jax.Array, reduced: ReducedSums, batch: Batch, axis: str) -> Duals:
        moved = self.ascend(duals, reduced, batch, axis)
        if self.every == 1:
            return moved
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, duals)
