"""Going on with another number of workers: what each had of its own becomes the mean of it, for each."""

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
    """The shapes of a state, as other workers saved it, laid out for the program's devices.

    Args:
        old: the shapes of the state of those workers' program.
        program: the one that goes on.

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

    Residuals, parameters, moments and queues, real numbers all, become the mean over the workers that there were: with
    error feedback and EF21, and for a mean that is still to be taken, nothing of their sum is lost, and workers that
    trained alone meet. Of whole numbers it is the largest, and of skipped steps, which are counted, the sum, with the
    first worker. Where each worker owns a part of something, as its state says by `sharded_fields`, the parts are put together
    and cut anew.

    Raises:
        InputError: random keys that differ between workers, of which there is no mean.

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
        new = jax.tree.map(_node, state, program.state, program.layout, is_leaf=_is_sharded)
        if bool(program.layout.skipped):
            first = jnp.arange(program.state.skipped.shape[0]) == 0
            new = new._replace(skipped=jnp.where(first, jnp.sum(state.skipped), 0).astype(state.skipped.dtype))
        return new

    return jax.jit(convert, out_shardings=jax.tree.map(lambda like: like.sharding, program.state))(state)


def changes(layout: State) -> tuple[list[str], list[str]]:
    """The paths of what each worker has of its own that `resized` averages, and of those that it cuts anew.

    >>> changes(State(False, {'w': True, 'b': False}, (), False, False))
    (['params/w'], [])
    """
    parts = {'params': layout.params, 'opt_state': layout.opt_state, 'objective': layout.objective}
    owned = [
        (*path, jax.tree_util.GetAttrKey(name))
        for path, node in jax.tree_util.tree_flatten_with_path(parts, is_leaf=_is_sharded)[0]
        if _is_sharded(node)
        for name in sharded_fields(node)
    ]
    own = [path for path, varies in jax.tree_util.tree_flatten_with_path(parts)[0] if varies]
    cut = [path for path in own if any(path[: len(start)] == start for start in owned)]
    return [path_text(path) for path in own if path not in cut], [path_text(path) for path in cut]


def _is_sharded(node: Any) -> bool:
    return bool(sharded_fields(node))


def _node(x: Any, like: Any, varies: Any) -> Any:
    """A leaf, or a state that says what workers own parts of."""
    if not _is_sharded(x):
        return _shared_out(x, like) if varies else x
    fields = {}
    for name in x._fields:
        one = _cut_anew if name in sharded_fields(x) else _shared_out
        parts = (getattr(each, name) for each in (x, like, varies))
        fields[name] = jax.tree.map(lambda a, b, v, one=one: one(a, b) if v else a, *parts)
    return x._replace(**fields)


def _cut_anew(x: jax.Array, like: Any) -> jax.Array:
    """Parts [W, ..., k] put together, and cut into [W, ..., k] of other W and k; what is added or dropped are zeros."""
    w, k = like.shape[0], like.shape[-1]
    whole = jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., : w * k]
    whole = jnp.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, w * k - whole.shape[-1])])
    return jnp.moveaxis(whole.reshape(*x.shape[1:-1], w, k), -2, 0)


def _rows(old: Any, like: Any) -> jax.ShapeDtypeStruct:
    sharding = like.sharding
    if isinstance(sharding, NamedSharding) and old.shape[0] % like.shape[0]:
        # Rows that the workers do not divide lie whole on each.
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    return jax.ShapeDtypeStruct(old.shape, like.dtype, sharding=sharding)


def _shared_out(x: jax.Array, like: Any) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise InputError(
            'each worker has a random key of its own in the state, and there is no mean of them: go on with as many'
        )
    one = jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.max(x, 0)
    return jnp.broadcast_to(one.astype(x.dtype), like.shape)
