"""The protocol between an algorithm and the training step, beyond optax's `init` and `update`. Every part is optional.

1. **Diverging workers**: a state with a true property `workers_diverge` declares that parameters differ between workers
   on purpose. Without one, a line whose parameters would differ does not build.
2. **Synchronisation**: `@algorithm(..., syncs='updates')` or `syncs='parameters'` declares what is the same on all
   workers after the algorithm. A line has one such transformation, and none follows one that synchronises parameters.
3. **Sharded state**: the property `sharded_fields` of a state lists the fields of which each worker stores a part. For
   another number of workers these are concatenated and split again; every other per-worker leaf becomes its mean.
4. **Rejected steps**: where workers diverge, `update` is called with `rejected=`, a bool. If true, this worker's
   gradient has no finite squared norm: the worker must not move by itself, and no non-finite number may be sent to the
   others.
5. **Sharded parameters**: while an update is traced, `shard_specs` returns how parameters are sharded over the mesh's
   other axes. It is a context, since types do not have it and neither `init` nor `update` has an argument for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxdist._former_names import STATE_PROPERTIES
from jaxdist.core.deprecation import renamed_attribute
from jaxdist.core.errors import InputError


def diverging_states(opt_state: Any) -> list[Any]:
    """The nodes of an optimiser state that declare that workers diverge.

    >>> diverging_states(({'mu': 0.0},))
    []
    """
    return [node for node in jax.tree.leaves(opt_state, is_leaf=diverges) if diverges(node)]


def diverges(node: Any) -> bool:
    """Whether a node of an optimiser state declares that workers diverge.

    >>> diverges({'mu': 0.0})
    False
    """
    return bool(renamed_attribute(node, 'workers_diverge', STATE_PROPERTIES['workers_diverge'], False))


def sharded_fields(node: Any) -> tuple[str, ...]:
    """The fields of a state of which each worker stores a part; () if it declares none.

    >>> sharded_fields({'mu': 0.0})
    ()
    """
    return tuple(renamed_attribute(node, 'sharded_fields', STATE_PROPERTIES['sharded_fields'], ()))


_SPECS: ContextVar[Any] = ContextVar('specs', default=None)


@contextmanager
def sharded_as(specs: Any) -> Iterator[None]:
    """A context in which `shard_specs` returns how parameters and gradients are sharded over the mesh's other axes.

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
    """A context inside `sharded_as` for a tree with only some leaves of the parameters.

    Args:
        members: the numbers of these leaves, in the order of `jax.tree.leaves`.

    >>> with sharded_as([jax.P('model'), jax.P()]), leaves_sharded_as((1,)):
    ...     shard_specs({'a': None, 'b': jax.numpy.ones(3)})
    [P()]
    """
    specs = _SPECS.get()
    leaves = jax.tree.leaves(specs, is_leaf=is_spec)
    with sharded_as(None if specs is None else [leaves[i] for i in members]):
        yield


def shard_specs(params: Any) -> list[PartitionSpec] | None:
    """The `PartitionSpec` of each leaf of a tree like the parameters; None if the mesh has no other axes.

    `sharded_as` sets them; outside of it the result is None too.

    Raises:
        InputError: the tree has another number of leaves than the parameters.

    >>> shard_specs({'up': jax.numpy.ones((8, 4))})
    """
    specs = _SPECS.get()
    if specs is None:
        return None
    leaves: list[PartitionSpec] = jax.tree.leaves(specs, is_leaf=is_spec)
    count = len(jax.tree.leaves(params))
    if len(leaves) != count:
        raise InputError(
            f'the shardings of {len(leaves)} parameters are known, but the tree has {count} leaves; on a mesh with '
            'other axes a part of the parameters cannot be averaged separately'
        )
    return leaves


def is_spec(x: Any) -> bool:
    """Whether `x` is a `PartitionSpec`, which is a leaf here.

    >>> is_spec(jax.P())
    True
    """
    return isinstance(x, PartitionSpec)
