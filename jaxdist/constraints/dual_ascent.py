"""Distributed dual ascent: replicated multipliers at the cost of an all-reduce of a few numbers per step.

The five steps of the distributed method of multipliers:

1. The Lagrangian of the constraints in a `DualAscent` is built: `lagrangian.py`.
2. Each worker evaluates its part of it on its own data: `DualAscent.measure`.
3. Each worker proposes multipliers: `DualAscent.propose`.
4. Workers agree, and project: `reduce` all-reduces the sums, the only communication; `project` comes last.
5. Each worker updates the model with the gradient of its part of the Lagrangian: `weights` gives the weight of each of
   its sums there. The mean over workers of these gradients is the gradient of the Lagrangian.

Deviation from the textbook: sums are all-reduced before step 3, so that all workers make the same proposal. In the
textbook the proposals are averaged. For plain ascent the two are equal, as the mean of the proposals is the proposal
from the mean. All-reducing sums stays right where a value is not a sum (a rate) or the dual line is not linear (a
controller after a clip). Multipliers that neighbours average by gossip would replace `reduce`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxdist.constraints import multipliers as stores
from jaxdist.constraints import penalties
from jaxdist.constraints.constraint import Constraint, Sums
from jaxdist.constraints.lagrangian import Term, effective_multiplier, violation
from jaxdist.constraints.multipliers import Multipliers, Stored
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import inverse
from jaxdist.core.types import Batch, Params

Order = Literal['alternating', 'simultaneous', 'primal_first', 'extragradient']


class Duals(NamedTuple):
    """The dual part of the training state.

    Attributes:
        multipliers: by the constraints' names; replicated, or [W, ...] where each worker has its own.
        opt_state: the dual line's state.
        penalty: the state of a growing penalty, else ().
        steps: dual steps taken, an int32 scalar.
    """

    multipliers: Multipliers
    opt_state: optax.OptState
    penalty: penalties.PenaltyState
    steps: jax.Array


class ReducedSums(NamedTuple):
    """The sums of all constraints at one set of parameters, after the all-reduce.

    Attributes:
        sums: sums of the measures, by name: of all workers, or this worker's where a constraint holds per worker.
        judged: sums of the true measures, likewise.
        count: the loss's count of examples, of all workers; None where it is the same on each.
        examples: the total weight of the examples of all workers.
    """

    sums: dict[str, Sums]
    judged: dict[str, Sums]
    count: Any
    examples: jax.Array


@dataclass(frozen=True)
class DualAscent:
    """Constraints, and the update rule of their multipliers.

    Attributes:
        constraints: the constraints that are to hold.
        dual: the dual line, an optax transformation that moves multipliers. It is an ordinary optimiser, which
            descends: it is fed with minus the violations, and so ascends on the violations. If it takes extra
            arguments, it gets `violations`, `least` (the multipliers' lower bounds) and `penalty`.
        penalty: the penalty of the augmented Lagrangian: a number, a schedule of dual steps, or `growing(...)`; 0 is
            the plain Lagrangian.
        order: `alternating` moves multipliers first and then the parameters against the new multipliers; `simultaneous`
            moves both from their present values; `primal_first` moves the parameters first, and evaluates the
            constraints again for the multipliers; `extragradient` evaluates and moves both twice (Korpelevich 1976).
            Optimistic ascent is `simultaneous` with optimistic optimisers in both lines.
        every: primal steps per dual step.

    Raises:
        InputError: no constraints, two of one name, an unknown `order`, `every` below 1 or a penalty below 0.
        TypeError: constraints that are no sequence, `dual` is no optax transformation, or `penalty` is text.

    >>> from jaxdist.constraints.constraint import inequality
    >>> DualAscent((inequality('ball', lambda w: w @ w),), optax.sgd(0.1)).names
    ('ball',)
    """

    constraints: tuple[Constraint, ...]
    dual: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(0.01))
    penalty: penalties.Penalty = 0.0
    order: Order = 'alternating'
    every: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.constraints, Constraint):
            raise TypeError(
                f'constraints come in a tuple, as in {type(self).__name__}(({self.constraints.name},), ...)'
            )
        if not isinstance(self.dual, optax.GradientTransformation):
            raise TypeError(
                f'dual={self.dual!r} must be an optax transformation; jaxdist.line.build_dual makes one of text'
            )
        object.__setattr__(self, 'constraints', tuple(self.constraints))
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice or not self.names:
            problem = f'{twice} name several' if twice else 'there are none'
            raise InputError(f'dual ascent needs constraints of different names: {problem}')
        if self.order not in get_args(Order):
            raise InputError(f'order={self.order!r} must be one of {", ".join(get_args(Order))}')
        if self.every < 1:
            raise InputError(f'every={self.every} must be 1 or more primal steps per dual step')
        penalties.init(self.penalty)

    @property
    def names(self) -> tuple[str, ...]:
        """The constraints' names, in order."""
        return tuple(constraint.name for constraint in self.constraints)

    def begin(self, params: Params, batch: Batch) -> Duals:
        """The state before the first step: multipliers of 0.

        Args:
            params: the parameters, or their shapes.
            batch: a worker's part of the batch, or its shapes.

        Raises:
            InputError: a measure returns another shape than its constraint requires.
        """
        multipliers = {c.name: stores.init(c, params, batch) for c in self.constraints}
        state = self.dual.init(multipliers)
        return Duals(multipliers, state, penalties.init(self.penalty), jnp.zeros((), jnp.int32))

    def penalty_of(self, duals: Duals) -> jax.Array:
        """The present penalty of the augmented Lagrangian, a scalar."""
        return penalties.current(self.penalty, duals.penalty, duals.steps)

    def measure(self, params: Params, batch: Batch) -> dict[str, Sums]:
        """Step 2: this worker's sums of every measure."""
        return {c.name: c.sums(params, batch) for c in self.constraints}

    def reduce(
        self, sums: dict[str, Sums], params: Params, batch: Batch, count: jax.Array | None, axis: str
    ) -> ReducedSums:
        """Step 4, first half: sums are added over workers, in one all-reduce.

        Args:
            sums: this worker's sums, from `measure`.
            params: the parameters, replicated.
            batch: this worker's part of the batch.
            count: the loss's count of its examples; None where it is the same on all workers, and not sent.
            axis: the worker axis.
        """
        judged = {c.name: c.judged(params, batch) for c in self.constraints if c.true is not None}
        local: dict[str, Any] = {'sums': sums, 'judged': judged}
        names = {c.name for c in self.constraints if c.all_reduced}
        message: dict[str, Any] = {part: {n: x for n, x in local[part].items() if n in names} for part in local}
        message['count'] = count
        if 'weight' in batch and any(c.over == 'example' for c in self.constraints):
            message['examples'] = batch['weight'].sum()
        totals = collectives.psum(message, axis)
        # `sums` come from parameters that are typed as varying. Functions of the parameters alone are evaluated again,
        # at the replicated ones, so that their multipliers are typed as replicated.
        replicated = {c.name: c.sums(params, batch) for c in self.constraints if c.over == 'none'}
        reduced = {**sums, **replicated, **totals['sums']}
        rows = next(iter(batch.values())).shape[0] * collectives.axis_size(axis)
        return ReducedSums(
            reduced,
            {**reduced, **judged, **totals['judged']},
            totals['count'],
            totals.get('examples', jnp.asarray(rows, float)),
        )

    def weights(
        self, duals: Duals, reduced: ReducedSums, penalty: jax.Array, batch: Batch, axis: str
    ) -> dict[str, Sums]:
        """Step 5: the weight of each of this worker's sums in its part of the Lagrangian, the cotangents of `measure`.

        The mean over workers of the parts is the Lagrangian: a sum over workers counts W-fold, a function of the
        parameters alone once.
        """
        w = collectives.axis_size(axis)
        weights = {}
        for c in self.constraints:
            value, pull = jax.vjp(c.value, collectives.pvary(reduced.sums[c.name], axis))
            term = Term(c.kind, value, stores.lookup(c, duals.multipliers[c.name], batch))
            (counts,) = pull(collectives.pvary(effective_multiplier(term, penalty).astype(value.dtype), axis))
            if c.over == 'example':
                # The second entry is the examples' weights, which are data.
                counts = (counts[0] * reduced.sums[c.name][1] * inverse(reduced.examples), jnp.zeros_like(counts[1]))
            weights[c.name] = counts if c.over == 'none' else tuple(w * x for x in counts)
        return weights

    def ascend(self, duals: Duals, reduced: ReducedSums, batch: Batch, axis: str) -> Duals:
        """Steps 3 and 4: the multipliers are proposed and projected."""
        penalty = self.penalty_of(duals)
        inputs = {
            c.name: stores.dual_input(
                c, duals.multipliers[c.name], reduced.judged[c.name], reduced.examples, batch, axis
            )
            for c in self.constraints
        }
        violations = {name: each for name, (each, _) in inputs.items()}
        proposals, opt_state = self.propose(duals, violations, penalty)
        multipliers = {
            name: new if inputs[name][1] is True else jnp.where(inputs[name][1], new, duals.multipliers[name])
            for name, new in self.project(proposals).items()
        }
        grown = penalties.grow(self.penalty, duals.penalty, self._largest_violation(reduced, axis))
        return Duals(multipliers, opt_state, grown, duals.steps + 1)

    def propose(self, duals: Duals, violations: Multipliers, penalty: jax.Array) -> tuple[Multipliers, optax.OptState]:
        """Step 3: the multipliers as moved by the dual line, before projection, and the dual line's state."""
        dual = optax.with_extra_args_support(self.dual)
        descent = jax.tree.map(jnp.negative, violations)
        extra = {'violations': violations, 'least': self.lower_bounds(duals.multipliers), 'penalty': penalty}
        moves, opt_state = dual.update(descent, duals.opt_state, duals.multipliers, **extra)
        return optax.apply_updates(duals.multipliers, moves), opt_state

    def project(self, proposals: Multipliers) -> Multipliers:
        """Step 4, second half: no multiplier of an inequality is below 0."""
        return jax.tree.map(jnp.maximum, proposals, self.lower_bounds(proposals))

    def lower_bounds(self, multipliers: Multipliers) -> Multipliers:
        """The lower bounds of what the dual line moves.

        0 for inequalities; minus infinity for equalities, and for the parameters of a function of features.
        """
        free = {c.name for c in self.constraints if c.kind == 'equality' or c.multiplier is not None}
        return {
            name: jax.tree.map(lambda x, low=-jnp.inf if name in free else 0.0: jnp.full_like(x, low), stored)
            for name, stored in multipliers.items()
        }

    def metrics(self, duals: Duals, reduced: ReducedSums) -> dict[str, dict[str, jax.Array]]:
        """The scalars of `constraint_metrics`, for each constraint."""
        return {
            c.name: constraint_metrics(c, duals.multipliers[c.name], reduced.sums[c.name], reduced.judged[c.name])
            for c in self.constraints
        }

    def _largest_violation(self, reduced: ReducedSums, axis: str) -> jax.Array:
        """The largest violation of all constraints on all workers, for a growing penalty; else 0."""
        if not isinstance(self.penalty, penalties.Growing):
            return jnp.zeros((), float)
        each = [jnp.max(violation(Term(c.kind, c.value(reduced.judged[c.name]), 0.0))) for c in self.constraints]
        worst = jnp.max(jnp.stack([x.astype(float) for x in each]))
        varies = any(c.per_worker or c.over == 'example' for c in self.constraints)
        return collectives.pmax(worst, axis) if varies else worst


def constraint_metrics(constraint: Constraint, stored: Stored, sums: Sums, judged: Sums) -> dict[str, jax.Array]:
    """Scalars: `value` (of the true measure; NaN where it is unknown), its `violation`, and the `multiplier`.

    Of several values, the one with the largest violation, or nearest to one. Of several multipliers, the largest in
    size, which may belong to another value: for a gap that is bounded from both sides, the violated side changes from
    batch to batch. With a true measure, also the value of `measure` as `proxy`. A function of features has no
    `multiplier`.

    >>> import numpy as np
    >>> from jaxdist.constraints.constraint import inequality
    >>> two = inequality('two', lambda params: params)
    >>> at = (np.array([-1.0, 2.0]),)
    >>> {name: float(x) for name, x in constraint_metrics(two, np.array([0.0, 0.5]), at, at).items()}
    {'value': 2.0, 'violation': 2.0, 'multiplier': 0.5}
    """
    value = jnp.where(constraint.known(judged), constraint.value(judged), jnp.nan).reshape(-1)
    excess = value if constraint.kind == 'inequality' else jnp.abs(value)
    worst = jnp.argmax(jnp.where(jnp.isnan(excess), -jnp.inf, excess))
    metrics = {'value': value[worst], 'violation': violation(Term(constraint.kind, value[worst], 0.0))}
    if constraint.multiplier is None:
        each = stored.reshape(-1)
        metrics['multiplier'] = each[jnp.argmax(jnp.abs(each))]
    if constraint.true is not None:
        metrics['proxy'] = constraint.value(sums).reshape(-1)[worst]
    return metrics
