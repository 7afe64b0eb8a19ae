"""Honest toys of mean, delay, average and int8; every part of one can be replaced by a wrong one (see planted.py)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import collectives
from jaxdist.core.bits import flatten, from_bytes, to_bytes, unflatten
from jaxdist.algorithms.average import AverageState
from jaxdist.algorithms.mean import MeanState
from jaxdist.algorithms._delay_queue import Queue
from jaxdist.codecs._compressed_mean import Channel, remember
from jaxdist.codecs._compressed_mean import average as through
from jaxdist.codecs.codec import LANES, Codec, padded

Part = Callable[..., Any]
Update = optax.GradientTransformation


def exact(
    mean: Part = collectives.mean,
    start: Part = lambda: jnp.zeros((), jnp.int32),
    count: Part = lambda n: n + 1,
    scale: Part = lambda n: 1,
) -> Update:
    """The mean over workers; it counts its steps, and may scale by the count."""

    def update(updates: Any, n: jax.Array, params: Any = None) -> Any:
        del params
        means = jax.tree.map(lambda u: (u * scale(n)).astype(u.dtype), mean(updates))
        return means, count(n)

    return optax.GradientTransformation(lambda params: start(), update)


def owner_keeps(left: jax.Array, me: jax.Array, error: jax.Array, w: int) -> jax.Array:
    """The second phase's error [chunk] added to what the first left, [W, chunk]."""
    return left.at[me].add(w * error)


