"""A mixture of experts for model authors: tokens go to the experts that a router chooses, wherever these are.

Top-k routing with a capacity: Shazeer et al. 2017 (arXiv 1701.06538), GShard (Lepikhin et al. 2021, 2006.16668), Switch
(Fedus et al. 2022, 2101.03961). Dropless: MegaBlocks (Gale et al. 2023, 2211.15841). Capacity and balance are those of
a sequence, so that no layout changes them.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.models.attention.zigzag import AXIS as SEQUENCES

AXIS = 'expert'

Product = Callable[[jax.Array, jax.Array], jax.Array]
"""`(rows, matrices [N, D, H]) -> rows`: each row times the matrix of its expert."""


class Mixed(NamedTuple):
    """What `mixture` returns.

    Attributes:
        y: the outputs [B, T, D].
        balance: the terms of the balance loss [B, T], of each token; their mean is 1 if experts share tokens evenly.
        dropped: the share of a token's choices that found no room [B, T].
    """

    y: jax.Array
    balance: jax.Array
    dropped: jax.Array


def mixture(
    x: jax.Array,
    logits: jax.Array,
    apply: Callable[[jax.Array, Product], jax.Array],
    *,
    choices: int = 2,
    capacity: float | None = 1.25,
) -> Mixed:
    """Sends each token to the `choices` experts of the largest logits, and adds up what they return by their weights.

    On a mesh with the axis `expert` each device has some of the experts, and `apply` gets the tokens that all devices
    send to these. The weights are the softmax of the chosen logits; of a single choice, that of all logits.

    With a capacity each expert has room for capacity * choices * T / N tokens of each sequence; first choices come
    first, then earlier tokens, and others are dropped. E devices send 2 (E - 1) / E times the room's bytes forward, and
    as many backward. Without, no token is dropped: each device gathers the tokens of all, 2 (E - 1) times their bytes.

    Args:
        x: tokens [B, T, D].
        logits: the router's logits [B, T, N], float32 or wider.
        apply: `(rows, product) -> rows`, with rows [..., D] of this device's experts, as
            `lambda rows, product: product(jax.nn.gelu(product(rows, up)), down)`, matrices [N / E, ...].
        choices: the experts of a token.
        capacity: the room, as a multiple of an even share; None for no limit.

    Raises:
        InputError: there are fewer experts than choices, the devices do not divide them, or there is a capacity where
            sequences are divided.

    >>> x, logits = jnp.ones((1, 4, 2)), jnp.array([[[0.0, 9.0]] * 4])
    >>> double = lambda rows, product: product(rows, 2 * jnp.stack([jnp.eye(2)] * 2))
    >>> mixture(x, logits, double, choices=1, capacity=1.0).y[0, :, 0].round(2).tolist()  # room for two of four tokens
    [2.0, 2.0, 0.0, 0.0]
    """
    experts, shares = logits.shape[2], devices()
    if not 1 <= choices <= experts:
        raise InputError(f'each token goes to {choices} of {experts} experts: choose 1 to {experts}')
    if experts % shares:
        raise InputError(f'{shares} devices of mesh axis {AXIS!r} do not divide {experts} experts')
    probabilities = jax.nn.softmax(logits)
    top, expert = lax.top_k(probabilities, choices)
    gate = top if choices == 1 else top / top.sum(-1, keepdims=True)
    balance, _ = balance_of(probabilities, expert)
    if capacity is None:
        return Mixed(_dropless(x, expert, gate, experts, apply), balance, jnp.zeros_like(balance))
    if collectives.is_manual(SEQUENCES):
        raise InputError(
            f'the capacity of an expert is that of a sequence, which devices of mesh axis {SEQUENCES!r} share: take '
            'dropless experts (capacity=None, of a MixtureTransformer 0), or a mesh without that axis'
        )
    room = max(1, math.ceil(capacity * choices * x.shape[1] / experts))
    y, dropped = _with_room(x, expert, gate, (experts, room), apply)
    return Mixed(y, balance, dropped)


def devices() -> int:
    """The number of devices E among which experts are divided here; 1 outside of a mesh with the axis `expert`.

    >>> devices()
    1
    """
    return collectives.axis_size(AXIS) if collectives.is_manual(AXIS) else 1


@jax.jit  # by name, so that it is found in the program of a loss
def balance_of(probabilities: jax.Array, expert: jax.Array) -> tuple[jax.Array, jax.Array]:
    """N sum_n f_n p_n of each token, with f the shares of its sequence's choices, and f [B, N] (Switch, section 2.2).

    >>> balance_of(jnp.full((1, 2, 4), 0.25), jnp.zeros((1, 2, 1), int))[0].tolist()
    [[1.0, 1.0]]
    """
    experts = probabilities.shape[2]
    chosen = jax.nn.one_hot(expert, experts, dtype=probabilities.dtype).sum((1, 2))
    if collectives.is_manual(SEQUENCES):
        chosen = collectives.psum(chosen, SEQUENCES)
    load = lax.stop_gradient(chosen / chosen.sum(-1, keepdims=True))
    return experts * jnp.einsum('btn,bn->bt', probabilities, load), load


def _with_room(
    x: jax.Array, expert: jax.Array, gate: jax.Array, sizes: tuple[int, int], apply: Callable[..., jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The outputs, and the share of each token's choices that found no room."""
    (b, t, d), k, (experts, room) = x.shape, expert.shape[2], sizes
    first = jnp.moveaxis(expert, 2, 1).reshape(b, k * t)  # all first choices, then all second ones
    seen = jnp.cumsum(jax.nn.one_hot(first, experts, dtype=jnp.int32), 1)
    place = jnp.take_along_axis(seen, first[..., None], 2)[..., 0] - 1
    slot = jnp.where(place < room, first * room + place, experts * room)
    # Which token lies in each slot; 0 for an empty one.
    token = jnp.zeros((b, experts * room + 1), jnp.int32)
    token = token.at[jnp.arange(b)[:, None], slot].set(jnp.tile(jnp.arange(t, dtype=jnp.int32) + 1, k))[:, :-1]
    rows = to_rooms(x, token.reshape(b, experts, room))
    here = jnp.moveaxis(_exchanged(rows, 1, 0), 1, 0)
    dense = lambda rows, matrices: jnp.einsum('nsd,ndh->nsh', rows, matrices)  # noqa: E731
    out = apply(here.reshape(len(here), -1, d), dense).reshape(here.shape)
    out = _exchanged(jnp.moveaxis(out, 0, 1), 0, 1).reshape(b, experts * room, d)
    found = jnp.take_along_axis(jnp.pad(out, ((0, 0), (0, 1), (0, 0))), slot[..., None], 1).reshape(b, k, t, d)
    y = jnp.einsum('bktd,btk->btd', found, gate.astype(x.dtype))
    return y, (slot == experts * room).reshape(b, k, t).mean(1, dtype=gate.dtype)


