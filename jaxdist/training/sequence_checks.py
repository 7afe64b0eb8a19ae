"""Checks of a loss whose sequences are divided among devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import PartitionSpec as P

from jaxdist.core.errors import InputError
from jaxdist.core.gradient import as_seen
from jaxdist.core.layout import traced_types
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.core.workers import abstract

CURE = (
    "take a device's positions of inputs and targets by `local`, and compute attention by `attend`, of "
    'jaxdist.models.attention'
)


def check_sequences(loss: Loss, params: Params, values: Any, batch: Batch, devices: int) -> None:
    """Checks that a loss divides its sequences among the devices of mesh axis `context`.

    Args:
        loss: the loss.
        params: the parameters' shapes.
        values: the shapes of the model state; () without one.
        batch: the shapes of one worker's batch.
        devices: the number of devices.

    Raises:
        InputError: it does not, or its count is not that of a device's positions.

    >>> loss = lambda p, b, key: ({'loss': p * b['x'].sum()}, b['x'].size)
    >>> check_sequences(loss, jnp.float32(1), (), {'x': jnp.ones((4, 8))}, 2)
    Traceback (most recent call last):
    jaxdist.InputError: the loss does not divide sequences among the 2 devices of mesh axis 'context': take a device's
    positions of inputs and targets by `local`, and compute attention by `attend`, of jaxdist.models.attention
    """

    def evaluate(params: Params, values: Any, batch: Batch) -> tuple[Any, Any]:
        sums, count = loss(as_seen(params, values), batch, jax.random.key(0))[:2]
        return sums['loss'], jnp.asarray(count, float)

    share = abstract(devices, 'context')
    (divided, _), program = traced_types(evaluate, share, (P(), P(), P()), params, values, batch)
    if not divided:
        raise InputError(
            f"the loss does not divide sequences among the {devices} devices of mesh axis 'context': {CURE}"
        )
    own, whole = _constant(program), _constant(jax.make_jaxpr(evaluate)(params, values, batch).jaxpr)
    if own is not None and whole is not None and own * devices != whole:
        raise InputError(
            f"the count that the loss returns is {own:g} on each of the {devices} devices of mesh axis 'context', and "
            f"{whole:g} of whole sequences: it must be that of a device's positions, {whole / devices:g}; {CURE}"
        )


def _constant(program: Any) -> float | None:
    """The value of a program's last result if it depends on no argument; else None."""
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}

    def value(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return atom.val
        eqn = made.get(atom)
        if eqn is None or len(eqn.outvars) > 1:
            return None
        inputs = [value(x) for x in eqn.invars]
        if eqn.primitive.name in ('pvary', 'pcast'):  # a type, and no number
            return inputs[0]
        return None if any(x is None for x in inputs) else eqn.primitive.bind(*inputs, **eqn.params)

    found = value(program.outvars[-1])
    return None if found is None else float(jnp.ravel(found)[0])
