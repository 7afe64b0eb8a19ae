"""The FLOPs of a function: of its matrix products and convolutions, from its traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from jaxdist.ledger import _jaxprs as jaxprs


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """The FLOPs of the matrix products and convolutions of `fn(*args)`, two for each multiplication. Nothing runs.

    A loop counts for each of its turns, one of unknown length once, and of a conditional the branch with the most. (A
    compiled program's `cost_analysis` counts a loop once.)

    Args:
        fn: the function.
        *args: its arguments, or their shapes.

    >>> x = jax.ShapeDtypeStruct((4, 8), 'float32')
    >>> flops(lambda x: x @ x.T, x)
    256
    >>> flops(lambda x: jax.lax.scan(lambda y, _: (y @ x.T @ x, None), x, None, length=3)[0], x)
    1536
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(program: Any) -> int:
    return sum(_of_equation(eqn) for eqn in jaxprs.parts(program)[0].eqns)


def _of_equation(eqn: Any) -> int:
    name = jaxprs.name(eqn)
    if name == 'dot_general':
        (contracted, _), _ = eqn.params['dimension_numbers']
        return 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)
    if name.startswith('ragged_dot'):
        return 2 * eqn.outvars[0].aval.size * eqn.invars[0].aval.shape[-1]
    if name == 'conv_general_dilated':
        kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
        features = kernel.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
        return 2 * int(out.size) * int(kernel.size) // features
    if name == 'cond':
        return max(_of(branch) for branch in eqn.params['branches'])
    if jaxprs.inlined(eqn) is not None:
        return _of(jaxprs.inlined(eqn))
    turns = eqn.params.get('length', 1) if name == 'scan' else 1
    return turns * sum(_of(inner) for inner in core.jaxprs_in_params(eqn.params))
