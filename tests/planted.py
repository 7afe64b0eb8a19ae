"""Defects as a user might plant them: the toys of planted_toys.py with one part wrong, and the law that must see it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from planted_toys import compressed, dither, eight_bits, exact, late, local, two_phases

from jaxdist.core import collectives
from jaxdist.codecs.int8 import int8

EXACT = 'mean()'
NEAREST = 'mean(codec=int8())'
FEEDBACK = 'mean(codec=int8(), feedback=True)'
RANDOM = "mean(codec=int8(rounding='stochastic'))"
RANDOM_FEEDBACK = "mean(codec=int8(rounding='stochastic'), feedback=True)"
LATE = 'delay(steps=3)'
LOCAL = 'average(every=4)'
LOCAL_CODED = 'average(every=2, codec=int8(), feedback=True)'
CODEC = 'int8()'
RANDOM_CODEC = "int8(block=64, rounding='stochastic')"

Make = Callable[..., Any]
random = functools.partial(int8, rounding='stochastic')

HONEST: dict[str, Make] = {
    EXACT: exact,
    NEAREST: lambda **parts: compressed(int8(), **parts),
    FEEDBACK: lambda **parts: compressed(int8(), feedback=True, **parts),
    RANDOM: lambda codec=random(), **parts: compressed(codec, **parts),
    RANDOM_FEEDBACK: lambda **parts: compressed(random(), feedback=True, **parts),
    LATE: lambda steps=3, **parts: late(steps, **parts),
    LOCAL: lambda every=4, **parts: local(every, **parts),
    LOCAL_CODED: lambda **parts: local(2, codec=int8(), **parts),
    CODEC: eight_bits,
    RANDOM_CODEC: lambda rounded=dither, **parts: eight_bits(64, rounded=rounded, **parts),
}
"""A line, and the toy that does honestly what the line does; keyword arguments replace its parts."""


class Defect(NamedTuple):
    """One planted defect.

    Attributes:
        name: what is wrong.
        line: the honest line whose claims it is judged by.
        law: the law that must see it.
        parts: the wrong parts.
        universal: whether a law for everybody sees it too.
    """

    name: str
    line: str
    law: str
    parts: Callable[[], dict[str, Any]]
    universal: bool = False

    def __str__(self) -> str:
        return f'{self.line}: {self.name}'

    def make(self) -> Any:
        """The wrong algorithm or codec, made afresh."""
        return HONEST[self.line](**self.parts())


def all_but_the_tail(tree: Any) -> Any:
    """The mean of as many rows as the workers divide; a worker keeps its own of the rest."""

    def one(x: jax.Array) -> jax.Array:
        own = collectives.per_worker(x.reshape(-1))
        n = own.size // collectives.size() * collectives.size()
        return jnp.concatenate([collectives.per_worker(collectives.mean(own[:n])), own[n:]]).reshape(x.shape)

    return jax.tree.map(one, tree)


def of_worker_0(tree: Any) -> Any:
    """Worker 0's values, for all."""
    return collectives.total(jax.tree.map(lambda x: jnp.where(collectives.index() == 0, x, 0), tree))


def calls() -> Callable[[Any], float]:
    """A scale that Python counts up: another at every trace."""
    counter = itertools.count()
    return lambda n: 1 + 1e-3 * next(counter)


def numpy_noise() -> Callable[[Any], np.ndarray]:
    """A scale that NumPy draws: once a trace, where a draw a step was meant."""
    rng = np.random.default_rng(0)
    return lambda n: rng.normal(1, 0.1, ()).astype(np.float32)


def own_scales(messages: jax.Array, decode: Callable[..., Any]) -> jax.Array:
    """Received codes times the receiver's scales: the last 4 bytes of each block are taken from its own message."""
    is_scale = jnp.arange(messages.shape[1]) % 260 >= 256
    return decode(jnp.where(is_scale, messages[collectives.index()], collectives.exchange(messages)))


