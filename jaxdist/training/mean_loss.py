"""Recognises, in a trace, a loss that returns a mean where a sum is wanted: it is divided by its count already."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxprs_in_params
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import as_seen
from jaxdist.core.layout import under_shard_map
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.core.workers import Workers

_UNCHANGED = frozenset(
    ['broadcast_in_dim', 'reshape', 'squeeze', 'convert_element_type', 'pvary', 'pcast', 'stop_gradient', 'copy']
)
"""Primitives whose result has the values of their operand."""
_CALLS = frozenset(['pjit', 'jit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call'])
"""Primitives that evaluate one inner program."""


class _Quotient(NamedTuple):
    dividend: Any
    divisor: Any


def refuse_mean(loss: Loss, params: Params, values: Any, batch: Batch, workers: Workers) -> None:
    """Refuses a loss whose last operation divides by its count, for the step divides by the count itself.

    A constant count of 1 or 2 passes, since a loss may be half a sum.

    Args:
        loss: the loss, whose form has been checked.
        params: the parameters' shapes.
        values: the shapes of the model state; () without one.
        batch: the whole batch, or its shapes.
        workers: the workers.

    Raises:
        InputError: the loss returns a mean.

    >>> from jaxdist.core.workers import simulated
    >>> loss = lambda p, b, key: ({'loss': jnp.mean(p * b['x'])}, b['x'].size)
    >>> refuse_mean(loss, jnp.float32(1), (), {'x': jnp.ones(16)}, simulated(2))
    Traceback (most recent call last):
    jaxdist.InputError: sums['loss'] is divided by the count 8 already, and the step divides by the count: return the
    sum over the batch, jnp.sum(...) in place of jnp.mean(...), or the mean times the count
    """

    def both(params: Params, values: Any, batch: Batch) -> Any:
        out = loss(as_seen(collectives.pvary(params, workers.axis), values), batch, jax.random.key(0))
        return collectives.pvary([jnp.asarray(x, float)[None] for x in (out[0]['loss'], out[1])], workers.axis)

    specs = (P(), P(), P(workers.axis))
    whole = jax.make_jaxpr(under_shard_map(both, workers, specs, P(workers.axis)))(params, values, batch)
    program = whole.eqns[-1].params['jaxpr']
    total, count = _origins(program, [object() for _ in program.invars])
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
