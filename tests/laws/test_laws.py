"""Each law holds for a correct fixture and is broken by one with a single defect; the message names what is wrong."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import laws
from jaxdist.codecs.codec import Codec
from jaxdist.core import collectives, registry
from jaxdist.core.bits import from_bytes, to_bytes
from jaxdist.laws import CodecTrial, Law, LawBroken, LawResult, Path, Trial, check, check_entry, check_law

Tree = dict[str, np.ndarray]
STEPS, WORKERS = 8, 3


def gradients() -> Tree:
    """Whole numbers, which add up exactly, [T, W, 2]."""
    return {'w': np.random.default_rng(0).integers(-50, 50, (STEPS, WORKERS, 2)).astype(np.float32)}


def trial(updates: Callable[[np.ndarray], np.ndarray], residual: Any = 0.0, varies: bool = False) -> Any:
    """A trial whose path is computed in NumPy, by a function of the gradients [T, W, 2]; parameters start at zero."""
    g = gradients()
    u = {'w': updates(g['w']).astype(np.float32)}
    params = {'w': np.concatenate([np.zeros((1, WORKERS, 2), np.float32), u['w'].cumsum(0)])}
    state = (None, {'w': np.broadcast_to(np.float32(residual), (WORKERS, 2))})
    path = Path(g, u, params, state)
    program = SimpleNamespace(layout=({'w': varies}, ()))
    return SimpleNamespace(path=path, long_path=lambda steps: path, simulated=program, count=WORKERS)


def mean(g: np.ndarray) -> np.ndarray:
    return np.broadcast_to(g.mean(1, keepdims=True), g.shape)


def delayed(steps: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda g: np.concatenate([np.zeros_like(g[:steps]), g[: STEPS - steps]])


def synchronised(
    every: int, off: float = 0.0, apart: float = 0.0, frozen: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """Updates of local training: rounds `off` the mean or with workers `apart`, or workers `frozen` between rounds."""

    def updates(g: np.ndarray) -> np.ndarray:
        out, params = [], np.zeros(g.shape[1:])
        for t in range(STEPS):
            new = params + g[t] * (not frozen or (t + 1) % every == 0)
            if (t + 1) % every == 0:
                new = mean(new[None])[0] + off + apart * np.arange(WORKERS)[:, None]
            out.append(new - params)
            params = new
        return np.stack(out)

    return updates


def nudged(g: np.ndarray) -> np.ndarray:
    """The mean, but for one entry of one worker at one step."""
    out = mean(g).copy()
    out[5, 1, 1] += 0.01
    return out


def as_it_is(state: Any) -> Any:
    return state


FED_BACK = trial(lambda g: mean(g) - 0.5, residual=0.5 * STEPS)
LOST = trial(lambda g: mean(g) - 0.5, residual=0.5)  # the compression error of one step instead of all
ON_PATHS = [
    (laws.agrees(), trial(mean), trial(nudged), r'at step 5 .* other bits'),
    (laws.agrees(), trial(mean), trial(mean, varies=True), r'by their types .*\[\'w\'\].* may differ'),
    (laws.exact_mean(), trial(mean), trial(nudged), r'off by 0\.01; got'),
    (laws.exact_mean(), trial(mean), trial(lambda g: mean(g) * WORKERS), 'the mean over workers'),
    (laws.near_mean(0.01), trial(lambda g: mean(g) + 0.4), trial(lambda g: mean(g) + 0.6), 'off the mean by 0.6'),
    (laws.near_mean(0.01), trial(mean), trial(lambda g: mean(g) * np.nan), 'off the mean by nan'),
    (laws.conserves_feedback(as_it_is), FED_BACK, LOST, 'off the sum of gradients by 3.5'),
    (laws.delays(2), trial(delayed(2)), trial(delayed(3)), 'updates of 2 steps ago'),
    (laws.delays(0), trial(delayed(0)), trial(delayed(1)), 'updates of 0 steps ago'),
    (laws.synchronises(4), trial(synchronised(4)), trial(synchronised(4, apart=0.1)), 'after the round at step 3'),
    (laws.synchronises(4), trial(synchronised(4)), trial(synchronised(2)), 'step 1, between rounds'),
    (laws.synchronises(4), trial(synchronised(4)), trial(synchronised(4, frozen=True)), 'step 0, between rounds'),
    (
        laws.synchronises_near(4, 0.01),
        trial(synchronised(4, off=0.1)),
        trial(synchronised(4, off=3.0)),
        'mean by 3; the',
    ),
    (laws.conserves_mean(), trial(synchronised(4)), trial(synchronised(4, off=0.1)), "mean of the workers' parameters"),
    (laws.conserves_mean(as_it_is), FED_BACK, LOST, "mean of the workers' parameters"),
]


@pytest.mark.parametrize('law, correct, wrong, text', ON_PATHS, ids=lambda part: getattr(part, 'name', ''))
def test_laws_on_a_path(law: Law, correct: Any, wrong: Any, text: str) -> None:
    law.check(correct)
    with pytest.raises(LawBroken, match=text):
        law.check(wrong)


def make(update: Callable[..., Any], init: Callable[..., Any] = lambda params: ()) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, lambda u, state, params=None: update(u, state))


def rounding(noise: Callable[[jax.Array], jax.Array], advance: bool = True, bias: float = 0.0) -> Any:
    """Rounds each worker's updates to tenths at random; the state is (residual, key)."""

    def update(u: Any, state: Any) -> Any:
        key, now = jax.random.split(state[1])
        up = jax.random.uniform(noise(now), u['w'].shape) + bias
        rounded = jnp.floor(u['w'] * 10 + up) / 10
        residual = {'w': collectives.pvary(u['w'] - rounded)}
        return {'w': collectives.pmean(rounded)}, (residual, key if advance else state[1])

    return make(update, lambda params: (collectives.pvary(params), jax.random.key(0)))


