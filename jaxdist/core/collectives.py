"""Collectives over the worker axis, the same under `shard_map` and under `vmap`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

AXIS = 'workers'
"""The default name of the worker axis."""


def axis_size(axis: str = AXIS) -> int:
    """The number of workers W.

    >>> jax.vmap(lambda x: x * axis_size('w'), axis_name='w')(jnp.ones(3))
    Array([3., 3., 3.], dtype=float32)
    """
    return lax.axis_size(axis)


def axis_index(axis: str = AXIS) -> jax.Array:
    """This worker's index, 0 to W - 1, as an int32 scalar.

    >>> jax.vmap(lambda x: x + axis_index('w'), axis_name='w')(jnp.zeros(3))
    Array([0., 1., 2.], dtype=float32)
    """
    return lax.axis_index(axis)


def is_manual(axis: str = AXIS) -> bool:
    """Whether the axis is a manual mesh axis: inside `shard_map`, where types show what varies, and not under `vmap`.

    >>> jax.vmap(lambda x: x * is_manual('w'), axis_name='w')(jnp.ones(2))
    Array([0., 0.], dtype=float32)
    """
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def varies(x: jax.Array, axis: str = AXIS) -> bool:
    """Whether `x` is typed as varying over workers. Only for use inside `shard_map`.

    >>> types = []
    >>> code = lambda x: types.append((varies(x), varies(pmean(x)))) or x
    >>> mesh = jax.make_mesh((1,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    >>> _ = jax.shard_map(code, mesh=mesh, in_specs=jax.P(AXIS), out_specs=jax.P(AXIS))(jnp.ones(2))
    >>> types
    [(True, False)]
    """
    return axis in jax.typeof(x).mat.varying


def pvary(tree: Any, axis: str = AXIS) -> Any:
    """The same values, typed as varying over workers.

    A gradient with respect to varying parameters is local; JAX sums one with respect to replicated parameters over
    workers.

    >>> jax.vmap(pvary, axis_name=AXIS)(jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    if not is_manual(axis):
        return tree
    return jax.tree.map(lambda x: x if varies(x, axis) else lax.pcast(x, axis, to='varying'), tree)


def as_varying(x: jax.Array, like: jax.Array) -> jax.Array:
    """The same values, typed as varying wherever `like` is.

    >>> as_varying(jnp.ones(2), jnp.zeros(2))
    Array([1., 1.], dtype=float32)
    """
    more = tuple(jax.typeof(like).mat.varying - jax.typeof(x).mat.varying)
    return lax.pcast(x, more, to='varying') if more else x


def zeros(shapes: Any) -> Any:
    """Zeros of these shapes and dtypes, typed as varying wherever these are: for the carry of a scan.

    Args:
        shapes: shapes from `jax.eval_shape`, inside or outside of `shard_map`.

    >>> zeros(jax.eval_shape(lambda: jnp.ones(2)))
    Array([0., 0.], dtype=float32)
    """

    def one(x: Any) -> jax.Array:
        varying = tuple(x.manual_axis_type.varying) if x.manual_axis_type else ()
        zero = jnp.zeros(x.shape, x.dtype)
        return lax.pcast(zero, varying, to='varying') if varying else zero

    return jax.tree.map(one, shapes)


def fixed_point(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The same values, typed as varying wherever `fn(tree)` is in the end: for a scan that carries `fn(tree)`.

    >>> fixed_point(lambda x: 2 * x, jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """

    def widened(x: jax.Array, after: Any) -> jax.Array:
        mine = jax.typeof(x).mat.varying
        more = tuple(after.manual_axis_type.varying - mine) if after.manual_axis_type else ()
        return lax.pcast(x, more, to='varying') if more else x

    while True:
        wider = jax.tree.map(widened, tree, jax.eval_shape(fn, tree))
        if all(a is b for a, b in zip(jax.tree.leaves(wider), jax.tree.leaves(tree), strict=True)):
            return tree
        tree = wider


def psum(tree: Any, axis: str = AXIS) -> Any:
    """The sum over workers, leaf by leaf; replicated.

    Sends 2 (W - 1) / W times the bytes of the tree, in one collective for each dtype.

    >>> jax.vmap(psum, axis_name=AXIS)(jnp.arange(4.0))
    Array([6., 6., 6., 6.], dtype=float32)
    """
    if is_manual(axis):
        return lax.psum(pvary(tree, axis), axis)
    return jax.tree.map(lambda x: sum_rows(lax.all_gather(x, axis)), tree)


def pmean(tree: Any, axis: str = AXIS) -> Any:
    """The mean over workers, leaf by leaf; replicated. Sends the same bytes as `psum`.

    The mean of finite float16 numbers is finite, though their sum may not be. Of wider numbers the sum is finite unless
    they are larger than what the guard of a step admits; a product before the sum would keep a TPU from overlapping it.

    >>> jax.vmap(pmean, axis_name=AXIS)(jnp.arange(4.0))
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    w = axis_size(axis)
    scale = sum_scale(w)
    narrow = lambda x: x.dtype == jnp.float16  # noqa: E731
    total = psum(jax.tree.map(lambda x: x * scale if narrow(x) else x, tree), axis)
    return jax.tree.map(lambda x, y: y / (w * scale if narrow(x) else w), tree, total)


def sum_scale(count: int) -> float:
    """A power of two: the sum of `count` finite numbers that are multiplied by it is finite.

    Such a product is exact, so that the mean of equal numbers is still that number.

    >>> sum_scale(3), sum_scale(1)
    (0.25, 1.0)
    """
    return 0.5 ** (count - 1).bit_length()


def pmax(x: jax.Array, axis: str = AXIS) -> jax.Array:
    """The maximum over workers, entry by entry; replicated. Sends 2 (W - 1) / W times the bytes of `x`.

    Infinity counts as larger than any number; whether NaN does depends on the backend.

    >>> jax.vmap(pmax, axis_name=AXIS, out_axes=None)(jnp.array([[1.0, 5.0], [3.0, 4.0]]))
    Array([3., 5.], dtype=float32)
    """
    if is_manual(axis):
        return lax.pmax(pvary(x, axis), axis)
    return jnp.max(lax.all_gather(x, axis), axis=0)


def sum_rows(x: jax.Array) -> jax.Array:
    """The sum over the first dim of `x` [n, ...].

    It is a product with ones: XLA's reduction over a leading dim takes 60 times as long on CPU.

    >>> sum_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([4., 6.], dtype=float32)
    """
    return jnp.tensordot(jnp.ones(x.shape[0], x.dtype), x, 1, precision='highest')


def mean_rows(x: jax.Array) -> jax.Array:
    """The mean over the first dim of `x` [n, ...]; finite if `x` is, though the sum may not be.

    >>> mean_rows(jnp.float32([3e38, 3e38]))
    Array(3.e+38, dtype=float32)
    """
    scale = sum_scale(len(x))
    return sum_rows(x * scale) / (len(x) * scale)


def permute(x: jax.Array, sources: Sequence[int | None], axis: str = AXIS) -> jax.Array:
    """The `x` of another worker: that of `sources[i]` on worker i, and zeros where there is None. Sends `x` once.

    Args:
        x: this worker's value.
        sources: for each worker the one whose value it gets; no worker is there twice.
        axis: the worker axis.

    >>> jax.vmap(lambda x: permute(x, (1, None, 0)), axis_name=AXIS)(jnp.array([1, 2, 3]))
    Array([2, 0, 1], dtype=int32)
    """
    if is_manual(axis):
        pairs = [(source, worker) for worker, source in enumerate(sources) if source is not None]
        return lax.ppermute(pvary(x, axis), axis, pairs)
    # Under vmap a ppermute takes whole permutations alone.
    index = axis_index(axis)
    known = jnp.array([source is not None for source in sources])[index]
    rows = lax.all_gather(x, axis)
    heard = rows[jnp.array([source or 0 for source in sources])[index]]
    return jnp.where(known, heard, jnp.zeros_like(heard))


def all_gather(x: jax.Array, axis: str = AXIS) -> jax.Array:
    """The `x` of all workers, stacked: [W, ...]; replicated. Sends W - 1 times the bytes of `x`.

    >>> jax.vmap(all_gather, axis_name=AXIS, out_axes=None)(jnp.arange(3))
    Array([0, 1, 2], dtype=int32)
    """
    if not is_manual(axis):
        return lax.all_gather(x, axis)
    # A TPU sends whole tiles of four rows: bytes in a single row would become four times as many.
    rows = x.reshape(4, -1) if x.dtype == jnp.uint8 and x.ndim == 1 and x.size % 4 == 0 else x
    return lax.all_gather(rows, axis, to='invarying').reshape(-1, *x.shape)


def all_to_all(x: jax.Array, axis: str = AXIS) -> jax.Array:
    """Sends row j of `x` [W, ...] to worker j; returns [W, ...] with row i from worker i. Sends (W - 1) / W of `x`.

    >>> jax.vmap(all_to_all, axis_name=AXIS)(jnp.array([[0, 1], [2, 3]]))
    Array([[0, 2],
           [1, 3]], dtype=int32)
    """
    if not is_manual(axis):  # under vmap, all_to_all of an unbatched value has a wrong shape: batch it
        x = x + (0 * lax.axis_index(axis)).astype(x.dtype)
    return lax.all_to_all(x, axis, 0, 0, tiled=True)


def reduce_scatter(x: jax.Array, axis: str = AXIS) -> jax.Array:
    """On worker j the sum over workers of row j of `x` [W, ...]: [...]. Sends (W - 1) / W of `x`.

    >>> jax.vmap(reduce_scatter, axis_name=AXIS)(jnp.array([[0, 1], [2, 3]]))
    Array([2, 4], dtype=int32)
    """
    # The scattered dim must be outside of a TPU's tiles, whose rows have 128 lanes, or XLA makes an all-reduce instead.
    rows = x.reshape(x.shape[0], -1, 128) if x.ndim == 2 and x.shape[1] % 128 == 0 else x
    return lax.psum_scatter(pvary(rows, axis), axis).reshape(x.shape[1:])


def serve(
    rows: jax.Array, own: Any, answer: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]], axis: str = AXIS
) -> tuple[jax.Array, Any]:
    """Row j of every worker goes to worker j, and worker j's answer to all: an `all_to_all`, then an `all_gather`.

    There may be fewer rows than workers; the others answer too, as shapes on a mesh must be equal, and are not heard.
    Simulated workers answer once for all who hear it, so that the cost is linear in workers, not quadratic.

    Args:
        rows: what this worker sends, [J, ...] with J of W or fewer.
        own: what else this worker needs for its answer, a tree of arrays.
        answer: `(rows of all workers [W, ...], j, own of worker j) -> (answer [...], what worker j keeps)`. All values
            that differ between workers must be among its arguments.
        axis: the worker axis.

    Returns:
        The answers of workers 0 to J - 1, [J, ...], replicated, and what this worker keeps (without meaning if its
        index is J or more).

    >>> total = lambda rows, j, own: (rows.sum(), own + rows.sum())
    >>> run = lambda x: serve(x, 100 * axis_index(), total)
    >>> jax.vmap(run, axis_name=AXIS, out_axes=(None, 0))(jnp.array([[0, 1], [2, 3]]))
    (Array([2, 4], dtype=int32), Array([  2, 104], dtype=int32))
    """
    count, index = len(rows), axis_index(axis)
    if is_manual(axis):
        padded = jnp.pad(rows, [(0, axis_size(axis) - count)] + [(0, 0)] * (rows.ndim - 1))
        heard, kept = answer(all_to_all(padded, axis), index, own)
        return all_gather(heard, axis)[:count], kept
    # Under vmap, what is gathered has no worker axis, and neither has what is computed of it.
    sent = jnp.moveaxis(lax.all_gather(rows, axis), 1, 0)
    owns = jax.tree.map(lambda x: lax.all_gather(x, axis)[:count], own)
    heard, kept = jax.vmap(answer)(sent, jnp.arange(count), owns)
    return heard, jax.tree.map(lambda x: x[index], kept)
