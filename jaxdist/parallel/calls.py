"""The calls of a named function in a loss, and how often they run: what a layout sends in them follows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxdist.core.types import Batch, Loss, Params


class Call(NamedTuple):
    """A call of a jitted function in a loss.

    Attributes:
        inputs: the types of its arguments, each with a shape and a dtype.
        outputs: those of its results.
        times: how often it runs in one evaluation of the loss.
        forwards: how often it is evaluated for a gradient: 2 in a block that is evaluated again.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    times: int
    forwards: int


def calls(name: str, loss: Loss, params: Params, batch: Batch) -> list[Call]:
    """The calls of a jitted function in a loss, on one device that has whole sequences and all experts.

    Args:
        name: the function's name.
        loss: the loss.
        params: the parameters' shapes.
        batch: the batch's shapes.

    >>> from jaxdist.models.attention import attend
    >>> loss = lambda p, b, key: ({'loss': attend(p * b['x'], b['x'], b['x']).sum()}, 4)
    >>> found = calls('whole_attention', loss, jax.numpy.float32(1), {'x': jax.numpy.ones((1, 4, 2, 8))})
    >>> [(call.times, call.outputs[0].shape) for call in found]
    [(1, (1, 4, 2, 8))]
    """
    return list(_found(name, jax.make_jaxpr(loss)(params, batch, jax.random.key(0)).jaxpr, 1, 1))


def _found(name: str, program: Any, times: int, forwards: int) -> Iterator[Call]:
    for eqn in program.eqns:
        if eqn.params.get('name') == name:
            inputs, outputs = (tuple(x.aval for x in atoms) for atoms in (eqn.invars, eqn.outvars))
            yield Call(inputs, outputs, times, forwards)
            continue
        again = 2 if eqn.primitive.name in ('remat2', 'checkpoint') else 1
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _found(name, inner, times * eqn.params.get('length', 1), forwards * again)


def one_device(batch: Batch, devices: int) -> Batch:
    """The shapes of one of some devices' part of a batch.

    >>> one_device({'x': jax.numpy.ones((8, 3))}, 4)
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // devices, *x.shape[1:]), x.dtype), batch)


def bytes_of(x: Any) -> int:
    """The bytes of an array of this type.

    >>> bytes_of(jax.numpy.ones(3))
    12
    """
    return int(x.size * x.dtype.itemsize)
