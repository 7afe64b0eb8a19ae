"""Checks, from a trace, that an optimiser works entry by entry: only then can a worker update its shard of a tensor."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.core.errors import InputError
from jaxdist.core.extra_args import call_update
from jaxdist.core.gate import ELEMENTWISE

CALLS = ('pjit', 'jit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call', 'remat', 'checkpoint', 'cond')
"""Primitives that contain a program, which is checked in their place."""


def check_elementwise(name: str, optimizer: optax.GradientTransformationExtraArgs, params: Any) -> None:
    """Checks that an optimiser gives the same result on shards of tensors as on whole tensors.

    Args:
        name: the algorithm's name, for the error message.
        optimizer: the optimiser that is to update shards.
        params: the parameters, or their shapes.

    Raises:
        InputError: the optimiser combines entries of a tensor, or treats a tensor by its shape.

    >>> check_elementwise('server', optax.with_extra_args_support(optax.adamw(1e-3)), jnp.ones((3, 2)))
    >>> check_elementwise('server', optax.with_extra_args_support(optax.clip_by_global_norm(1.0)), jnp.ones((3, 2)))
    Traceback (most recent call last):
    jaxdist.InputError: server: the optimiser does not work entry by entry: it has reduce_sum of float32[3,2], of which
    each worker stores one shard only. adamw and sgd do; a transformation of whole tensors, such as clip_by_global_norm,
    belongs before this one
    """
    whole = _steps(optimizer, jax.tree.map(lambda p: jnp.zeros(p.shape or (1,), p.dtype), params))
    for primitive, mixed in whole:
        if mixed:
            raise InputError(
                f'{name}: the optimiser does not work entry by entry: it has {primitive} of {mixed}, of which each '
                'worker stores one shard only. adamw and sgd do; a transformation of whole tensors, such as '
                'clip_by_global_norm, belongs before this one'
            )
    # The same tensors as rows: an optimiser that depends on shapes has another program for them.
    flat = _steps(optimizer, jax.tree.map(lambda p: jnp.zeros((1, max(p.size, 1)), p.dtype), params))
    if [primitive for primitive, _ in whole] != [primitive for primitive, _ in flat]:
        raise InputError(
            f'{name}: the optimiser treats tensors by their shapes, and would treat their shards differently (a '
            'mask, or a rule for matrices alone)'
        )


def _steps(optimizer: optax.GradientTransformationExtraArgs, params: Any) -> list[tuple[str, str]]:
    """Every primitive of an update on more than scalars, and the shape whose entries it combines, '' if none."""
    state = jax.eval_shape(optimizer.init, params)
    # The loss is a scalar, which an update may use as a factor.
    update = lambda u, s, p: call_update(optimizer, u, s, p, value=jnp.zeros(()))  # noqa: E731
    traced = jax.make_jaxpr(update)(params, state, params)
    return list(_walk(traced.jaxpr))


def _walk(jaxpr: Any) -> Iterator[tuple[str, str]]:
    """The same of one program, and of those that it calls."""
    for equation in jaxpr.eqns:
        primitive, values = equation.primitive.name, [v.aval for v in (*equation.invars, *equation.outvars)]
        shapes = {v.shape for v in values if v.shape}
        inner = [part for part in jax.tree.leaves(equation.params, is_leaf=_is_program) if _is_program(part)]
        if primitive in CALLS and inner:
            for part in inner:
                yield from _walk(getattr(part, 'jaxpr', part))
        elif shapes:
            fills = primitive == 'broadcast_in_dim' and not equation.invars[0].aval.shape
            elementwise = fills or (primitive in ELEMENTWISE and len(shapes) == 1)
            largest = max(values, key=lambda v: v.size)
            yield primitive, '' if elementwise else largest.str_short(short_dtypes=False)


def _is_program(x: Any) -> bool:
    return hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