def two_phases(
    x: jax.Array,
    codec: Codec,
    key: jax.Array,
    receive: Part = lambda messages, decode: decode(collectives.exchange(messages)),
    keep: Part = owner_keeps,
    finish: Part = lambda parts, mean: parts,
) -> tuple[jax.Array, jax.Array]:
    """The mean over workers of `x` [n] through a codec, and what this worker's messages left out, both [n]."""
    w, me = collectives.size(), collectives.index()
    chunk = padded(-(-x.size // w), codec.block)
    parts = jnp.pad(x, (0, w * chunk - x.size)).reshape(w, chunk)
    keys = jax.random.split(key, w + 1)
    messages = jax.vmap(codec.encode)(parts, keys[:w])
    decode = jax.vmap(lambda message: codec.decode(message, chunk))
    mean = collectives.sum_rows(receive(messages, decode)) / w
    answer = codec.encode(mean, keys[w])
    left = keep(parts - decode(messages), me, mean - codec.decode(answer, chunk), w)
    whole = finish(decode(collectives.gather(answer)), mean)
    return whole.reshape(-1)[: x.size], left.reshape(-1)[: x.size]


def compressed(
    codec: Codec,
    feedback: bool = False,
    phases: Part = two_phases,
    add: Part = lambda x, e: x + e,
    carry: Part = lambda e: e,
    advance: Part = lambda key: jax.random.split(key)[0],
    noise: Part = lambda key: jax.random.fold_in(key, collectives.index()),
) -> Update:
    """The mean through a codec, with error feedback or without."""

    def update(updates: Any, state: MeanState, params: Any = None) -> Any:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        held, key = state.memory.residual, state.memory.key
        x = flatten(leaves)
        if feedback:
            x = add(x, flatten(jax.tree.leaves(held)))
        mean, rest = phases(x, codec, noise(jax.random.split(key)[1]))
        if feedback:
            held = treedef.unflatten(unflatten(carry(rest), leaves))
        means = [m.astype(u.dtype) for m, u in zip(unflatten(mean, leaves), leaves, strict=True)]
        return treedef.unflatten(means), MeanState(state.memory._replace(residual=held, key=advance(key)))

    return optax.GradientTransformation(
        lambda params: MeanState(remember(params, Channel(codec=codec, feedback=feedback))), update
    )


def late(
    steps: int,
    advance: Part = lambda at, steps: (at + 1) % steps,
    write_first: bool = False,
    dtype: Any = jnp.float32,
) -> Update:
    """A ring of updates on their way."""

    def init(params: Any) -> Queue:
        queue = jax.tree.map(lambda p: jnp.zeros((steps, *p.shape), dtype), params)
        return Queue(queue, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Queue, params: Any = None) -> Any:
        del params
        queue = jax.tree.map(lambda q, u: q.at[state.step].set(u.astype(q.dtype)), state.slots, updates)
        read = queue if write_first else state.slots
        due = jax.tree.map(lambda q, u: q[state.step].astype(u.dtype), read, updates)
        return due, Queue(queue, advance(state.step, steps))

    return optax.GradientTransformation(init, update)


def local(
    every: int,
    codec: Codec | None = None,
    start: int = 0,
    due: Part = lambda since, every: since == every,
    after: Part = lambda since, every: since % every,
    average: Part = collectives.mean,
    place: Part = lambda params, moved: moved,
    anchor: Part = lambda old, new: new,
    carry: Part = lambda memory: memory,
) -> Update:
    """Local SGD: workers meet every `every` steps; with a codec they send how far they came, with feedback."""

    def init(params: Any) -> AverageState:
        memory = remember(params, Channel(codec=codec, feedback=codec is not None))
        clock = periodic.start()._replace(since=jnp.full((), start, jnp.int32))
        return AverageState(clock, params if codec else (), memory)

    def update(updates: Any, state: AverageState, params: Any) -> Any:
        moved = collectives.per_worker(place(params, optax.apply_updates(params, updates)))

        def meet() -> Any:
            there, memory = average(moved), state.memory
            if codec:
                way = jax.tree.map(jnp.subtract, moved, state.anchor)
                step, memory = through(way, state.memory, Channel(codec=codec, feedback=True))
                there = optax.apply_updates(state.anchor, step)
            to = collectives.per_worker(jax.tree.map(jnp.subtract, there, params))
            return to, anchor(state.anchor, there) if codec else (), carry(memory)

        since = state.clock.since + 1
        stay = lambda: (collectives.per_worker(updates), state.anchor, state.memory)  # noqa: E731
        updates, place_of_meeting, memory = lax.cond(due(since, every), meet, stay)
        clock = state.clock._replace(since=after(since, every))
        return updates, AverageState(clock, place_of_meeting, memory)

    return optax.GradientTransformation(init, update)


def half_up(steps: jax.Array, key: jax.Array) -> jax.Array:
    """To the nearest integer."""
    del key
    return jnp.floor(steps + 0.5)


def dither(steps: jax.Array, key: jax.Array) -> jax.Array:
    """Up or down at random, right on average."""
    return jnp.floor(steps + jax.random.uniform(key, steps.shape))


def eight_bits(
    block: int = 256,
    levels: int = 127,
    rounded: Part = half_up,
    magnitude: Part = lambda blocks: jnp.max(jnp.abs(blocks), axis=1, keepdims=True),
    fit: Part = lambda codes: jnp.clip(codes, -127, 127),
    clean: Part = lambda x: x,
    sent: Part = lambda scale: scale,
    size: Part = lambda n, block: padded(n // block * (block + 4), LANES),
) -> Codec:
    """Eight bits an entry and a scale a block, signed on the wire."""

    def encode(x: jax.Array, key: jax.Array) -> jax.Array:
        blocks = clean(x).reshape(-1, block)
        scale = magnitude(blocks) / levels
        codes = fit(rounded(blocks / jnp.where(scale == 0, 1, scale), key)).astype(jnp.int8)
        message = jnp.concatenate([to_bytes(codes), to_bytes(sent(scale))], axis=1).reshape(-1)
        return jnp.pad(message, (0, padded(message.size, LANES) - message.size))

    def decode(message: jax.Array, n: int) -> jax.Array:
        rows = message[: n // block * (block + 4)].reshape(-1, block + 4)
        codes, scale = from_bytes(rows[:, :block], jnp.int8), from_bytes(rows[:, block:], jnp.float32)
        return (codes * scale).reshape(-1)

    return Codec(block, lambda n: size(n, block), encode, decode)
