"""What the planner needs of a user's model, read from its traced programs."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.gradient import as_seen
from jaxdist.core.mesh import path_text
from jaxdist.core.model_state import variables
from jaxdist.core.partition import cast_params
from jaxdist.core.types import Batch, Model, Params
from jaxdist.ledger.flops import flops
from jaxdist.parallel.calls import bytes_of, calls
from jaxdist.planner.workload import Workload
from jaxdist.training.sequence_checks import check_sequences

LARGE = 0.01
"""A parameter with this share of all of them is large: fully sharded devices have to divide one of its dims."""


def workload(
    model: Model, batch: Batch, compute: jax.typing.DTypeLike | None = None, optimizer_bytes: float = 8
) -> Workload:
    """The workload of a model and a batch. Nothing runs, and nothing is compiled.

    FLOPs are counted in the programs of the parts, activations are what their derivatives keep, and `model` shards
    what the model's rules do. A model without parts is one block.

    Args:
        model: the model.
        batch: the batch of all workers, or its shapes: [B, ...].
        compute: the dtype in which the loss sees the parameters; None for theirs.
        optimizer_bytes: bytes of optimiser state for each parameter.

    Raises:
        InputError: blocks are stored in chunks, or with spare ones.

    >>> from jaxdist.core.types import Task
    >>> from jaxdist.models import Transformer
    >>> model = Transformer(layers=4, width=64, heads=4, stacked=True).build(Task('tokens', (64,), 256))
    >>> found = workload(model, {'tokens': np.zeros((32, 65), np.int32)})
    >>> found.layers, dict(found.limits), found.block_flops == 64 * (2 * 12 * 64**2 + 4 * 64 * 64)
    (4, {'fsdp': 64, 'stage': 4, 'model': 4, 'context': 32}, True)
    """
    params, values = jax.eval_shape(lambda key: variables(model.init(key)), jax.random.key(0))
    seen = as_seen(jax.eval_shape(lambda params: cast_params(params, compute), params), values)
    one = {name: jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), _dtype(x)) for name, x in batch.items()}
    if model.parts and (model.parts.chunks > 1 or model.parts.spare):
        raise InputError(
            'the planner knows blocks in rows: search with --model.chunks 1 and --model.spare 0, and then plan the '
            'layout with them'
        )
    layers = len(jax.tree.leaves(params['blocks'])[0]) if model.parts else 0
    size = _entries(params['blocks'] if layers else params)
    rules, experts = (_rules(model, params, layers, axis) for axis in ('model', 'expert'))
    rooms, tokens = (calls(name, model.loss, seen, one) for name in ('to_rooms', 'as_rows'))
    attention = calls('whole_attention', model.loss, seen, one)
    positions = attention[0].inputs[0].shape[1] if attention and _divides_sequences(model, seen, one) else 0
    numbers = [x.dtype for x in jax.tree.leaves(params)] if compute is None else [jnp.dtype(compute)]
    return Workload(
        layers=layers,
        block=size / max(layers, 1),
        edge=_entries(params) - size,
        **(_in_parts(model, seen, one) if layers else _whole(model, seen, one)),
        model_share=rules.sharded / size,
        pairs=rules.pairs,
        limits={
            'fsdp': _common_dim(params, layers),
            **({'stage': layers} if layers else {}),
            **({'model': rules.divides} if rules.divides else {}),
            **({'expert': experts.divides} if experts.divides else {}),
            **({'context': positions // 2} if positions else {}),
        },
        keys=sum(2 * call.times * bytes_of(call.inputs[1]) for call in attention) / max(layers, 1),
        batch=len(next(iter(batch.values()))),
        optimizer_bytes=optimizer_bytes,
        expert_share=experts.sharded / size,
        routed=sum(call.times * bytes_of(call.outputs[0]) for call in (*rooms, *tokens)) / max(layers, 1),
        dropless=bool(tokens),
        compute_bytes=max(dtype.itemsize for dtype in numbers),
    )


def _in_parts(model: Model, params: Params, one: Batch) -> dict[str, float]:
    """FLOPs and bytes of one example, of a model in parts."""
    assert model.parts is not None
    first, block, last = model.parts[:3]
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params['blocks'])
    x = jax.eval_shape(first, params['edge'], one)
    return {
        'block_flops': flops(block, row, x),
        'edge_flops': flops(first, params['edge'], one) + flops(last, params['edge'], x, one),
        'passed': _bytes(x),
        'kept': _kept(block, (row, x)),
        'head': _kept(lambda edge, x, one: last(edge, x, one)[0]['loss'], (params['edge'], x), one),
    }


def _whole(model: Model, params: Params, one: Batch) -> dict[str, float]:
    """FLOPs and bytes of one example, of a model without parts: all of it is one block."""
    loss = lambda params, one: model.loss(params, one, jax.random.key(0))[0]['loss']  # noqa: E731
    kept = _kept(loss, (params,), one)
    return {'block_flops': flops(loss, params, one), 'edge_flops': 0, 'passed': 0, 'kept': kept, 'head': 0}


def _kept(fn: Callable[..., Any], args: tuple[Any, ...], *rest: Any) -> int:
    """Bytes that the derivative of `fn(*args, *rest)` by `args` keeps, apart from the first, the parameters."""
    pulled = lambda args, rest: jax.vjp(lambda *args: fn(*args, *rest), *args)[1]  # noqa: E731
    of = lambda tree: Counter((x.shape, x.dtype) for x in jax.tree.leaves(tree))  # noqa: E731
    left = of(jax.eval_shape(pulled, args, rest)) - of(args[0])
    return sum(math.prod(shape) * dtype.itemsize * n for (shape, dtype), n in left.items())


class _Rules(NamedTuple):
    """What the rules of a model do to a block: entries sharded over an axis, what divides the dims, all-reduces."""

    sharded: int
    divides: int
    pairs: int


def _rules(model: Model, params: Params, layers: int, axis: str) -> _Rules:
    found = _Rules(0, 0, 0)
    for path, x in jax.tree_util.tree_leaves_with_path(params['blocks'] if layers else params):
        name = path_text(path)
        name = f'blocks/{name}' if layers else name
        dims: tuple[str | None, ...] = next((d for pattern, d in model.rules if re.fullmatch(pattern, name)), ())
        if axis in dims:
            shape, dims = (x.shape[1:], dims[1:]) if layers else (x.shape, dims)
            # Where the dim of a matrix's inputs is sharded, its outputs are terms of a sum.
            terms = len(shape) > 1 and next(dim for dim in dims if dim != 'expert') == axis
            pairs = found.pairs + terms
            found = _Rules(found.sharded + x.size, math.gcd(found.divides, shape[dims.index(axis)]), pairs)
    return found


def _common_dim(params: Params, layers: int) -> int:
    """The greatest common divisor of the largest dims of large parameters; rows of blocks are not a dim."""
    least, dims = LARGE * _entries(params), []
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        shape = x.shape[1:] if layers and path[0].key == 'blocks' else x.shape
        dims += [max(shape)] if shape and x.size >= least else []
    return math.gcd(*dims)


def _divides_sequences(model: Model, params: Params, one: Batch) -> bool:
    """Whether the loss divides sequences among devices."""
    if not isinstance(params, dict):
        return False
    try:
        check_sequences(model.loss, params, (), one, 2)
    except InputError:
        return False
    return True


def _dtype(x: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(x.dtype if hasattr(x, 'dtype') else np.result_type(x))


def _entries(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