def local(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, collectives.axis_index())


def shared(key: jax.Array) -> jax.Array:
    return key


def counting(after: Callable[[Any], Any] = lambda n: n + 1, start: Any = 0) -> Any:
    return make(lambda u, n: (u, after(n)), lambda params: jnp.asarray(start))


def counted_in_python() -> Any:
    numbers = itertools.count()
    return make(lambda u, state: (jax.tree.map(lambda x: x * (1 + next(numbers)), u), state))


def unequal_on_a_mesh() -> Any:
    return make(lambda u, state: (jax.tree.map(lambda x: x * (1.01 if collectives.is_manual() else 1), u), state))


def counted_outside() -> Any:
    """Counts steps outside of the program, so that no copy of the state has the count."""
    numbers = itertools.count()
    call = lambda: jax.pure_callback(lambda: np.float32(next(numbers)), jax.ShapeDtypeStruct((), 'float32'))  # noqa: E731
    return make(lambda u, state: (u, collectives.pvary(call())), lambda params: collectives.pvary(jnp.float32(0)))


def sends_zeros() -> Any:
    """Sends values that are multiplied by zero, so that the compiler removes the collective."""

    def update(u: Any, state: Any) -> Any:
        zeros = 0 * collectives.psum(jnp.full(u['w'].shape, collectives.axis_index()))
        return {'w': u['w'] + zeros}, state

    return make(update)


def universal(name: str) -> Law:
    return next(law for law in laws.universal() if law.name == name)


STRONG = lambda n: n * jnp.float32(1)  # noqa: E731
SMALL = {'w': (40,)}
CORRECT = optax.GradientTransformation(lambda params: (), lambda u, state, params=None: (collectives.pmean(u), state))
ON_TRIALS: list[tuple[Law, Any, Any, str]] = [
    (laws.unbiased(), rounding(local), rounding(local, bias=0.1), r'leaf \[\'w\'\]: .* off by'),
    (laws.unbiased(), rounding(local), rounding(local, advance=False), 'average of 400 draws is off by'),
    (laws.independent_noise(lambda s: s[0]), rounding(local), rounding(shared), 'expected are nearly equal'),
    (laws.fresh_keys(), rounding(local), rounding(local, advance=False), 'key 0 of the state is the same after 1'),
    (laws.fresh_keys(2), rounding(local), CORRECT, 'no random key'),
    (laws.equals('sgd(1.0)'), optax.sgd(1.0), optax.sgd(0.99), r"the updates of 'sgd\(1.0\)': .* off by"),
    (laws.sends(lambda w, p: 8 * laws.entries(p) * (w - 1) / w), CORRECT, optax.identity(), '0 bytes .* expected 160'),
    (laws.sends_nothing(), optax.identity(), CORRECT, '2 workers with 40 entries: one sends 160 bytes'),
    (universal('simulated equals a mesh'), CORRECT, unequal_on_a_mesh(), 'updates of simulated workers and of a mesh'),
    (universal('pure'), CORRECT, counted_in_python(), 'the same step, traced again'),
    (universal('pure'), CORRECT, counted_outside(), 'the same step run twice'),
    (universal('traced once'), counting(), counting(STRONG, start=1.0), 'traced 2 times, expected once'),
    (universal('state type is a fixed point'), counting(), counting(lambda n: n + 1.5), 'int32.* comes out as float'),
    (universal('resumes bit for bit'), rounding(local), counted_outside(), 'saved and loaded after each'),
    (universal('traced bytes equal compiled bytes'), CORRECT, sends_zeros(), 'trace has .*160.* compiled program {}'),
]  # fmt: skip


@pytest.mark.parametrize('law, correct, wrong, text', ON_TRIALS, ids=lambda part: getattr(part, 'name', ''))
def test_laws_on_a_trial(law: Law, correct: Any, wrong: Any, text: str) -> None:
    law.check(Trial(correct, 2, SMALL))
    with pytest.raises(LawBroken, match=text):
        law.check(Trial(wrong, 2, SMALL))


