"""The protocol between an algorithm and the training step, beyond optax's `init` and `update`. Every part is optional.

1. **Diverging workers**: a state with a true property `workers_diverge` declares that parameters differ between workers
   on purpose. Without one, a line whose parameters would differ does not build.
2. **Synchronisation**: `@algorithm(..., syncs='updates')` or `syncs='parameters'` declares what is the same on all
   workers after the algorithm. A line has one such transformation, and none follows one that synchronises parameters.
   In a chain of optax the states tell: none may follow one with diverging workers or sharded state, unless it leaves
   the updates as `synchronised` noted them.
3. **Sharded state**: the property `sharded_fields` of a state lists the fields of which each worker stores a part. For
   another number of workers these are concatenated and split again; every other per-worker leaf becomes its mean.
4. **Rejected steps**: where workers diverge, `update` is called with `rejected=`, a bool. If true, this worker's
   gradient has no finite squared norm: the worker must not move by itself, and no non-finite number may be sent to the
   others.
5. **Sharded parameters**: while an update is traced, `shard_specs` returns how parameters are sharded over the mesh's
   other axes. It is a context, since types do not have it and neither `init` nor `update` has an argument for it.
6. **Local updates**: inside `shard_map`, `check_local` refuses a gradient that JAX has summed over workers already.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec

from jaxdist._former_names import STATE_PROPERTIES
from jaxdist.core import collectives
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


_SYNCHRONISED: ContextVar[list[tuple[str, list[Any]]] | None] = ContextVar('synchronised', default=None)


def synchronised(name: str, updates: Any) -> Any:
    """The updates, noted as those with which an algorithm synchronises parameters: they must be the last.

    Args:
        name: the algorithm's name.
        updates: the updates that it returns.

    >>> synchronised('average', {'w': 1.0})
    {'w': 1.0}
    """
    notes = _SYNCHRONISED.get()
    if notes is not None:
        notes.append((name, jax.tree.leaves(updates)))
    return updates


def harmless(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation, which may follow the synchronisation of parameters: it leaves equal parameters equal.

    >>> harmless(optax.keep_params_nonnegative()).init({'w': 1.0})
    EmptyState()
    """
    inner = optax.with_extra_args_support(transformation)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        after, state = inner.update(updates, state, params, **extra)
        notes = _SYNCHRONISED.get()
        if notes and all(a is b for a, b in zip(jax.tree.leaves(updates), notes[-1][1], strict=False)):
            notes[-1] = (notes[-1][0], jax.tree.leaves(after))
        return after, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


@contextmanager
def checked_synchronisation() -> Iterator[Callable[..., None]]:
    """A context around one update, in which parameters may be synchronised once; yields the check of its results.

    Yields:
        `(opt_state, updates=None) -> None`. It raises InputError if two transformations synchronise parameters, or if
        one is followed by another of its chain, unless the updates are those that it returned.

    >>> with checked_synchronisation() as check:
    ...     check((), synchronised('average', {'w': jax.numpy.ones(2)}))
    """
    notes: list[tuple[str, list[Any]]] = []

    def check(opt_state: Any, updates: Any = None) -> None:
        states = synchronising_states(opt_state)
        # Periodic algorithms share one state type: the one inside names the algorithm, if it has noted no name.
        names = [name for name, _ in notes] or [type(getattr(state, 'own', state)).__name__ for state in states]
        noted = [leaf for _, leaves in notes for leaf in leaves]
        notes.clear()
        if len(states) > 1:
            raise InputError(
                f'{names[0]} and {names[-1]} both synchronise the parameters, and what one does the other undoes: '
                'leave one out'
            )
        final = jax.tree.leaves(updates)
        unchanged = bool(noted) and len(final) == len(noted) and all(map(operator.is_, final, noted))
        if not unchanged and _is_followed(opt_state):
            raise InputError(
                f'{names[0]} synchronises parameters, and a transformation after it would change them: workers would '
                f'drift apart. Put {names[0]} last'
            )

    token = _SYNCHRONISED.set(notes)
    try:
        yield check
    finally:
        _SYNCHRONISED.reset(token)


def synchronising_states(opt_state: Any) -> list[Any]:
    """The nodes of an optimiser state of algorithms that synchronise parameters: of diverging workers, or sharded.

    >>> synchronising_states(({'mu': 0.0},))
    []
    """
    wanted = lambda x: diverges(x) or bool(sharded_fields(x))  # noqa: E731
    return [node for node in jax.tree.leaves(opt_state, is_leaf=wanted) if wanted(node)]


def _is_followed(state: Any) -> bool:
    """Whether a state that synchronises parameters is followed by another in its chain: a tuple, or a dict by name."""
    if isinstance(state, dict) or type(state) is tuple:
        parts = list(state.values()) if isinstance(state, dict) else list(state)
        return any(synchronising_states(part) for part in parts[:-1]) or any(map(_is_followed, parts))
    # In a wrapper's state a dict has one entry for each group of parameters, not one for each step of a chain.
    fields = [getattr(state, name) for name in getattr(state, '_fields', ())]
    groups = [part for x in fields for part in (x.values() if isinstance(x, dict) else [x])]
    return any(map(_is_followed, groups))


_FINDING: ContextVar[bool] = ContextVar('finding', default=False)


@contextmanager
def finding_layout() -> Iterator[None]:
    """A context in which `check_local` passes: values are not yet typed as varying wherever they will be.

    >>> with finding_layout():
    ...     check_local('mean', {'w': jax.numpy.ones(2)}, 'workers')
    """
    token = _FINDING.set(True)
    try:
        yield
    finally:
        _FINDING.reset(token)


def check_local(name: str, updates: Any, axis: str, stateful: bool = True) -> None:
    """Checks inside `shard_map` that updates are this worker's own, and not summed over workers already.

    Args:
        name: the algorithm's name.
        updates: the updates that it gets.
        axis: the worker axis.
        stateful: whether the algorithm has state that differs between workers.

    Raises:
        InputError: no update varies over workers; or there are no types that tell, and the state would be taken for
            replicated.

    >>> check_local('mean', {'w': jax.numpy.ones(2)}, 'workers')
    """
    leaves = jax.tree.leaves(updates)
    if not leaves or _FINDING.get() or not collectives.is_manual(axis):
        return
    if not collectives.varies(collectives.axis_index(axis), axis):
        if stateful:
            raise InputError(
                f'{name} has state that differs between workers, and with check_vma=False shard_map does not know that '
                'it does: one copy would be taken for all. Leave check_vma=False out'
            )
    elif not any(collectives.varies(x, axis) for x in leaves):
        raise InputError(
            f'{name} got updates that are the same on all workers: inside shard_map, jax.grad of a loss of replicated '
            'parameters is summed over the workers by JAX. Take the gradient of each worker, as in '
            'jax.grad(loss)(jaxdist.pvary(params), batch). With virtual_shards the gradient is the mean: leave '
            f'{name} out'
        )


def is_spec(x: Any) -> bool:
    """Whether `x` is a `PartitionSpec`, which is a leaf here.

    >>> is_spec(jax.P())
    True
    """
    return isinstance(x, PartitionSpec)
