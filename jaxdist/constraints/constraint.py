"""A constraint: a named function of parameters and data that is to be at most, or exactly, its bound."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.constraints.feature_multipliers import OfFeatures
from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Params

Kind = Literal['inequality', 'equality']
Over = Literal['none', 'sum', 'mean', 'ratio', 'example']
Measure = Callable[..., Any]
Sums = tuple[jax.Array, ...]
"""What a worker adds to what all have: of a ratio and a mean, numerator and denominator."""

TAKES = {
    'none': ('(params)', 'an array of real numbers'),
    'sum': ('(params, batch)', 'an array of real numbers, the sum over its examples'),
    'mean': ('(params, batch)', 'a value for each example, [B, ...]'),
    'ratio': ('(params, batch)', '(numerator, denominator), two arrays of one shape, sums over its examples'),
    'example': ('(params, batch)', 'a value for each example, [B]'),
}
"""What a measure is given and gives, by `over`."""


@dataclass(frozen=True)
class Constraint:
    """A named constraint; `inequality` and `equality` make them.

    Attributes:
        name: of the constraint, in records and messages.
        kind: whether the value must be at most 0, or 0.
        measure: what is measured; what it takes and gives depends on `over`.
        over: how what workers measure becomes one value, which is then compared with the bound.
        bound: what is subtracted from it, a number or an array.
        then: from what was reduced to what is bounded, as from two rates to their difference; None leaves it.
        true: a measure in place of `measure` that says whether the constraint holds, where that has no useful gradient.
        per_worker: whether every worker has to hold it by itself, with a multiplier of its own.
        multiplier: of single examples: None for one each, or a function of their features.
        rows: of single examples: the most that a worker owns, if a batch has `row`; else 0.
    """

    name: str
    kind: Kind
    measure: Measure
    over: Over = 'none'
    bound: jax.typing.ArrayLike = 0.0
    then: Callable[[jax.Array], jax.Array] | None = None
    true: Measure | None = None
    per_worker: bool = False
    multiplier: OfFeatures | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f'{self.name!r} cannot name a constraint: use letters, digits and _')
        if self.over not in TAKES:
            raise InputError(f'over={self.over!r} of {self.name!r} must be one of {", ".join(TAKES)}')
        if self.per_worker and self.over in ('none', 'example'):
            raise InputError(
                f'{self.name!r}: per_worker=True says that each worker holds its own sum, mean or ratio; '
                f'over={self.over!r} has none'
            )
        if (self.multiplier or self.rows) and self.over != 'example':
            raise InputError(f"{self.name!r}: multiplier and rows are for over='example', not {self.over!r}")
        if self.multiplier is not None and self.multiplier.signed != (self.kind == 'equality'):
            signs = 'of both signs' if self.kind == 'equality' else 'of 0 or more'
            raise InputError(f'{self.name!r} is an {self.kind}, and needs multipliers {signs}: see OfFeatures.signed')
        if not np.isfinite(np.asarray(self.bound)).all():
            raise InputError(f'bound={self.bound} of {self.name!r} must be finite')
        for measure in (self.measure, *([self.true] if self.true else [])):
            _check_takes(self, measure)

    @property
    def crosses(self) -> bool:
        """Whether its sums are added up over workers."""
        return self.over in ('sum', 'mean', 'ratio') and not self.per_worker

    @property
    def shares(self) -> bool:
        """Whether all workers share its multipliers, or what a function of features makes them of."""
        return not self.per_worker and (self.over != 'example' or self.multiplier is not None)

    def sums(self, params: Params, batch: Batch) -> Sums:
        """This worker's sums of `measure`; of single examples, their values [B] and what each counts [B].

        Raises:
            InputError: the measure gives another shape than `over` asks for.
        """
        given = self.measure(params) if self.over == 'none' else self.measure(params, batch)
        parts = given if self.over == 'ratio' and isinstance(given, tuple | list) else (given,)
        arrays = tuple(_real(self, part) for part in parts)
        if len(arrays) != (2 if self.over == 'ratio' else 1) or arrays[0].shape != arrays[-1].shape:
            raise _misfit(self, [x.shape for x in arrays])
        if self.over not in ('mean', 'example'):
            return arrays
        value, size = arrays[0], next(iter(batch.values())).shape[0]
        if value.shape[:1] != (size,) or (self.over == 'example' and value.ndim > 1):
            raise _misfit(self, [value.shape], size)
        weight = jnp.asarray(batch.get('weight', jnp.ones(size)), value.dtype)
        return (value, weight) if self.over == 'example' else (jnp.tensordot(weight, value, 1), weight.sum())

    def judged(self, params: Params, batch: Batch) -> Sums:
        """As `sums`, of the true measure, if there is one."""
        return self.sums(params, batch) if self.true is None else replace(self, measure=self.true).sums(params, batch)

    def value(self, sums: Sums) -> jax.Array:
        """What must be at most 0, or 0, from the sums of all; 0 where there is no example to tell it from."""
        known = self.known(sums)
        reduced = sums[0] / jnp.where(sums[1] == 0, 1, sums[1]) if self.over in ('mean', 'ratio') else sums[0]
        value = (reduced if self.then is None else self.then(reduced)) - self.bound
        return jnp.where(known, value, 0)

    def known(self, sums: Sums) -> jax.Array:
        """Whether there are examples that tell the value: a rate of nobody is unknown, and what is made of it.

        Of single examples, those are known that count.
        """
        if self.over in ('none', 'sum'):
            return jnp.bool(True)
        return sums[1] != 0 if self.then is None or self.over == 'example' else jnp.all(sums[1] != 0)


def inequality(name: str, measure: Measure, **how: Any) -> Constraint:
    """The constraint that a value is at most its bound: g = then(reduced) - bound <= 0, entry by entry.

    Args:
        name: its name, in records and messages.
        measure: what is measured, by `over`:
            none: `measure(params)`, a function of the parameters alone, which is not summed over workers;
            sum: `measure(params, batch)` is the worker's own sum, and the sum over workers is bounded;
            mean: `measure(params, batch)` [B, ...], and the mean over all examples of all workers is bounded;
            ratio: `measure(params, batch)` is (numerator, denominator); each is summed over workers, then divided;
            example: `measure(params, batch)` [B], and each example's is bounded.
        how: fields of `Constraint`: `over`, `bound`, `then`, `true`, `per_worker`, `multiplier`, `rows`.

    >>> ball = inequality('ball', lambda params: jnp.sum(params**2), bound=4.0)
    >>> ball.value(ball.sums(jnp.array([1.0, 2.0]), {}))
    Array(1., dtype=float32)
    """
    return Constraint(name, 'inequality', measure, **how)


def equality(name: str, measure: Measure, **how: Any) -> Constraint:
    """The constraint that a value is its bound: h = then(reduced) - bound = 0, entry by entry; see `inequality`.

    >>> one = equality('one', lambda params: params.sum(), bound=1.0)
    >>> one.value(one.sums(jnp.array([1.0, 2.0]), {}))
    Array(2., dtype=float32)
    """
    return Constraint(name, 'equality', measure, **how)


def _check_takes(constraint: Constraint, measure: Measure) -> None:
    try:
        inspect.signature(measure).bind(*(('params',) if constraint.over == 'none' else ('params', 'batch')))
    except TypeError:
        takes = TAKES[constraint.over][0]
        other = 'mean' if constraint.over == 'none' else 'none'
        raise InputError(
            f'the measure of {constraint.name!r} is called as measure{takes}, for over={constraint.over!r}, and cannot '
            f'be; over={other!r} calls it as measure{TAKES[other][0]}'
        ) from None
    except ValueError:  # of some builtins nobody knows the signature
        return


def _real(constraint: Constraint, x: Any) -> jax.Array:
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f'the measure of {constraint.name!r} gives complex numbers, which have no order')
    # Whole numbers have no gradient, and sums of short floats no digits.
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _misfit(constraint: Constraint, shapes: list[Any], size: int | None = None) -> InputError:
    among = '' if size is None else f' of {size} examples here'
    return InputError(
        f'the measure of {constraint.name!r} must give {TAKES[constraint.over][1]}{among} (over={constraint.over!r}); '
        f'it gives {", ".join(map(str, shapes))}'
    )
