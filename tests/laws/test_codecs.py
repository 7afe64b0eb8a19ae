"""Every registered codec obeys its laws; int8 against NumPy, byte by byte."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import line
from jaxdist.codecs._compressed_mean import bytes_sent
from jaxdist.codecs.codec import LANES, PerTensor, Reducer, padded
from jaxdist.codecs.int8 import int8
from jaxdist.core import registry
from jaxdist.laws import CodecTrial, LawBroken, check_law, universal_codec

ENTRIES = registry.codecs()
LINES = {text: claims for entry in ENTRIES.values() for text, claims in entry.examples.items()}
KEY = jax.random.key(0)
slow = pytest.mark.slow


@pytest.mark.parametrize('blocks, seed', [pytest.param(1, 0, marks=slow), pytest.param(2, 1, marks=slow), (5, 2)])
@pytest.mark.parametrize(
    'text', [pytest.param(text, marks=[] if text in ('int8()', 'top_k(k=8, block=64)') else slow) for text in LINES]
)
def test_every_law_holds(text: str, blocks: int, seed: int) -> None:
    trial = CodecTrial(line.build_codec(text), blocks, seed)
    claims = (*universal_codec(), *LINES[text])
    # Without jit every operation is compiled by itself, so that law is checked for one length of the vector only; and
    # the law on padding takes one block, whatever the length.
    chosen = [law for law in claims if blocks == 5 or law.name not in ('same without jit', 'padding does not count')]
    verdicts = [check_law(law, trial) for law in chosen]
    assert {v.law: v.problem for v in verdicts if v.problem} == {}


def zeroed(codec: Any) -> Any:
    """A codec of the same kind that decodes every message to zeros."""
    if isinstance(codec, PerTensor):
        return PerTensor(lambda tensors: [zeroed(each) for each in codec.pick(tensors)])
    if isinstance(codec, Reducer):
        zeros = lambda tensors, states, axis: ([jnp.zeros_like(x) for x in tensors], tensors, states)  # noqa: E731
        return codec._replace(mean=zeros)
    return codec and codec._replace(decode=lambda message, n: jnp.zeros(n))


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[slow] * (name not in ('int8', 'top_k'))) for name in ENTRIES]
)
def test_the_claims_are_broken_by_a_codec_of_zeros(name: str) -> None:
    """At least one law of a codec's examples fails for a codec that decodes every message to zeros."""

    def breaks(text: str, law: Any) -> bool:
        try:
            law.check(CodecTrial(zeroed(line.build_codec(text))))
        except LawBroken:
            return True
        return False

    assert any(breaks(text, law) for text, claims in ENTRIES[name].examples.items() for law in claims)


def read(message: Any, blocks: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes [blocks, block] and the scales [blocks, 1] in a message of int8."""
    rows = np.asarray(message)[: blocks * (block + 4)].reshape(blocks, block + 4)
    return rows[:, :block].astype(np.int16) - 127, rows[:, block:].copy().view(np.float32)


def vector(blocks: int, block: int, size: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(blocks, block)) * size).astype(np.float32)


@slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from([(1, 1), (6, 7), (3, 70)]), st.floats(1e-25, 1e25), st.integers(0, 2**32 - 1))
def test_int8_matches_numpy(shape: tuple[int, int], size: float, seed: int) -> None:
    """Scales are the largest magnitudes over 127, codes the nearest integers, and the rest of the message is zeros."""
    blocks, block = shape  # few shapes, because each is compiled
    x, codec = vector(blocks, block, size, seed), int8(block=block)
    message = codec.encode(jnp.asarray(x.reshape(-1)), KEY)
    codes, scales = read(message, blocks, block)
    expected = np.abs(x.astype(np.float64)).max(1, keepdims=True) / 127
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert np.abs(codes - x / expected).max() <= 0.5 + 1e-4
    assert message.shape == (padded(blocks * (block + 4), LANES),)
    assert not np.asarray(message)[blocks * (block + 4) :].any()
    decoded = np.asarray(codec.decode(message, x.size)).reshape(x.shape)
    np.testing.assert_allclose(decoded, codes.astype(np.float64) * scales, rtol=1e-6)


@pytest.mark.slow
def test_stochastic_rounding_takes_one_of_two_neighbours() -> None:
    """The probability of the upper neighbour is the distance from the lower one."""
    x = np.tile(np.float32([127, 10.25, -10.25, 0.75]), (1, 16))
    encode = jax.jit(jax.vmap(lambda key: int8(block=64, rounding='stochastic').encode(jnp.asarray(x[0]), key)))
    codes = np.stack([read(message, 1, 64)[0][0] for message in encode(jax.random.split(KEY, 200))]).reshape(-1, 4)
    for i, (low, share) in enumerate([(127, 0), (10, 0.25), (-11, 0.75), (0, 0.75)]):
        assert set(codes[:, i] - low) <= {0, 1}
        assert abs(np.mean(codes[:, i] - low) - share) < 0.04  # 5 standard errors


@pytest.mark.slow
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('rounding', ['nearest', 'stochastic'])
def test_a_non_finite_entry_decodes_to_nan_in_its_block_only(rounding: Any, bad: float) -> None:
    codec, x = int8(block=8, rounding=rounding), vector(3, 8, 1.0, 0)
    x[1, 3] = bad
    decoded = np.asarray(codec.decode(codec.encode(jnp.asarray(x.reshape(-1)), KEY), x.size)).reshape(x.shape)
    assert np.isnan(decoded[1]).all()
    assert np.abs(decoded[[0, 2]] - x[[0, 2]]).max() < 0.05


@pytest.mark.parametrize('options, text', [({'block': 0}, 'block=0 must be 1'), ({'rounding': 'up'}, "'up' must be")])
def test_bad_options(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        int8(**options)


@pytest.mark.parametrize('workers, entries, phase', [(1, 100, 512), (3, 100, 512), (3, 7000, 3072), (8, 256, 512)])
def test_bytes_of_a_mean(workers: int, entries: int, phase: int) -> None:
    """Both phases send a part to every other worker; a part is whole blocks of 36 bytes, padded to 512."""
    codec = int8(block=32)
    assert bytes_sent(codec, 'two_phases')(workers, jnp.zeros(entries)) == 2 * (workers - 1) * phase