def test_a_path_is_long_enough_for_a_defect_at_a_late_step() -> None:
    shift = optax.GradientTransformation(
        lambda params: jnp.zeros((15, 2)),
        lambda u, queue, params=None: ({'w': queue[0]}, jnp.concatenate([queue[1:], u['w'][None]])),
    )
    laws.delays(15).check(Trial(shift, 1, {'w': (2,)}))
    with pytest.raises(LawBroken, match='updates of 14 steps ago'):
        laws.delays(14).check(Trial(shift, 1, {'w': (2,)}))
    with pytest.raises(LawBroken, match='after the round at step 19'):
        laws.synchronises(20).check(Trial(optax.identity(), 2, {'w': (2,)}))


def raw(
    encode: Callable[..., Any] = lambda x, key: to_bytes(x),
    decode: Callable[..., Any] = lambda message, n: from_bytes(message, jnp.float32),
    bytes_each: int = 4,
) -> Codec:
    """A codec that sends float32 unchanged, in blocks of 4."""
    return Codec(4, lambda n: bytes_each * n, encode, decode)


def scaled(factor: float, more: float = 0.0) -> Codec:
    return raw(lambda x, key: to_bytes(x * factor + more))


def flips_signs() -> Codec:
    """A codec that flips the sign at every third trace."""
    signs = itertools.cycle([1, 1, -1])
    return raw(lambda x, key: to_bytes(x * next(signs)))


def of_codec(name: str) -> Law:
    return next(law for law in laws.universal_codec() if law.name == name)


CODECS = [
    (of_codec('message size as declared'), raw(bytes_each=3), r'uint8\(80,\), expected uint8\(60,\)'),
    (of_codec('message size as declared'), raw(decode=lambda m, n: jnp.zeros(1)), r'float32\(1,\), expected'),
    (of_codec('pure'), flips_signs(), 'the same vector encoded twice'),
    (of_codec('zeros stay zeros'), scaled(1, more=0.1), 'something else'),
    (of_codec('non-finite stays non-finite'), raw(lambda x, key: to_bytes(jnp.nan_to_num(x))), 'nan decodes to finite'),
    (laws.takes(lambda n: 4 * n), raw(bytes_each=5), '4 entries take 20 bytes, expected 16'),
    (laws.error_at_most(0.1), scaled(0.8), "off by 0.2 of the block's maximum, expected at most 0.1"),
    (laws.error_at_most(0.1), raw(lambda x, key: to_bytes(jnp.maximum(x, 0))), "off by 1 of the block's maximum"),
    (laws.contracts(0.9), scaled(0.5), '0.25 of the squared norm is lost, expected at most 0.1'),
    (laws.idempotent(), scaled(0.9), 'after a second round trip'),
    (laws.unbiased_codec(100), scaled(1.01), 'block 0: the average of 100 draws is off by'),
]


@pytest.mark.parametrize('law, wrong, text', CODECS, ids=lambda part: getattr(part, 'name', ''))
def test_laws_of_codecs(law: Law, wrong: Codec, text: str) -> None:
    law.check(CodecTrial(raw()))
    with pytest.raises(LawBroken, match=text):
        law.check(CodecTrial(wrong))


def test_a_small_bias_of_every_entry_shows_in_their_sum() -> None:
    """A bias of a tenth of a standard deviation is not significant in one entry, but is in the sum of 400."""
    draws = np.random.default_rng(0).normal(size=(200, 400))
    laws.centred(draws, np.zeros(400), 'draws')
    with pytest.raises(LawBroken, match='the sum of all entries is off by'):
        laws.centred(draws + 0.1, np.zeros(400), 'draws')
    signs = np.where(np.arange(400) % 2, 1.0, -1.0)
    with pytest.raises(LawBroken, match='the signed sum of all entries is off by'):
        laws.centred(draws + 0.9 * signs, signs, 'draws')


def test_an_error_breaks_the_law_and_is_reported() -> None:
    def fails(u: Any, state: Any) -> Any:
        raise KeyError('momentum')

    results = check(make(fails), [laws.exact_mean()], workers=1)
    assert results[-1] == LawResult('exact mean', "KeyError: 'momentum'")
    assert check_law(Law('fine', lambda trial: None), None) == LawResult('fine', '')


def test_check_returns_universal_laws_then_claims() -> None:
    results = check(CORRECT, [laws.exact_mean(), laws.delays(1)], workers=2, shapes=SMALL)
    assert [result.law for result in results] == [*(law.name for law in laws.universal()), 'exact mean', 'delays by 1']
    assert [bool(result.problem) for result in results] == [False] * 8 + [True]


def test_check_entry_checks_each_example() -> None:
    def mine() -> Any:
        return optax.scale(0.5)

    def bare() -> Codec:
        return raw()

    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        registry.algorithm(paper='none', examples={'mine()': (laws.sends_nothing(),)})(mine)
        registry.codec(paper='none', examples={'bare()': (laws.takes(lambda n: n),)})(bare)
        (results,) = check_entry(registry.algorithms()['mine'], workers=2).values()
        (codec,) = check_entry(registry.codecs()['bare']).values()
    assert [result for result in results if result.problem] == []
    assert [result.law for result in results[-3:]] == ["declares syncs=''", 'sends nothing', 'sends nothing, 1 worker']
    assert [result.law for result in codec if result.problem] == ['takes the bytes of its formula']
