"""A constraint: a named function of parameters and data whose value must be at most, or equal to, a bound."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.constraints.feature_multipliers import FeatureMultipliers
from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Params, Variables

Kind = Literal['inequality', 'equality']
Over = Literal['none', 'sum', 'mean', 'ratio', 'example']
Measure = Callable[..., Any]
Sums = tuple[jax.Array, ...]
"""One worker's contribution to the sums over workers; for a mean and a ratio, numerator and denominator."""

SIGNATURES = {
    'none': ('(params)', 'an array of real numbers'),
    'sum': ('(params, batch)', 'an array of real numbers, the sum over its examples'),
    'mean': ('(params, batch)', 'a value for each example, [B, ...]'),
    'ratio': ('(params, batch)', '(numerator, denominator), two arrays of one shape, sums over its examples'),
    'example': ('(params, batch)', 'a value for each example, [B]'),
}
"""The arguments and the result of a measure, by `over`."""


@dataclass(frozen=True)
class Constraint:
    """A named constraint, built by `inequality` or `equality`.

    Attributes:
        name: the constraint's name in records and messages.
        kind: `inequality` (the value must be at most 0) or `equality` (it must be 0).
        measure: the function that is constrained; its arguments and result depend on `over`.
        over: the reduction over workers that turns their results into the one that is compared with the bound.
        bound: subtracted from the reduced result, a number or an array.
        then: maps the reduced result to the bounded quantity, as two rates to their difference; None for identity.
        true: a measure that decides in place of `measure` whether the constraint holds, where the true quantity has no
            useful gradient; None if `measure` decides.
        per_worker: whether the constraint must hold on every worker separately, with one multiplier per worker.
        multiplier: for `over='example'`: None for one multiplier per example, or a function of the features.
        rows: for `over='example'`: the largest number of examples of one worker, if a batch has `row`; else 0.

    Raises:
        InputError: a name that is no identifier, an unknown `over`, fields that do not go with `over` or `kind`, a
            bound that is not finite, or a measure that cannot be called with the arguments of `over`.
    """

    name: str
    kind: Kind
    measure: Measure
    over: Over = 'none'
    bound: jax.typing.ArrayLike = 0.0
    then: Callable[[jax.Array], jax.Array] | None = None
    true: Measure | None = None
    per_worker: bool = False
    multiplier: FeatureMultipliers | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f'{self.name!r} cannot name a constraint: use letters, digits and _')
        if self.over not in SIGNATURES:
            raise InputError(f'over={self.over!r} of {self.name!r} must be one of {", ".join(SIGNATURES)}')
        if self.per_worker and self.over in ('none', 'example'):
            raise InputError(
                f'{self.name!r}: per_worker=True bounds the sum, mean or ratio of each worker; over={self.over!r} '
                'has none'
            )
        if (self.multiplier or self.rows) and self.over != 'example':
            raise InputError(f"{self.name!r}: multiplier and rows are for over='example', not {self.over!r}")
        if self.multiplier is not None and self.multiplier.signed != (self.kind == 'equality'):
            signs = 'of both signs' if self.kind == 'equality' else 'of 0 or more'
            raise InputError(
                f'{self.name!r} is an {self.kind}, and needs multipliers {signs}: see FeatureMultipliers.signed'
            )
        if not np.isfinite(np.asarray(self.bound)).all():
            raise InputError(f'bound={self.bound} of {self.name!r} must be finite')
        for measure in (self.measure, *([self.true] if self.true else [])):
            _check_signature(self, measure)

    @property
    def all_reduced(self) -> bool:
        """Whether its sums are all-reduced over workers."""
        return self.over in ('sum', 'mean', 'ratio') and not self.per_worker

    @property
    def replicated(self) -> bool:
        """Whether its multipliers, or the parameters of a function of features in their place, are replicated."""
        return not self.per_worker and (self.over != 'example' or self.multiplier is not None)

    def sums(self, params: Params, batch: Batch) -> Sums:
        """This worker's sums of `measure`; for `over='example'`, the values [B] and the examples' weights [B].

        A measure of data gets what the loss gets, `Variables` of a model with a state; one over 'none' the parameters.

        Raises:
            InputError: the measure returns another shape than `over` requires.
        """
        if self.over == 'none':
            result = self.measure(params.params if isinstance(params, Variables) else params)
        else:
            result = self.measure(params, batch)
        parts = result if self.over == 'ratio' and isinstance(result, tuple | list) else (result,)
        arrays = tuple(_real(self, part) for part in parts)
        if len(arrays) != (2 if self.over == 'ratio' else 1) or arrays[0].shape != arrays[-1].shape:
            raise _shape_error(self, [x.shape for x in arrays])
        if self.over not in ('mean', 'example'):
            return arrays
        value, size = arrays[0], next(iter(batch.values())).shape[0]
        if value.shape[:1] != (size,) or (self.over == 'example' and value.ndim > 1):
            raise _shape_error(self, [value.shape], size)
        weight = jnp.asarray(batch.get('weight', jnp.ones(size)), value.dtype)
        return (value, weight) if self.over == 'example' else (jnp.tensordot(weight, value, 1), weight.sum())

    def judged(self, params: Params, batch: Batch) -> Sums:
        """This worker's sums of the true measure, or of `measure` if there is no other; see `sums`."""
        return self.sums(params, batch) if self.true is None else replace(self, measure=self.true).sums(params, batch)

    def value(self, sums: Sums) -> jax.Array:
        """The value, which must be at most 0 or equal to 0, from reduced sums; 0 where it is unknown (see `known`)."""
        known = self.known(sums)
        # Divided by 1 in place of 0: the branch that is not taken would still make a gradient of NaN.
        reduced = sums[0] / jnp.where(sums[1] == 0, 1, sums[1]) if self.over in ('mean', 'ratio') else sums[0]
        value = (reduced if self.then is None else self.then(reduced)) - self.bound
        return jnp.where(known, value, 0)

    def known(self, sums: Sums) -> jax.Array:
        """Whether examples determine the value: False for a ratio with a denominator of 0.

        With `then`, one denominator of 0 makes the whole value unknown. With `over='example'`, the value of an example
        of weight 0 is unknown.
        """
        if self.over in ('none', 'sum'):
            return jnp.bool(True)
        return sums[1] != 0 if self.then is None or self.over == 'example' else jnp.all(sums[1] != 0)


