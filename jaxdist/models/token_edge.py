"""What lies before and after the blocks of a model of tokens: an embedding, which is tied, and a normalisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Task
from jaxdist.models.attention import local
from jaxdist.models.scoring import misfit


class TokenEdge(NamedTuple):
    """The edge of a model in parts.

    Attributes:
        init: `key -> parameters`.
        embed: `(parameters, batch) -> x`, of this device's positions [B, T, D].
        logits: `(parameters, x) -> logits` [B, T, vocabulary], float32 or wider.
    """

    init: Callable[[jax.Array], Any]
    embed: Callable[[Any, Batch], jax.Array]
    logits: Callable[[Any, jax.Array], jax.Array]


def token_edge(vocabulary: int, width: int) -> TokenEdge:
    """The edge of a vocabulary and a width.

    >>> edge = token_edge(256, 16)
    >>> params = edge.init(jax.random.key(0))
    >>> edge.logits(params, edge.embed(params, {'tokens': jnp.zeros((2, 9), int)})).shape
    (2, 8, 256)
    """
    from jaxdist.models import _layers

    norm = _layers.norm()

    def init(key: jax.Array) -> dict[str, Any]:
        table = 0.02 * jax.random.normal(key, (vocabulary, width))
        return {'embedding': table, 'norm': norm.init(key, jnp.zeros((1, 1, width)))['params']}

    def embed(edge: Any, batch: Batch) -> jax.Array:
        x: jax.Array = edge['embedding'][local(batch['tokens'][:, :-1])]
        return x

    def logits(edge: Any, x: jax.Array) -> jax.Array:
        normed: Any = norm.apply({'params': edge['norm']}, x)
        return jnp.einsum('btd,vd->btv', normed, edge['embedding'], preferred_element_type=_layers.wide(x.dtype))

    return TokenEdge(init, embed, logits)


def check_decoder(settings: Any, task: Task) -> None:
    """Checks the settings of a decoder, of which all whole numbers are sizes, and its task.

    Raises:
        InputError: the task has no tokens, a size is below 1, or heads do not fit the width.

    >>> from jaxdist.models import Transformer
    >>> check_decoder(Transformer(width=100, heads=3), Task('tokens', (8,), 64))
    Traceback (most recent call last):
    jaxdist.InputError: width 100 cannot be split into 3 heads of an even size (rotary positions rotate pairs): use a
    multiple of 6
    """
    name = type(settings).__name__
    if task.kind != 'tokens':
        raise misfit(name, 'tokens', task)
    if min(settings.layers, settings.width, settings.heads, settings.mlp, settings.key_heads + 1) < 1:
        raise InputError(f'every size of a {name} must be 1 or more: {settings}')
    if settings.width % (2 * settings.heads):
        raise InputError(
            f'width {settings.width} cannot be split into {settings.heads} heads of an even size (rotary '
            f'positions rotate pairs): use a multiple of {2 * settings.heads}'
        )
    if settings.heads % (settings.key_heads or settings.heads):
        raise InputError(f'{settings.key_heads} heads of keys do not divide the {settings.heads} heads of queries')
