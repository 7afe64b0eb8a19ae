"""Distributed dual ascent: multipliers that all workers agree on, for the cost of a few numbers.

The five steps of the distributed method of multipliers, and where they are:

1. The Lagrangian is built: `lagrangian.py`, of the constraints that a `DualAscent` has.
2. Each worker evaluates its own part, on its own data: `DualAscent.measure`.
3. Each worker proposes multipliers: `DualAscent.propose`.
4. They agree, and project: the sums are added up over workers in `agree`, the only place where anything crosses, and
   `project` comes last. For plain ascent the mean of all proposals is the proposal from the mean; agreeing on sums
   first gives the same, and stays right where a value is no sum (a rate) or the dual line is not linear (a controller
   behind a clip). Multipliers that neighbours agree on by gossip would take the place of `agree`.
5. Everybody updates the model with the gradient of its part of the Lagrangian: `weights` says what each of its sums
   counts there; the mean over workers of these gradients is the Lagrangian's.
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
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import inverse
from jaxdist.core.types import Batch, Params

Order = Literal['alternating', 'simultaneous', 'primal_first', 'extragradient']


class Duals(NamedTuple):
    """The dual side of the training state.

    Attributes:
        multipliers: by the constraints' names; [W, ...] where each worker has its own.
        opt_state: the dual line's.
        penalty: what a growing penalty remembers, else ().
        steps: dual steps taken, an int32 scalar.
    """

    multipliers: dict[str, Any]
    opt_state: optax.OptState
    penalty: Any
    steps: jax.Array


class Seen(NamedTuple):
    """What workers have agreed on at one place.

    Attributes:
        sums: of the measures, by name: of all workers, or this worker's own where it holds a constraint alone.
        judged: the same of the true measures.
        count: of the loss, of all workers; None where all have the same.
        examples: how much the examples of all workers count together.
    """

    sums: dict[str, Sums]
    judged: dict[str, Sums]
    count: Any
    examples: jax.Array


@dataclass(frozen=True)
class DualAscent:
    """Constraints, and how their multipliers move.

    Attributes:
        constraints: what is to hold.
        dual: an optax transformation that moves multipliers: an ordinary optimiser, which descends on what it is fed
            with, minus the violations, and so ascends on the violations. It is told `violations`, `least` (the
            multipliers' lower bounds) and `penalty`, if it takes extra arguments.
        penalty: of the augmented Lagrangian: a number, a schedule of dual steps, or `growing(...)`; 0 is none.
        order: `alternating` moves multipliers first and then the parameters against these; `simultaneous` both from
            where they were; `primal_first` the other way round, for a second evaluation; `extragradient` both twice
            (Korpelevich 1976). Optimistic ascent is `simultaneous` with optimistic optimisers in both lines.
        every: primal steps to a dual step.

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
            what = f'{twice} stand for several' if twice else 'there are none'
            raise InputError(f'dual ascent needs constraints of different names: {what}')
        if self.order not in get_args(Order):
            raise InputError(f'order={self.order!r} must be one of {", ".join(get_args(Order))}')
        if self.every < 1:
            raise InputError(f'every={self.every} must be 1 or more primal steps to a dual step')
        penalties.begin(self.penalty)

    @property
    def names(self) -> tuple[str, ...]:
        """The constraints' names, in order."""
        return tuple(constraint.name for constraint in self.constraints)

    def begin(self, params: Params, batch: Batch) -> Duals:
        """Multipliers of 0, for a worker's part of the batch; of both shapes will do.

        Raises:
            InputError: a measure gives another shape than its constraint says.
        """
        multipliers = {c.name: stores.start(c, params, batch) for c in self.constraints}
        state = self.dual.init(multipliers)
        return Duals(multipliers, state, penalties.begin(self.penalty), jnp.zeros((), jnp.int32))

    def penalty_of(self, duals: Duals) -> jax.Array:
        """The penalty of the augmented Lagrangian, a scalar."""
        return penalties.current(self.penalty, duals.penalty, duals.steps)

    def measure(self, params: Params, batch: Batch) -> dict[str, Sums]:
        """Step 2: this worker's sums of every measure."""
        return {c.name: c.sums(params, batch) for c in self.constraints}

    def agree(self, sums: dict[str, Sums], params: Params, batch: Batch, count: Any, axis: str) -> Seen:
        """Step 4, first half: sums are added up over workers, in one message.

        Args:
            sums: this worker's, from `measure`.
            params: the parameters, which all share.
            batch: this worker's part.
            count: its examples; None where all workers have the same, which need not be told.
            axis: the worker axis.
        """
        judged = {c.name: c.judged(params, batch) for c in self.constraints if c.true is not None}
        mine: dict[str, Any] = {'sums': sums, 'judged': judged}
        crossing = {c.name for c in self.constraints if c.crosses}
        told: dict[str, Any] = {part: {n: x for n, x in mine[part].items() if n in crossing} for part in mine}
        told['count'] = count
        if 'weight' in batch and any(c.over == 'example' for c in self.constraints):
            told['examples'] = batch['weight'].sum()
        everyone = collectives.psum(told, axis)
        # Made of parameters that all share, what is a function of them alone is shared too.
        shared = {c.name: c.sums(params, batch) for c in self.constraints if c.over == 'none'}
        agreed = {**sums, **shared, **everyone['sums']}
        rows = next(iter(batch.values())).shape[0] * collectives.axis_size(axis)
        return Seen(
            agreed,
            {**agreed, **judged, **everyone['judged']},
            everyone['count'],
            everyone.get('examples', jnp.asarray(rows, float)),
        )

    def weights(self, duals: Duals, seen: Seen, penalty: jax.Array, batch: Batch, axis: str) -> dict[str, Sums]:
        """Step 5: what each of a worker's sums counts in its part of the Lagrangian.

        The mean over workers of the parts is the Lagrangian: a sum over workers counts W-fold, a function of the
        parameters alone once.
        """
        w = collectives.axis_size(axis)
        found = {}
        for c in self.constraints:
            value, pull = jax.vjp(c.value, collectives.pvary(seen.sums[c.name], axis))
            term = Term(c.kind, value, stores.read(c, duals.multipliers[c.name], batch))
            (counts,) = pull(collectives.pvary(effective_multiplier(term, penalty).astype(value.dtype), axis))
            if c.over == 'example':
                counts = (counts[0] * seen.sums[c.name][1] * inverse(seen.examples), jnp.zeros_like(counts[1]))
            found[c.name] = counts if c.over == 'none' else tuple(w * x for x in counts)
        return found

    def ascend(self, duals: Duals, seen: Seen, batch: Batch, axis: str) -> Duals:
        """Steps 3 and 4: proposals, and their projection."""
        penalty = self.penalty_of(duals)
        fed = {
            c.name: stores.feed(c, duals.multipliers[c.name], seen.judged[c.name], seen.examples, batch, axis)
            for c in self.constraints
        }
        proposals, opt_state = self.propose(duals, {name: violations for name, (violations, _) in fed.items()}, penalty)
        moved = {
            name: own if fed[name][1] is True else jnp.where(fed[name][1], own, duals.multipliers[name])
            for name, own in self.project(proposals).items()
        }
        grown = penalties.grow(self.penalty, duals.penalty, self._worst(seen, axis))
        return Duals(moved, opt_state, grown, duals.steps + 1)

    def propose(self, duals: Duals, violations: dict[str, Any], penalty: jax.Array) -> tuple[dict[str, Any], Any]:
        """Step 3: the multipliers as the dual line moves them, not projected yet, and the line's state."""
        dual = optax.with_extra_args_support(self.dual)
        down = jax.tree.map(jnp.negative, violations)
        told = {'violations': violations, 'least': self.least(duals.multipliers), 'penalty': penalty}
        moves, opt_state = dual.update(down, duals.opt_state, duals.multipliers, **told)
        return optax.apply_updates(duals.multipliers, moves), opt_state

    def project(self, proposals: dict[str, Any]) -> dict[str, Any]:
        """Step 4, second half: no multiplier of an inequality is below 0."""
        return jax.tree.map(jnp.maximum, proposals, self.least(proposals))

    def least(self, multipliers: dict[str, Any]) -> dict[str, Any]:
        """The lower bounds of what the dual line moves: 0, and minus infinity for equalities and functions' own."""
        free = {c.name for c in self.constraints if c.kind == 'equality' or c.multiplier is not None}
        return {
            name: jax.tree.map(lambda x, low=-jnp.inf if name in free else 0.0: jnp.full_like(x, low), own)
            for name, own in multipliers.items()
        }

    def metrics(self, duals: Duals, seen: Seen) -> dict[str, dict[str, jax.Array]]:
        """For each constraint the scalars of `constraint_metrics`."""
        return {
            c.name: constraint_metrics(c, duals.multipliers[c.name], seen.sums[c.name], seen.judged[c.name])
            for c in self.constraints
        }

    def _worst(self, seen: Seen, axis: str) -> jax.Array:
        """The largest violation of all, which a growing penalty goes by."""
        if not isinstance(self.penalty, penalties.Growing):
            return jnp.zeros((), float)
        each = [jnp.max(violation(Term(c.kind, c.value(seen.judged[c.name]), 0.0))) for c in self.constraints]
        worst = jnp.max(jnp.stack([x.astype(float) for x in each]))
        alone = any(c.per_worker or c.over == 'example' for c in self.constraints)
        return collectives.pmax(worst, axis) if alone else worst


def constraint_metrics(constraint: Constraint, multipliers: Any, sums: Sums, judged: Sums) -> dict[str, jax.Array]:
    """Scalars: `value` (of the true measure; NaN where no example tells it), its `violation`, and its `multiplier`.

    Where a constraint has several values, the one is shown that is violated most, or nearest to it; and of several
    multipliers the largest in size, which need not be that one's: of a gap bounded from both sides, the value changes
    sides from batch to batch. If it has a true measure, the value of its proxy is there too, as `proxy`. A function of
    features has no multiplier to show.

    >>> from jaxdist.constraints.constraint import inequality
    >>> two = inequality('two', lambda params: params)
    >>> at = (jnp.array([-1.0, 2.0]),)
    >>> {name: float(x) for name, x in constraint_metrics(two, jnp.array([0.0, 0.5]), at, at).items()}
    {'value': 2.0, 'violation': 2.0, 'multiplier': 0.5}
    """
    value = jnp.where(constraint.known(judged), constraint.value(judged), jnp.nan).reshape(-1)
    far = value if constraint.kind == 'inequality' else jnp.abs(value)
    at = jnp.argmax(jnp.where(jnp.isnan(far), -jnp.inf, far))
    metrics = {'value': value[at], 'violation': violation(Term(constraint.kind, value[at], 0.0))}
    if constraint.multiplier is None:
        each = multipliers.reshape(-1)
        metrics['multiplier'] = each[jnp.argmax(jnp.abs(each))]
    if constraint.true is not None:
        metrics['proxy'] = constraint.value(sums).reshape(-1)[at]
    return metrics
