"""Attention for model authors: one call, however a sequence is divided among devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from typing import Literal, get_args

import jax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.models.attention.exchanged import gathered, ulysses
from jaxdist.models.attention.ring import ring
from jaxdist.models.attention.whole import whole_attention
from jaxdist.models.attention.zigzag import AXIS, devices

Attention = Literal['ring', 'ulysses', 'gathered']
"""How devices that share a sequence compute attention.

ring: keys and values go round, and none is kept. ulysses: each device gets all positions of some heads. gathered: each
gets all keys and values.
"""
Scheme = Callable[[jax.Array, jax.Array, jax.Array, bool], jax.Array]
SCHEMES: dict[Attention, Scheme] = {'ring': ring, 'ulysses': ulysses, 'gathered': gathered}
_chosen: ContextVar[Attention] = ContextVar('attention', default='ring')


@contextmanager
def attention_by(scheme: Attention) -> Iterator[None]:
    """A context in which `attend` computes by this scheme where sequences are divided.

    Raises:
        InputError: there is no such scheme.

    >>> with attention_by('star'):
    ...     pass
    Traceback (most recent call last):
    jaxdist.InputError: there is no attention 'star': choose ring, ulysses or gathered
    """
    if scheme not in SCHEMES:
        *others, last = get_args(Attention)
        raise InputError(f'there is no attention {scheme!r}: choose {", ".join(others)} or {last}')
    token = _chosen.set(scheme)
    try:
        yield
    finally:
        _chosen.reset(token)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = True) -> jax.Array:
    """Attention of queries to the keys and values of their sequence: softmax(q k / sqrt(K)) v, [B, T, H, K].

    On a mesh with the axis `context` each device has its positions of q, k and v (see `local`), and the layout chooses
    how the others' keys and values are reached. The softmax is in float32 or wider.

    Args:
        q: queries [B, T, H, K].
        k: keys [B, T, G, K]. G divides H: each head of keys is for H / G heads of queries (Ainslie et al. 2023, arXiv
            2305.13245).
        v: values [B, T, G, K].
        causal: whether a query sees no keys of later positions.

    Raises:
        InputError: the shapes do not fit each other, heads do not fit `ulysses`, or sequences are whole.

    >>> q, k = jax.numpy.ones((1, 2, 4, 8)), jax.numpy.ones((1, 2, 2, 8))
    >>> attend(q, k, k * jax.numpy.array([1.0, 3.0])[:, None, None])[0, :, 0, 0]
    Array([1., 2.], dtype=float32)
    """
    fits = q.ndim == 4 and k.shape == v.shape == (*q.shape[:2], k.shape[2], q.shape[3]) and q.shape[2] % k.shape[2] == 0
    if not fits:
        raise InputError(
            'attention takes queries [B, T, H, K], and keys and values [B, T, G, K] with a G that divides H; here they '
            f'have shapes {q.shape}, {k.shape} and {v.shape}'
        )
    if devices() == 1:
        return whole_attention(q, k, v, jax.numpy.arange(q.shape[1]) if causal else None)
    if not any(collectives.varies(x, AXIS) for x in (q, k, v)):
        raise InputError(
            f'attention was given whole sequences, which {devices()} devices of mesh axis {AXIS!r} divide: take a '
            "device's positions of inputs and targets by `local`, of jaxdist.models.attention"
        )
    q, k, v = collectives.pvary((q, k, v), AXIS)
    return SCHEMES[_chosen.get()](q, k, v, causal)


def sends(scheme: Attention, devices: int, queries: Fraction, keys: Fraction) -> tuple[Fraction, Fraction]:
    """The bytes that one device sends for one call of `attend`, forward and backward.

    Args:
        scheme: how devices that share a sequence compute attention.
        devices: their number.
        queries: bytes of a device's queries.
        keys: bytes of its keys.

    >>> sends('ring', 4, Fraction(64), Fraction(16)), sends('ulysses', 4, Fraction(64), Fraction(16))
    ((Fraction(96, 1), Fraction(224, 1)), (Fraction(120, 1), Fraction(120, 1)))
    """
    if scheme == 'ulysses':
        each = Fraction(devices - 1, devices) * 2 * (queries + keys)
        return each, each
    forward = 2 * (devices - 1) * keys
    return forward, forward + 2 * devices * keys if scheme == 'ring' else forward
