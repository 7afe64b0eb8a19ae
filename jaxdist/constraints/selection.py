"""The tensors of a model that a constraint on parameters is about, by their paths."""

import re

import jax

from jaxdist.mesh import path_text
from jaxdist.task import Params


def select(params: Params, path: str) -> list[jax.Array]:
    """The tensors whose whole path the regular expression matches, in the order of the tree.

    Raises:
        ValueError: no path matches; the text has the paths that there are.

    >>> select({'up': {'bias': 1.0, 'kernel': 2.0}}, '.*kernel')
    [2.0]
    """
    every = [(path_text(at), tensor) for at, tensor in jax.tree_util.tree_flatten_with_path(params)[0]]
    found = [tensor for name, tensor in every if re.fullmatch(path, name)]
    if not found:
        raise ValueError(f'no parameter has a path like {path!r}; they are {", ".join(name for name, _ in every)}')
    return found