@jax.jit  # by name, so that it is found in the program of a loss
def to_rooms(x: jax.Array, token: jax.Array) -> jax.Array:
    """The tokens [B, N, room, D] in the rooms of experts.

    Args:
        x: tokens [B, T, D].
        token: which token lies where [B, N, room], counted from 1; 0 for an empty place.

    >>> to_rooms(jnp.ones((1, 2, 3)), jnp.array([[[2, 0]]])).sum(3).tolist()
    [[[3.0, 0.0]]]
    """
    b, n, room = token.shape
    rows = jnp.take_along_axis(jnp.pad(x, ((0, 0), (1, 0), (0, 0))), token.reshape(b, -1, 1), 1)
    return rows.reshape(b, n, room, x.shape[2])


@jax.jit  # by name, so that it is found in the program of a loss
def as_rows(x: jax.Array, expert: jax.Array, gate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens [B T, D], their experts [B T, k] and weights.

    >>> [rows.shape for rows in as_rows(jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 1), int), jnp.ones((2, 3, 1)))]
    [(6, 4), (6, 1), (6, 1)]
    """
    flat = lambda rows: rows.reshape(-1, rows.shape[2])  # noqa: E731
    return flat(x), flat(expert), flat(gate)


def _exchanged(rows: jax.Array, split: int, concat: int) -> jax.Array:
    """Part j along the dim `split` goes to device j, and what arrives is put together along the dim `concat`."""
    return lax.all_to_all(rows, AXIS, split, concat, tiled=True) if devices() > 1 else rows


def _dropless(
    x: jax.Array, expert: jax.Array, gate: jax.Array, experts: int, apply: Callable[..., jax.Array]
) -> jax.Array:
    """The outputs of experts that take all tokens: rows in the order of their experts, those of other devices last."""
    here, d, k = experts // devices(), x.shape[2], expert.shape[2]
    first = here * collectives.axis_index(AXIS) if devices() > 1 else 0
    rows, ids, weights = (_gathered(rows) for rows in as_rows(x, expert, gate))
    own = ids.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < here), own, here)
    order = jnp.argsort(own, stable=True)
    sizes = jnp.bincount(own, length=here)
    ragged = functools.partial(lax.ragged_dot, group_sizes=sizes)
    out = apply(rows[order // k], ragged) * weights.reshape(-1)[order, None].astype(x.dtype)
    # A row beyond those of all groups has no expert here.
    out = jnp.where((own[order] < here)[:, None], out, 0)
    total = jnp.zeros((len(rows), d), x.dtype).at[order // k].add(out)
    if devices() > 1:
        total = lax.psum_scatter(total, AXIS, scatter_dimension=0, tiled=True)
    return total.reshape(x.shape)


def _gathered(rows: jax.Array) -> jax.Array:
    """The rows of all devices."""
    return lax.all_gather(rows, AXIS, axis=0, tiled=True) if devices() > 1 else rows


def sends(name: str, devices: int, outputs: list[int]) -> tuple[Fraction, Fraction, Fraction]:
    """The bytes that one device sends for one call of `to_rooms` or `as_rows`: to experts, back, and their gradients.

    Args:
        name: the function.
        devices: the number of devices E.
        outputs: the bytes of its results.

    >>> sends('to_rooms', 4, [32]), sends('as_rows', 4, [32, 8, 8])
    ((Fraction(24, 1), Fraction(24, 1), Fraction(48, 1)), (Fraction(144, 1), Fraction(96, 1), Fraction(216, 1)))
    """
    if name == 'to_rooms':
        each = Fraction(devices - 1, devices) * outputs[0]
        return each, each, 2 * each
    x, ids, gates = (Fraction((devices - 1) * size) for size in outputs)
    return x + ids + gates, x, 2 * x + gates