def down(steps: jax.Array, key: jax.Array) -> jax.Array:
    """To the integer below."""
    del key
    return jnp.floor(steps)


def narrow(steps: jax.Array, key: jax.Array) -> jax.Array:
    """Noise that never reaches the last twentieth of a step."""
    return jnp.floor(steps + 0.95 * jax.random.uniform(key, steps.shape))


def toward_zero(steps: jax.Array, key: jax.Array) -> jax.Array:
    """The cast to an integer, with noise on both sides: it rounds towards zero."""
    return jnp.trunc(steps + jax.random.uniform(key, steps.shape, minval=-0.5, maxval=0.5))


def _phases(**parts: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {'phases': functools.partial(two_phases, **parts)}


def _parts(**parts: Any) -> Callable[[], dict[str, Any]]:
    return lambda: parts


PURE, TRACED, FIXED = 'pure', 'traced once', 'state type is a fixed point'
LOSES, UNBIASED, OWN, ANEW = 'feedback loses nothing', 'unbiased', 'noise of its own', 'draws anew'
MEETS, CONSERVES = 'meets every 4', 'conserves the mean'
ERROR = 'error at most 0.003937 of the block'

ALGORITHMS = (
    Defect('sum for mean', EXACT, 'exact mean', _parts(mean=collectives.total)),
    Defect(
        'mean over W - 1',
        EXACT,
        'exact mean',
        _parts(mean=lambda u: jax.tree.map(lambda x: x / (collectives.size() - 1), collectives.total(u))),
    ),
    Defect('own gradient kept', EXACT, 'exact mean', _parts(mean=lambda u: u)),
    Defect("worker 0's gradient for all", EXACT, 'exact mean', _parts(mean=of_worker_0)),
    Defect('entries that W does not divide left out', EXACT, 'exact mean', _parts(mean=all_but_the_tail)),
    Defect('Python counts the steps', EXACT, PURE, lambda: {'scale': calls()}, True),
    Defect('NumPy draws when traced', EXACT, PURE, lambda: {'scale': numpy_noise()}, True),
    Defect('state turns from int32 to float32', EXACT, FIXED, _parts(count=lambda n: n + 1.0), True),
    Defect(
        'state starts as a weak type: two traces',
        EXACT,
        TRACED,
        _parts(start=lambda: jnp.asarray(1.0), count=lambda n: n * jnp.float32(1)),
        True,
    ),
    Defect(
        'floats sent where int8 is claimed',
        NEAREST,
        'sends the bytes of its formula',
        _phases(receive=lambda messages, decode: collectives.exchange(decode(messages))),
    ),
    Defect("scale not sent, the receiver's taken", NEAREST, 'within 0.007874 of the mean', _phases(receive=own_scales)),
    Defect(
        'own part of the mean not rounded',
        NEAREST,
        'agrees',
        _phases(finish=lambda parts, mean: collectives.per_worker(parts).at[collectives.index()].set(mean)),
    ),
    Defect('residual not carried', FEEDBACK, LOSES, _parts(carry=jnp.zeros_like)),
    Defect('residual added twice', FEEDBACK, LOSES, _parts(add=lambda x, e: x + 2 * e)),
    Defect('residual subtracted', FEEDBACK, LOSES, _parts(add=lambda x, e: x - e)),
    Defect(
        'residual kept in bfloat16', FEEDBACK, LOSES, _parts(carry=lambda e: e.astype(jnp.bfloat16).astype(e.dtype))
    ),
    Defect("worker 0's residual stored as everybody's", FEEDBACK, LOSES, _parts(carry=of_worker_0)),
    Defect("second phase's error dropped", FEEDBACK, LOSES, _phases(keep=lambda left, me, error, w: left)),
    Defect("second phase's error not W-fold", FEEDBACK, LOSES, _phases(keep=lambda left, me, e, w: left.at[me].add(e))),
    Defect(
        "second phase's error in part 0", FEEDBACK, LOSES, _phases(keep=lambda left, me, e, w: left.at[0].add(w * e))
    ),
    Defect('key not advanced', RANDOM, UNBIASED, _parts(advance=lambda key: key)),
    Defect('rounds down', RANDOM, UNBIASED, _parts(codec=eight_bits(rounded=down))),
    Defect('key not advanced, with feedback', RANDOM_FEEDBACK, ANEW, _parts(advance=lambda key: key)),
    Defect('the same noise on all workers', RANDOM_FEEDBACK, OWN, _parts(noise=lambda key: key)),
    Defect('queue stuck', LATE, 'delays by 3', _parts(advance=lambda at, steps: at)),
    Defect('one step short', LATE, 'delays by 3', _parts(steps=2)),
    Defect('one step long', LATE, 'delays by 3', _parts(steps=4)),
    Defect(
        'no way round the ring', LATE, 'delays by 3', _parts(advance=lambda at, steps: jnp.minimum(at + 1, steps - 1))
    ),
    Defect('written before it is read', LATE, 'delays by 3', _parts(write_first=True)),
    Defect('queue kept in bfloat16', LATE, 'delays by 3', _parts(dtype=jnp.bfloat16)),
    Defect('meets one step late', LOCAL, MEETS, _parts(start=-1)),
    Defect('meets every 5th step', LOCAL, MEETS, _parts(every=5)),
    Defect('meets at every step', LOCAL, MEETS, _parts(due=lambda since, every: since > 0)),
    Defect('meets once', LOCAL, MEETS, _parts(after=lambda since, every: since)),
    Defect("worker 0's parameters for all", LOCAL, CONSERVES, _parts(average=of_worker_0)),
    Defect('parameters of before the step averaged', LOCAL, CONSERVES, _parts(place=lambda params, moved: params)),
    Defect('sum of parameters for their mean', LOCAL, CONSERVES, _parts(average=collectives.total)),
    Defect('anchor stays behind', LOCAL_CODED, 'meets every 2 within 0.009449', _parts(anchor=lambda old, new: old)),
    Defect(
        'residual of a meeting dropped',
        LOCAL_CODED,
        CONSERVES,
        _parts(carry=lambda memory: memory._replace(residual=jax.tree.map(jnp.zeros_like, memory.residual))),
    ),
)

CODECS = (
    Defect('rounds down', CODEC, ERROR, _parts(rounded=down)),
    Defect('the largest code wraps', CODEC, ERROR, _parts(levels=128, fit=lambda codes: codes.astype(jnp.int32))),
    Defect(
        'one scale for all blocks',
        CODEC,
        ERROR,
        _parts(magnitude=lambda b: jnp.full((b.shape[0], 1), jnp.abs(b).max())),
    ),
    Defect('scale rounded to float16', CODEC, ERROR, _parts(sent=lambda s: s.astype(jnp.float16).astype(s.dtype))),
    Defect(
        'scale from the mean magnitude', CODEC, ERROR, _parts(magnitude=lambda b: jnp.abs(b).mean(1, keepdims=True))
    ),
    Defect('size lies', CODEC, 'size as said', _parts(size=lambda n, block: n), True),
    Defect('NaN hidden', CODEC, 'what is not finite stays so', _parts(clean=jnp.nan_to_num), True),
    Defect(
        'scale held off zero by 0.001',
        CODEC,
        ERROR,
        _parts(magnitude=lambda b: jnp.abs(b).max(1, keepdims=True) + 1e-3),
    ),
    Defect('rounds towards zero', RANDOM_CODEC, UNBIASED, _parts(rounded=toward_zero)),
    Defect('noise a little narrow', RANDOM_CODEC, UNBIASED, _parts(rounded=narrow)),
    Defect(
        'the same noise at every call',
        RANDOM_CODEC,
        UNBIASED,
        _parts(rounded=lambda s, key: dither(s, jax.random.key(0))),
    ),
)
