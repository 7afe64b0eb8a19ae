"""Recognises, in a trace, a loss that returns a mean where a sum is wanted: it is divided by its count already."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import Literal, jaxprs_in_params

from jaxdist.core.errors import InputError

_UNCHANGED = frozenset(
    ['broadcast_in_dim', 'reshape', 'squeeze', 'convert_element_type', 'pvary', 'pcast', 'stop_gradient', 'copy']
)
"""Primitives whose result has the values of their operand."""
_CALLS = frozenset(['pjit', 'jit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call'])
"""Primitives that evaluate one inner program."""


class _Quotient(NamedTuple):
    dividend: Any
    divisor: Any


def refuse_mean(program: Any) -> None:
    """Refuses a loss whose last operation divides by its count, for the step divides by the count itself.

    A constant count of 1 or 2 passes, since a loss may be half a sum.

    Args:
        program: a jaxpr whose first two results are the loss and the count.

    Raises:
        InputError: the loss returns a mean.

    >>> import jax
    >>> refuse_mean(jax.make_jaxpr(lambda x: (jnp.mean(x), x.size))(jnp.ones(8)))
    Traceback (most recent call last):
    jaxdist.InputError: sums['loss'] is divided by the count 8 already, and the step divides by the count: return the
    sum over the batch, jnp.sum(...) in place of jnp.mean(...), or the mean times the count
    """
    program = getattr(program, 'jaxpr', program)
    total, count = _origins(program, [object() for _ in program.invars])[:2]
    if isinstance(total, _Quotient) and total.divisor == count and (not isinstance(count, float) or count > 2):
        name = f'the count {count:g}' if isinstance(count, float) else 'its count'
        raise InputError(
            f"sums['loss'] is divided by {name} already, and the step divides by the count: return the sum over the "
            'batch, jnp.sum(...) in place of jnp.mean(...), or the mean times the count'
        )


def _origins(program: Any, arguments: list[Any]) -> list[Any]:
    """What each result of a program is: a number, a quotient, one of the arguments, or a new object."""
    program = getattr(program, 'jaxpr', program)
    known = {**dict(zip(program.invars, arguments, strict=True)), **{v: object() for v in program.constvars}}

    def read(v: Any) -> Any:
        if isinstance(v, Literal):
            return float(v.val) if jnp.ndim(v.val) == 0 and jnp.isrealobj(v.val) else object()
        return known[v]

    for eqn in program.eqns:
        operands, results = [read(v) for v in eqn.invars], [object() for _ in eqn.outvars]
        name, inner = eqn.primitive.name, list(jaxprs_in_params(eqn.params))
        if name in _UNCHANGED:
            results = operands[:1]
        elif name in _CALLS and len(inner) == 1 and len(inner[0].invars) == len(operands):
            results = _origins(inner[0], operands)
        elif name == 'div':
            results = [_Quotient(*operands)]
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in program.outvars]
