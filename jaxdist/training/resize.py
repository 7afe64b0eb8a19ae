"""Resuming with another number of workers: per-worker state becomes its mean, sharded state is split again."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist.core.errors import InputError
from jaxdist.core.mesh import path_text
from jaxdist.core.program import Program
from jaxdist.core.protocol import sharded_fields
from jaxdist.training.step import State


def saved_by(old: State, program: Program[State]) -> State:
    """The shapes of a state that another number of workers saved, sharded over the program's devices.

    Args:
        old: the shapes of the state as it was saved.
        program: the program that resumes.

    >>> from jaxdist.core.program import build_program
    >>> from jaxdist.core.workers import simulated
    >>> step = lambda s, b: (s + b.sum(), None)
    >>> of = lambda n: build_program(lambda: jnp.zeros(()), step, True, simulated(n), ())
    >>> saved_by(of(8).state, of(2)).shape
    (8,)
    """
    return jax.tree.map(lambda x, like, v: _rows(x, like) if v else like, old, program.state, program.layout)


def resized(state: State, program: Program[State]) -> State:
    """The state for the program's number of workers.

    Per-worker floats (residuals, local parameters, moments, queues) become their mean over the former workers. This
    conserves the total of residuals, for error feedback and EF21, and of gradients that are queued before their mean;
    workers that train locally are synchronised. Per-worker integers become their maximum; the counts of skipped steps
    become their sum, on the first worker. State that is sharded over the workers (`sharded_fields`) is concatenated and
    split again.

    Args:
        state: the state as other workers saved it.
        program: the program that resumes.

    Raises:
        InputError: the state has per-worker random keys, which have no mean.

    >>> from jaxdist import line
    >>> from jaxdist.core import workers
    >>> from jaxdist.training.step import make_step
    >>> loss = lambda p, b, key: ({'loss': p * jnp.sum(b['x'])}, 1.0)
    >>> batch, update = {'x': jnp.arange(4.0)}, line.build('delay(steps=1) | mean()')
    >>> four, two = (make_step(loss, lambda key: jnp.zeros(()), update, batch, workers.simulated(w)) for w in (4, 2))
    >>> state, _ = four.step(four.init(jax.random.key(0)), batch)
    >>> state.opt_state[0].slots.reshape(-1), resized(state, two).opt_state[0].slots.reshape(-1)
    (Array([0., 1., 2., 3.], dtype=float32), Array([1.5, 1.5], dtype=float32))
    """

    def convert(state: State) -> State:
        new = jax.tree.map(_convert, state, program.state, program.layout, is_leaf=_is_sharded)
        if bool(program.layout.skipped):
            # A count, of which neither mean nor maximum is right: the run's total stays the same.
            first = jnp.arange(program.state.skipped.shape[0]) == 0
            new = new._replace(skipped=jnp.where(first, jnp.sum(state.skipped), 0).astype(state.skipped.dtype))
        return new

    return jax.jit(convert, out_shardings=jax.tree.map(lambda like: like.sharding, program.state))(state)


def changes(layout: State) -> tuple[list[str], list[str]]:
    """The paths of the per-worker leaves that `resized` averages, and of the sharded ones that it splits again.

    >>> changes(State(False, {'w': True, 'b': False}, (), False, False))
    (['params/w'], [])
    """
    parts = {name: getattr(layout, name) for name in ('params', 'opt_state', 'objective', 'model')}
    sharded = [
        (*path, jax.tree_util.GetAttrKey(name))
        for path, node in jax.tree_util.tree_flatten_with_path(parts, is_leaf=_is_sharded)[0]
        if _is_sharded(node)
        for name in sharded_fields(node)
    ]
    varying = [path for path, varies in jax.tree_util.tree_flatten_with_path(parts)[0] if varies]
    split = [path for path in varying if any(path[: len(start)] == start for start in sharded)]
    return [path_text(path) for path in varying if path not in split], [path_text(path) for path in split]


def _is_sharded(node: Any) -> bool:
    return bool(sharded_fields(node))


def _convert(x: Any, like: Any, varies: Any) -> Any:
    """A leaf, or a state with sharded fields, for the number of workers of `like`."""
    if not _is_sharded(x):
        return _averaged(x, like) if varies else x
    fields = {}
    for name in x._fields:
        one = _split_again if name in sharded_fields(x) else _averaged
        parts = (getattr(each, name) for each in (x, like, varies))
        fields[name] = jax.tree.map(lambda a, b, v, one=one: one(a, b) if v else a, *parts)
    return x._replace(**fields)


def _split_again(x: jax.Array, like: Any) -> jax.Array:
    """Shards [W, ..., k] concatenated, and split into [W, ..., k] of other W and k."""
    w, k = like.shape[0], like.shape[-1]
    # Shards are padded with zeros to equal lengths, so both cutting and padding change zeros only.
    whole = jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., : w * k]
    whole = jnp.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, w * k - whole.shape[-1])])
    return jnp.moveaxis(whole.reshape(*x.shape[1:-1], w, k), -2, 0)


def _rows(old: Any, like: Any) -> jax.ShapeDtypeStruct:
    sharding = like.sharding
    if isinstance(sharding, NamedSharding) and old.shape[0] % like.shape[0]:
        # Rows that the workers do not divide are replicated.
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    return jax.ShapeDtypeStruct(old.shape, like.dtype, sharding=sharding)


def _averaged(x: jax.Array, like: Any) -> jax.Array:
    """The mean over workers of a per-worker leaf [W, ...], or the maximum of integers, for each of the new workers."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise InputError(
            'the state has per-worker random keys, which have no mean: resume with the same number of workers'
        )
    one = jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.max(x, 0)
    return jnp.broadcast_to(one.astype(x.dtype), like.shape)