def inequality(name: str, measure: Measure, **fields: Any) -> Constraint:
    """The constraint that a value is at most its bound: g = then(reduced) - bound <= 0, entry by entry.

    Args:
        name: the constraint's name in records and messages.
        measure: the function that is constrained, by `over`:
            none: `measure(params)`, a function of the parameters alone, which is not summed over workers;
            sum: `measure(params, batch)` is the worker's own sum, and the sum over workers is bounded;
            mean: `measure(params, batch)` [B, ...], and the mean over all examples of all workers is bounded;
            ratio: `measure(params, batch)` is (numerator, denominator); each is summed over workers, then divided;
            example: `measure(params, batch)` [B], and each example's value is bounded.
        fields: fields of `Constraint`: `over`, `bound`, `then`, `true`, `per_worker`, `multiplier`, `rows`.

    >>> ball = inequality('ball', lambda params: params @ params, bound=4.0)
    >>> ball.value(ball.sums(np.array([1.0, 2.0]), {}))
    Array(1., dtype=float32)
    """
    return Constraint(name, 'inequality', measure, **fields)


def equality(name: str, measure: Measure, **fields: Any) -> Constraint:
    """The constraint that a value equals its bound: h = then(reduced) - bound = 0, entry by entry; see `inequality`.

    >>> one = equality('one', lambda params: params.sum(), bound=1.0)
    >>> one.value(one.sums(np.array([1.0, 2.0]), {}))
    Array(2., dtype=float32)
    """
    return Constraint(name, 'equality', measure, **fields)


def _check_signature(constraint: Constraint, measure: Measure) -> None:
    try:
        inspect.signature(measure).bind(*(('params',) if constraint.over == 'none' else ('params', 'batch')))
    except TypeError:
        expected = SIGNATURES[constraint.over][0]
        other = 'mean' if constraint.over == 'none' else 'none'
        raise InputError(
            f'the measure of {constraint.name!r} is called as measure{expected}, for over={constraint.over!r}, and '
            f'cannot be; over={other!r} calls it as measure{SIGNATURES[other][0]}'
        ) from None
    except ValueError:  # some builtins have no signature
        return


def _real(constraint: Constraint, x: Any) -> jax.Array:
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f'the measure of {constraint.name!r} returns complex numbers, which have no order')
    # Integers have no gradient, and sums in bfloat16 or float16 lose their low digits.
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _shape_error(constraint: Constraint, shapes: list[tuple[int, ...]], size: int | None = None) -> InputError:
    among = '' if size is None else f' of {size} examples here'
    return InputError(
        f'the measure of {constraint.name!r} must return {SIGNATURES[constraint.over][1]}{among} '
        f'(over={constraint.over!r}); it returns {", ".join(map(str, shapes))}'
    )
