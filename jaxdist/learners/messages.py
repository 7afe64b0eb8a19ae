"""Messages from learners to the synchroniser: a fragment's pseudo-gradient, exact or encoded by a codec."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.codecs._compressed_mean import Feedback
from jaxdist.codecs._groups import TensorGroup, group_tensors, resolve_for
from jaxdist.codecs.codec import AnyCodec, Codec, Reducer, padded
from jaxdist.core.bits import flatten, unflatten
from jaxdist.core.errors import InputError

Tree = Any
Message = tuple[np.ndarray, ...]
"""Arrays: the tensors that are sent exactly, in order, and then a message of bytes for each group of tensors."""


class Messenger(NamedTuple):
    """Encodes and decodes a fragment.

    Attributes:
        start: `() -> residual`, the first one: zeros, or () without error feedback.
        encode: `(tree, residual, key) -> (message, residual)`, on the host.
        decode: `message -> tree`, float32 or exact, for use under `jit`.
        fed_back: the indices of the fragment's tensors whose errors are in the residual, in its order.
    """

    start: Callable[[], Any]
    encode: Callable[[Tree, Any, jax.Array], tuple[Message, Any]]
    decode: Callable[[Any], Tree]
    fed_back: Sequence[int]


def messenger(like: Tree, codec: AnyCodec | None, feedback: Feedback, whole: Tree) -> Messenger:
    """The messenger of a fragment.

    Error feedback is that of Karimireddy et al. 2019 (arXiv 1901.09847): what a message lacks is added to the next one.

    Args:
        like: the fragment's tensors, or their shapes.
        codec: the codec; None for exact messages.
        feedback: False, True, or the fraction of the residual that is kept.
        whole: all tensors, by whose paths and shapes a codec may choose.

    Raises:
        InputError: feedback is given without a codec or with one that does not contract, or the codec has no messages
            that one receiver can decode.

    >>> from jaxdist.codecs.int8 import int8
    >>> send = messenger({'w': np.ones(3)}, int8(block=4), True, {'w': np.ones(3)})
    >>> message, residual = send.encode({'w': np.float32([1, 2, 4])}, send.start(), jax.random.key(0))
    >>> np.allclose(send.decode(message)['w'] + residual[0], [1, 2, 4])
    True
    """
    leaves, treedef = jax.tree.flatten(like)
    chosen = resolve_for(codec, whole)
    groups = group_tensors(like, chosen) if chosen is not None else []
    for group in groups:
        check_codec(group.codec, feedback)
    members = [i for group in groups for i in group.members]
    exact = [i for i in range(len(leaves)) if i not in members]
    fed_back = members if feedback else []

    def start() -> Any:
        return tuple(np.zeros(leaves[i].shape, np.float32) for i in fed_back)

    @jax.jit
    def encoded(values: list[Any], key: jax.Array) -> Any:
        messages, errors = [], []
        for number, group in enumerate(groups):
            tensors = [values[i] for i in group.members]
            each = _encode(tensors, group.codec, jax.random.fold_in(key, number))
            decoded = _decode(each, group, tensors)
            messages += each
            errors += [x - y for x, y in zip(tensors, decoded, strict=True)]
        return tuple(messages), tuple(errors)

    def encode(tree: Tree, residual: Any, key: jax.Array) -> tuple[Message, Any]:
        values = jax.tree.leaves(tree)
        if not groups:
            return tuple(values), ()
        kept = 1.0 if feedback is True else feedback
        before = [kept * x for x in residual] if feedback else [0.0] * len(members)
        added = dict(zip(members, before, strict=True))
        full = [np.float32(x) + added.get(i, 0) for i, x in enumerate(values)]
        messages, errors = jax.device_get(encoded(full, key))
        return (*(values[i] for i in exact), *messages), errors if feedback else ()

    def decode(message: Any) -> Tree:
        found = dict(zip(exact, message, strict=False))
        at = len(exact)
        for group in groups:
            like_group = [leaves[i] for i in group.members]
            parts = message[at : at + _count(group)]
            found |= dict(zip(group.members, _decode(parts, group, like_group), strict=True))
            at += _count(group)
        return jax.tree.unflatten(treedef, [found[i] for i in range(len(leaves))])

    return Messenger(start, encode, decode, fed_back)


def size_of(message: Message) -> int:
    """Bytes of a message.

    >>> size_of((np.zeros(3, np.float32), np.zeros(5, np.uint8)))
    17
    """
    return sum(x.nbytes for x in message)


def check_codec(codec: Codec | Reducer | None, feedback: Feedback) -> None:
    """Checks that one receiver can decode the messages.

    Raises:
        InputError: feedback goes without a codec or with one that does not contract, or the codec needs all workers.

    >>> check_codec(None, feedback=False)
    """
    if codec is None:
        if feedback:
            raise InputError(f'feedback={feedback!r} needs a codec: an exact message leaves nothing to feed back')
        return
    if not isinstance(codec, Codec):
        raise InputError(
            'this codec computes its mean by collectives of all workers; learners send messages to a synchroniser: '
            'take one that encodes, such as int4() or top_k(k=8, block=32)'
        )
    if codec.votes:
        raise InputError('this codec takes a majority vote of all workers; learners may be missing: take sign()')
    if feedback and not codec.contracts:
        raise InputError(f'feedback={feedback!r} needs a contractive codec, and this one is none')


def _count(group: TensorGroup) -> int:
    """The arrays of a group's message: bytes, and for a codec without a code for zero which tensors are not zero."""
    assert isinstance(group.codec, Codec)
    return 1 if group.codec.has_zero else 2


def _encode(tensors: list[Any], codec: Any, key: jax.Array) -> list[jax.Array]:
    vector = flatten(tensors)
    x = jnp.pad(vector, (0, padded(vector.size, codec.block) - vector.size))
    message = codec.message(x, jnp.arange(x.size) < vector.size, key)
    return [message] if codec.has_zero else [message, jnp.stack([jnp.any(x != 0) for x in tensors])]


def _decode(message: Any, group: TensorGroup, like: list[Any]) -> list[jax.Array]:
    codec = group.codec
    assert isinstance(codec, Codec)
    n = sum(x.size for x in like)
    tensors = unflatten(codec.decode(message[0], padded(n, codec.block))[:n], like)
    if codec.has_zero:
        return tensors
    return [jnp.where(live, x, 0) for live, x in zip(message[1], tensors, strict=True)]
