"""Each law holds for an honest toy and is broken by one that does that one thing wrong; the message says both sides."""

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


def played(updates: Callable[[np.ndarray], np.ndarray], residual: Any = 0.0, own: bool = False) -> Any:
    """What laws look at, of a run that NumPy made up from its gradients [T, W, 2]; parameters begin at zero."""
    g = gradients()
    u = {'w': updates(g['w']).astype(np.float32)}
    params = {'w': np.concatenate([np.zeros((1, WORKERS, 2), np.float32), u['w'].cumsum(0)])}
    state = (None, {'w': np.broadcast_to(np.float32(residual), (WORKERS, 2))})
    path = Path(g, u, params, state)
    layout = SimpleNamespace(layout=({'w': own}, ()))
    return SimpleNamespace(path=path, lasting=lambda steps: path, simulated=layout, count=WORKERS)


def mean(g: np.ndarray) -> np.ndarray:
    return np.broadcast_to(g.mean(1, keepdims=True), g.shape)


def late(steps: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda g: np.concatenate([np.zeros_like(g[:steps]), g[: STEPS - steps]])


def meeting(every: int, off: float = 0.0, apart: float = 0.0, idle: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Updates of workers that meet: `off` the mean, `apart` from each other, or doing nothing in between."""

    def updates(g: np.ndarray) -> np.ndarray:
        out, params = [], np.zeros(g.shape[1:])
        for t in range(STEPS):
            new = params + g[t] * (not idle or (t + 1) % every == 0)
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


def rest(state: Any) -> Any:
    return state


LEFT = played(lambda g: mean(g) - 0.5, residual=0.5 * STEPS)
PLAYED = [
    (laws.agrees(), played(mean), played(nudged), r'at step 5 .* other bits'),
    (laws.agrees(), played(mean), played(mean, own=True), r'by their types .*\[\'w\'\].* may differ'),
    (laws.exact_mean(), played(mean), played(nudged), r'off by 0\.01; seen'),
    (laws.exact_mean(), played(mean), played(lambda g: mean(g) * WORKERS), 'the mean over workers'),
    (laws.near_mean(0.01), played(lambda g: mean(g) + 0.4), played(lambda g: mean(g) + 0.6), 'off the mean by 0.6'),
    (laws.near_mean(0.01), played(mean), played(lambda g: mean(g) * np.nan), 'off the mean by nan'),
    (laws.conserves_feedback(rest), LEFT, played(lambda g: mean(g) - 0.5, 0.5), '3.5 was lost or made up'),
    (laws.delays(2), played(late(2)), played(late(3)), 'updates of 2 steps ago'),
    (laws.delays(0), played(late(0)), played(late(1)), 'updates of 0 steps ago'),
    (laws.synchronises(4), played(meeting(4)), played(meeting(4, apart=0.1)), 'after the meeting at step 3'),
    (laws.synchronises(4), played(meeting(4)), played(meeting(2)), 'step 1, between meetings'),
    (laws.synchronises(4), played(meeting(4)), played(meeting(4, idle=True)), 'step 0, between meetings'),
    (
        laws.synchronises_near(4, 0.01),
        played(meeting(4, off=0.1)),
        played(meeting(4, off=3.0)),
        'off the mean by 3; the',
    ),
    (laws.conserves_mean(), played(meeting(4)), played(meeting(4, off=0.1)), "mean of the workers' parameters"),
    (laws.conserves_mean(rest), LEFT, played(lambda g: mean(g) - 0.5, 0.5), "mean of the workers' parameters"),
]


@pytest.mark.parametrize('law, honest, wrong, text', PLAYED, ids=lambda part: getattr(part, 'name', ''))
def test_laws_on_a_path(law: Law, honest: Any, wrong: Any, text: str) -> None:
    law.check(honest)
    with pytest.raises(LawBroken, match=text):
        law.check(wrong)


def toy(update: Callable[..., Any], init: Callable[..., Any] = lambda params: ()) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, lambda u, state, params=None: update(u, state))


def rounding(noise: Callable[[jax.Array], jax.Array], advance: bool = True, bias: float = 0.0) -> Any:
    """Rounds its worker's updates to tenths at random; its state is (residual, key)."""

    def update(u: Any, state: Any) -> Any:
        key, now = jax.random.split(state[1])
        up = jax.random.uniform(noise(now), u['w'].shape) + bias
        new = {'w': collectives.pmean(jnp.floor(u['w'] * 10 + up) / 10)}
        left = {'w': collectives.pvary(u['w'] - jnp.floor(u['w'] * 10 + up) / 10)}
        return new, (left, key if advance else state[1])

    return toy(update, lambda params: (collectives.pvary(params), jax.random.key(0)))


def own(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, collectives.axis_index())


def alike(key: jax.Array) -> jax.Array:
    return key


def counting(after: Callable[[Any], Any] = lambda n: n + 1, start: Any = 0) -> Any:
    return toy(lambda u, n: (u, after(n)), lambda params: jnp.asarray(start))


def from_python() -> Any:
    numbers = itertools.count()
    return toy(lambda u, state: (jax.tree.map(lambda x: x * (1 + next(numbers)), u), state))


def unlike_on_a_mesh() -> Any:
    return toy(lambda u, state: (jax.tree.map(lambda x: x * (1.01 if collectives.is_manual() else 1), u), state))


def remembered_elsewhere() -> Any:
    """A state that is counted outside of the program, so that no copy of it holds the count."""
    numbers = itertools.count()
    call = lambda: jax.pure_callback(lambda: np.float32(next(numbers)), jax.ShapeDtypeStruct((), 'float32'))  # noqa: E731
    return toy(lambda u, state: (u, collectives.pvary(call())), lambda params: collectives.pvary(jnp.float32(0)))


def talks_for_nothing() -> Any:
    """Sends what the compiler leaves out, because it is multiplied by zero."""

    def update(u: Any, state: Any) -> Any:
        nothing = 0 * collectives.psum(jnp.full(u['w'].shape, collectives.axis_index()))
        return {'w': u['w'] + nothing}, state

    return toy(update)


def everybodys(name: str) -> Law:
    return next(law for law in laws.universal() if law.name == name)


STRONG = lambda n: n * jnp.float32(1)  # noqa: E731
SMALL = {'w': (40,)}
HONEST = optax.GradientTransformation(lambda params: (), lambda u, state, params=None: (collectives.pmean(u), state))
REAL: list[tuple[Law, Any, Any, str]] = [
    (laws.unbiased(), rounding(own), rounding(own, bias=0.1), r'leaf \[\'w\'\]: .* off by'),
    (laws.unbiased(), rounding(own), rounding(own, advance=False), 'average of 400 draws is off by'),
    (laws.independent_noise(lambda s: s[0]), rounding(own), rounding(alike), 'much the same, and more than zero'),
    (laws.fresh_keys(), rounding(own), rounding(own, advance=False), 'key 0 of the state is the same after 1'),
    (laws.fresh_keys(2), rounding(own), HONEST, 'no random key'),
    (laws.equals('sgd(1.0)'), optax.sgd(1.0), optax.sgd(0.99), r"the updates of 'sgd\(1.0\)': .* off by"),
    (laws.sends(lambda w, p: 8 * laws.entries(p) * (w - 1) / w), HONEST, optax.identity(), '0 bytes .* promised 160'),
    (laws.sends_nothing(), optax.identity(), HONEST, '2 workers with 40 entries: one sends 160 bytes'),
    (everybodys('simulated equals a mesh'), HONEST, unlike_on_a_mesh(), 'updates of simulated workers and of a mesh'),
    (everybodys('pure'), HONEST, from_python(), 'the same step, traced afresh'),
    (everybodys('pure'), HONEST, remembered_elsewhere(), 'the same step taken twice'),
    (everybodys('traced once'), counting(), counting(STRONG, start=1.0), 'traced 2 times, promised is once'),
    (everybodys('state type is a fixed point'), counting(), counting(lambda n: n + 1.5), 'int32.* comes out as float'),
    (everybodys('resumes bit for bit'), rounding(own), remembered_elsewhere(), 'saved and loaded after each'),
    (everybodys('metered as compiled'), HONEST, talks_for_nothing(), 'the trace shows .*160.* the compiled program {}'),
]  # fmt: skip


@pytest.mark.parametrize('law, honest, wrong, text', REAL, ids=lambda part: getattr(part, 'name', ''))
def test_laws_on_a_trial(law: Law, honest: Any, wrong: Any, text: str) -> None:
    law.check(Trial(honest, 2, SMALL))
    with pytest.raises(LawBroken, match=text):
        law.check(Trial(wrong, 2, SMALL))


def test_a_late_defect_is_waited_for() -> None:
    """A path is as long as a law needs it."""
    shift = optax.GradientTransformation(
        lambda params: jnp.zeros((15, 2)),
        lambda u, queue, params=None: ({'w': queue[0]}, jnp.concatenate([queue[1:], u['w'][None]])),
    )
    laws.delays(15).check(Trial(shift, 1, {'w': (2,)}))
    with pytest.raises(LawBroken, match='updates of 14 steps ago'):
        laws.delays(14).check(Trial(shift, 1, {'w': (2,)}))
    with pytest.raises(LawBroken, match='after the meeting at step 19'):
        laws.synchronises(20).check(Trial(optax.identity(), 2, {'w': (2,)}))


def plain(
    encode: Callable[..., Any] = lambda x, key: to_bytes(x),
    decode: Callable[..., Any] = lambda message, n: from_bytes(message, jnp.float32),
    bytes_each: int = 4,
) -> Codec:
    """Floats as they are, in blocks of 4."""
    return Codec(4, lambda n: bytes_each * n, encode, decode)


def times(factor: float, more: float = 0.0) -> Codec:
    return plain(lambda x, key: to_bytes(x * factor + more))


def flips() -> Codec:
    """Every third message is of another sign."""
    signs = itertools.cycle([1, 1, -1])
    return plain(lambda x, key: to_bytes(x * next(signs)))


def of_codecs(name: str) -> Law:
    return next(law for law in laws.universal_codec() if law.name == name)


CODECS = [
    (of_codecs('size as said'), plain(bytes_each=3), r'uint8\(80,\), promised uint8\(60,\)'),
    (of_codecs('size as said'), plain(decode=lambda m, n: jnp.zeros(1)), r'decodes to float32\(1,\), promised'),
    (of_codecs('pure'), flips(), 'the message made twice'),
    (of_codecs('zeros stay zeros'), times(1, more=0.1), 'something else'),
    (
        of_codecs('what is not finite stays so'),
        plain(lambda x, key: to_bytes(jnp.nan_to_num(x))),
        'with nan comes',
    ),
    (laws.takes(lambda n: 4 * n), plain(bytes_each=5), '4 entries take 20 bytes, promised 16'),
    (laws.error_at_most(0.1), times(0.8), 'off by 0.2 of the block, promised at most 0.1'),
    (laws.error_at_most(0.1), plain(lambda x, key: to_bytes(jnp.maximum(x, 0))), 'off by 1 of the block'),
    (laws.contracts(0.9), times(0.5), '0.25 of the squared norm is left, promised at most 0.1'),
    (laws.idempotent(), times(0.9), 'after a second journey'),
    (laws.unbiased_codec(100), times(1.01), 'block 0: the average of 100 draws is off by'),
]


@pytest.mark.parametrize('law, wrong, text', CODECS, ids=lambda part: getattr(part, 'name', ''))
def test_laws_of_codecs(law: Law, wrong: Codec, text: str) -> None:
    law.check(CodecTrial(plain()))
    with pytest.raises(LawBroken, match=text):
        law.check(CodecTrial(wrong))


def test_a_small_bias_of_every_entry_is_seen_in_their_sum() -> None:
    """A tenth of a standard deviation is no news of one entry; that all have it is."""
    draws = np.random.default_rng(0).normal(size=(200, 400))
    laws.centred(draws, np.zeros(400), 'draws')
    with pytest.raises(LawBroken, match='the sum of all entries is off by'):
        laws.centred(draws + 0.1, np.zeros(400), 'draws')
    signs = np.where(np.arange(400) % 2, 1.0, -1.0)
    with pytest.raises(LawBroken, match='the signed sum of all entries is off by'):
        laws.centred(draws + 0.9 * signs, signs, 'draws')


def test_an_error_breaks_the_law_and_is_told() -> None:
    def fails(u: Any, state: Any) -> Any:
        raise KeyError('momentum')

    verdicts = check(toy(fails), [laws.exact_mean()], workers=1)
    assert verdicts[-1] == LawResult('exact mean', "KeyError: 'momentum'")
    assert check_law(Law('fine', lambda trial: None), None) == LawResult('fine', '')


def test_everything_at_once() -> None:
    """`check` gives the verdicts of everybody's laws, then of the claims."""
    verdicts = check(HONEST, [laws.exact_mean(), laws.delays(1)], workers=2, shapes=SMALL)
    assert [v.law for v in verdicts] == [*(law.name for law in laws.universal()), 'exact mean', 'delays by 1']
    assert [bool(v.problem) for v in verdicts] == [False] * 7 + [True]


def test_what_is_registered_is_tried_by_its_examples() -> None:
    def mine() -> Any:
        return optax.scale(0.5)

    def bare() -> Codec:
        return plain()

    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        registry.algorithm(paper='none', examples={'mine()': (laws.sends_nothing(),)})(mine)
        registry.codec(paper='none', examples={'bare()': (laws.takes(lambda n: n),)})(bare)
        (verdicts,) = check_entry(registry.algorithms()['mine'], workers=2).values()
        (codec,) = check_entry(registry.codecs()['bare']).values()
    assert [v for v in verdicts if v.problem] == []
    assert verdicts[-1].law == 'sends nothing'
    assert [v.law for v in codec if v.problem] == ['takes the bytes of its formula']
