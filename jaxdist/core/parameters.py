"""Checks of parameters: which leaves a pytree that is trained may have."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.mesh import path_text
from jaxdist.core.types import Params


def as_params(tree: Any) -> Params:
    """The tree with every leaf as an array that has a gradient; Python and NumPy numbers become arrays.

    Args:
        tree: what a model's `init` returns.

    Raises:
        InputError: a leaf is no array of real or complex numbers of 16 bits or more, or the tree has no entry.

    >>> as_params({'scale': 1.0, 'bias': None})
    {'bias': None, 'scale': Array(1., dtype=float32)}
    >>> as_params({'table': jnp.arange(3)})
    Traceback (most recent call last):
    jaxdist.InputError: parameter 'table' is int32, and parameters are real or complex numbers, which have gradients.
    Write 1.0 for the number 1, and keep counters and frozen tables out of the parameters: let the loss close over them,
    or put them in the batch
    """
    params = jax.tree_util.tree_map_with_path(_as_param, tree)
    if not any(p.size for p in jax.tree.leaves(params)):
        raise InputError(
            f'there is nothing to train: init must return a pytree of arrays with one entry or more, such as '
            f"{{'w': jnp.zeros((3, 2))}}; it returned {jax.tree.map(jnp.shape, params)}"
        )
    return params


def as_array(name: str, leaf: Any) -> jax.Array:
    """A leaf of what `init` returns as an array without a weak type, which would compile the step twice.

    Args:
        name: the leaf in words, for the error message.
        leaf: an array or a number.

    Raises:
        InputError: it is something else.

    >>> as_array("the model state 'n'", 'text')
    Traceback (most recent call last):
    jaxdist.InputError: the model state 'n' is of type str, and must be an array of numbers: keep names and settings out
    of what init returns, and register a class that stores arrays as a pytree
    """
    try:
        array = jnp.asarray(leaf)
    except TypeError:
        raise InputError(
            f'{name} is of type {type(leaf).__name__}, and must be an array of numbers: keep names and settings out of '
            'what init returns, and register a class that stores arrays as a pytree'
        ) from None
    return jnp.asarray(array, array.dtype)


def _as_param(path: Any, leaf: Any) -> jax.Array:
    array = as_array(_named(path), leaf)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise InputError(
            f'{_named(path)} is {array.dtype}, and parameters are real or complex numbers, which have gradients. Write '
            '1.0 for the number 1, and keep counters and frozen tables out of the parameters: let the loss close over '
            'them, or put them in the batch'
        )
    if array.dtype.itemsize < 2:
        raise InputError(
            f'{_named(path)} is {array.dtype}, which JAX does not add to other dtypes: store it in bfloat16, and cast '
            'it in the loss'
        )
    return array


def check_real(user: str, params: Params, cure: str) -> None:
    """Checks that no parameter is complex, for an algorithm that is defined for real numbers.

    Args:
        user: the algorithm's name and what it does with real numbers, for the error message.
        params: the parameters, or their shapes.
        cure: what to do instead, for the error message.

    Raises:
        InputError: a parameter is complex.

    >>> check_real('server: it stores real numbers', {'w': jnp.ones(2)}, 'use two real parameters')
    >>> check_real('server: it stores real numbers', {'w': jnp.ones(2, 'complex64')}, 'use two real parameters')
    Traceback (most recent call last):
    jaxdist.InputError: server: it stores real numbers, and parameter 'w' is complex64; use two real parameters
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise InputError(f'{user}, and {_named(path)} is {leaf.dtype}; {cure}')


def _named(path: Any) -> str:
    return f'parameter {path_text(path)!r}' if path else 'the parameter'
