"""A model from its parts, for pipelines: blocks of one shape, which are stored as rows of one tensor."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Metric, Model, Params, Parts, Task
from jaxdist.models.scoring import ACCURACY, Rules


def from_parts(
    edge: Callable[[jax.Array], Any],
    block: Callable[[jax.Array], Any],
    layers: int,
    parts: Parts,
    *,
    task: Task | None = None,
    rules: Rules = (),
    outputs: Callable[[Any, Batch], Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Model:
    """The model of parts, with parameters `{'edge': ..., 'blocks': ...}`; see `jaxdist.core.types.Parts`.

    Its loss walks through the blocks by a scan, and evaluates each again for the gradient: programs compile in a time
    that does not depend on the number of layers, and keep the inputs of blocks alone.

    Args:
        edge: `key -> parameters` of the first and the last part.
        block: `key -> parameters` of one block.
        layers: the number of blocks L.
        parts: the parts.
        task: the task, if the model is for one.
        rules: sharding rules, where blocks have a dim of layers in front, and those of paths that begin with `blocks`
            are for both forms of storage.
        outputs: see `jaxdist.core.types.Model`.
        metrics: see `jaxdist.core.types.Model`.

    Raises:
        InputError: there are no layers, or chunks do not divide the rows.

    >>> import jax.numpy as jnp
    >>> parts = Parts(
    ...     first=lambda edge, batch: batch['x'],
    ...     block=lambda w, x: jnp.tanh(x @ w),
    ...     last=lambda edge, x, batch: ({'loss': jnp.sum((x @ edge - batch['y']) ** 2)}, x.shape[0]),
    ... )
    >>> model = from_parts(lambda key: jnp.ones(3), lambda key: jnp.eye(3), layers=2, parts=parts)
    >>> params = model.init(jax.random.key(0))
    >>> params['blocks'].shape, model.loss(params, {'x': jnp.zeros((4, 3)), 'y': jnp.ones(4)}, None)[0]['loss']
    ((2, 3, 3), Array(4., dtype=float32))
    """
    if layers < 1:
        raise InputError(f'a model in parts has 1 block or more, not {layers}')
    rows = layers + parts.spare
    if parts.spare < 0 or parts.chunks < 1:
        raise InputError(f'chunks={parts.chunks} must be 1 or more, and spare={parts.spare} 0 or more')
    if rows % parts.chunks:
        spare = f' and {parts.spare} spare ones' if parts.spare else ''
        low = rows // parts.chunks * parts.chunks - parts.spare
        sizes = f'{low} or {low + parts.chunks}' if low > 0 else f'{low + parts.chunks}'
        raise InputError(f'{parts.chunks} chunks do not divide {layers} blocks{spare}; {sizes} blocks would do')

    def init(key: jax.Array) -> Params:
        first, *others = jax.random.split(key, layers + 1)
        others += others[-1:] * parts.spare
        blocks = jax.vmap(block)(jax.numpy.stack(others))
        return {'edge': edge(first), 'blocks': jax.tree.map(stored, blocks)}

    def stored(x: jax.Array) -> jax.Array:
        return x if parts.chunks == 1 else x.reshape(parts.chunks, rows // parts.chunks, *x.shape[1:])

    if parts.chunks > 1:
        rules = tuple((p, (None, *dims) if p.startswith('blocks') else dims) for p, dims in rules)

    def loss(params: Params, batch: Batch, key: jax.Array) -> Any:
        del key  # a block has no noise
        return parts.last(params['edge'], walk(parts, params, batch), batch)

    known = ACCURACY if task is not None and task.kind != 'values' else {}
    return Model(init, loss, rules, outputs, task, metrics={**known, **(metrics or {})}, parts=parts)


def walk(parts: Parts, params: Params, batch: Batch) -> Any:
    """The output of the last block.

    >>> import jax.numpy as jnp
    >>> parts = Parts(first=lambda edge, batch: batch['x'], block=lambda w, x: w * x, last=lambda *args: None)
    >>> walk(parts, {'edge': (), 'blocks': jnp.array([2.0, 3.0])}, {'x': jnp.ones(1)})
    Array([6.], dtype=float32)
    """
    block, blocks = jax.checkpoint(parts.block), rows_of(parts, params['blocks'])
    return jax.lax.scan(lambda x, row: (block(row, x), None), parts.first(params['edge'], batch), blocks)[0]


def rows_of(parts: Parts, blocks: Any) -> Any:
    """The blocks as arrays [L, ...], also if they are stored in chunks, without spare ones.

    >>> import jax.numpy as jnp
    >>> parts = Parts(lambda *args: None, lambda *args: None, lambda *args: None, chunks=2, spare=1)
    >>> rows_of(parts, jnp.zeros((2, 3, 5))).shape
    (5, 5)
    """
    if parts.chunks > 1:
        blocks = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks)
    return jax.tree.map(lambda x: x[: -parts.spare], blocks) if parts.spare else blocks
