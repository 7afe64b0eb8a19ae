"""How an algorithm speaks to the training step, beside optax's `init` and `update`. All of it is here, and optional.

1. **It lets workers diverge**: a state with the property `workers_diverge` says that parameters differ between workers
   on purpose. Without one, a line whose parameters would differ does not build.
2. **It synchronises**: `@algorithm(..., syncs='updates')` or `syncs='parameters'` says what workers agree on through it.
   A line has one such transformation, and nothing follows one that moves parameters.
3. **It shards state**: a state with the property `sharded_fields` names the fields of which each worker stores a part.
   On another number of workers these are concatenated and split again; every other per-worker leaf becomes its mean.
4. **It learns of a rejected step**: where workers diverge, `update` is given `rejected=`, a bool: this worker's gradient
   was not finite, so it must not move by itself, and no such number may reach the others.
5. **It learns how parameters are sharded** over the mesh's other axes: while an update is traced, `shard_specs` tells.
   A type does not, and neither `init` nor `update` has a place for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxdist.core.deprecation import renamed_attribute
from jaxdist.core.errors import InputError


def diverging_states(opt_state: Any) -> list[Any]:
    """The parts of an update's state whose algorithm lets workers diverge.

    >>> diverging_states(({'mu': 0.0},))
    []
    """
    return [node for node in jax.tree.leaves(opt_state, is_leaf=diverges) if diverges(node)]


def diverges(node: Any) -> bool:
    """Whether a node of an update's state says that workers diverge.

    >>> diverges({'mu': 0.0})
    False
    """
    return bool(renamed_attribute(node, 'workers_diverge', 'works_locally', False))


def sharded_fields(node: Any) -> tuple[str, ...]:
    """The fields of a state of which each worker stores a part; () for any other node.

    >>> sharded_fields({'mu': 0.0})
    ()
    """
    return tuple(renamed_attribute(node, 'sharded_fields', 'owned', ()))


_SPECS: ContextVar[Any] = ContextVar('specs', default=None)


@contextmanager
def sharded_as(specs: Any) -> Iterator[None]:
    """While an update is traced inside: how parameters, and gradients with them, are sharded over the other axes.

    Args:
        specs: a `PartitionSpec` for each parameter; None where the mesh has no other axes.

    >>> with sharded_as({'up': jax.P(None, 'model')}):
    ...     shard_specs({'up': jax.numpy.ones((8, 4))})
    [P(None, 'model')]
    """
    token = _SPECS.set(specs)
    try:
        yield
    finally:
        _SPECS.reset(token)


@contextmanager
def leaves_sharded_as(members: Sequence[int]) -> Iterator[None]:
    """Inside `sharded_as`, for a tree of these leaves of the parameters alone.

    >>> with sharded_as([jax.P('model'), jax.P()]), leaves_sharded_as((1,)):
    ...     shard_specs({'a': None, 'b': jax.numpy.ones(3)})
    [P()]
    """
    specs = _SPECS.get()
    leaves = jax.tree.leaves(specs, is_leaf=is_spec)
    with sharded_as(None if specs is None else [leaves[i] for i in members]):
        yield


def shard_specs(params: Any) -> list[PartitionSpec] | None:
    """The spec of each leaf of a tree like the parameters, as `sharded_as` has them; None if there are no other axes.

    Raises:
        InputError: the tree is not like the parameters.

    >>> shard_specs({'up': jax.numpy.ones((8, 4))})
    """
    specs = _SPECS.get()
    if specs is None:
        return None
    leaves: list[PartitionSpec] = jax.tree.leaves(specs, is_leaf=is_spec)
    count = len(jax.tree.leaves(params))
    if len(leaves) != count:
        raise InputError(
            f'the shardings of {len(leaves)} parameters are known, and the tree has {count} leaves; on a mesh with '
            'other axes a part of the parameters cannot be averaged alone'
        )
    return leaves


def is_spec(x: Any) -> bool:
    """Whether `x` is a `PartitionSpec`, which is a leaf here.

    >>> is_spec(jax.P())
    True
    """
    return isinstance(x, PartitionSpec)
