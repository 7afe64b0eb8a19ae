"""Every codec with every exchange in an algorithm: bytes by the formula, and conserved sums."""

import functools
import itertools
import re
from typing import Any

import jax
import numpy as np
import pytest
from codec_fixtures import CODECS, QUICK, allows_feedback, exchanges_of

from jaxdist import laws, ledger, line
from jaxdist.codecs._compressed_mean import bytes_sent
from jaxdist.core import mesh, workers
from jaxdist.laws.trial import SHAPES as SHAPES_ON_TRIAL

SLOW = pytest.mark.slow
SHAPES: tuple[dict[str, tuple[int, ...]], ...] = (SHAPES_ON_TRIAL, {'a': (7,), 'b': (130, 9), 'c': (0, 3)})
BYTES, WORDS = {'uint8'}, {'uint32', 'float32'}
PAYLOADS = {'gather': BYTES, 'two_phases': BYTES, 'all_reduce': WORDS, None: BYTES | WORDS}
ROUTES = [(codec, exchange) for codec in CODECS for exchange in exchanges_of(codec)]


def slow_but(*quick: str) -> Any:
    """All pairs of codec and exchange; slow except these codecs by the default exchange and in two phases."""
    fast = {(codec, exchange) for codec in quick for exchange in (None, 'two_phases')}
    return [pytest.param(*route, marks=[] if route in fast else SLOW) for route in ROUTES]


@pytest.mark.parametrize('codec, exchange', slow_but(*QUICK))
def test_mean(codec: str, exchange: str | None) -> None:
    """Simulated workers equal a mesh, a saved run resumes bit for bit, workers agree, and feedback conserves sums."""
    feedback = allows_feedback(codec)
    conserves = [laws.conserves_feedback(lambda state: state.compression.residual)] if feedback else []
    # With seed 0 a mean is so close to the midpoint of two halves that the order of a sum decides.
    seed = 1 if codec == 'fp16()' else 0
    trial = laws.Trial(line.build(f'mean(codec={codec}, feedback={feedback}, exchange={exchange!r})'), 3, seed=seed)
    chosen = [law for law in laws.universal() if law.name in ('simulated equals a mesh', 'resumes bit for bit')]
    claims = (*chosen, laws.agrees(), *conserves)
    broken = [verdict for law in claims if (verdict := laws.check_law(law, trial)).problem]
    assert not broken, broken


@SLOW
@pytest.mark.parametrize('codec', [codec for codec in CODECS if allows_feedback(codec)])
def test_ef21_and_local_training(codec: str) -> None:
    """The mean of EF21's estimates is the mean that came out; synchronisation rounds conserve the mean."""
    trial = laws.Trial(line.build(f"mean(codec={codec}, feedback='ef21')"), 3)
    out = jax.tree.map(lambda u: u[-1, 0], trial.path.updates)
    state = trial.path.state[1].compression
    like: Any = jax.tree.structure(out)
    for u, estimates in zip(jax.tree.leaves(out), like.flatten_up_to(state.residual), strict=True):
        if estimates is not None:
            np.testing.assert_allclose(estimates.mean(0), u, rtol=0, atol=1e-5)  # of gradients up to 4
    local = laws.Trial(line.build(f'average(every=2, codec={codec}, feedback=True)'), 3)
    laws.conserves_mean(lambda state: state.compression.residual).check(local)


@pytest.mark.parametrize('codec, exchange', slow_but('int4()'))
def test_compiled_bytes_are_those_of_the_formula(codec: str, exchange: str | None) -> None:
    check_bytes(f'mean(codec={codec}, exchange={exchange!r})', codec, exchange)


@SLOW
@pytest.mark.parametrize('exchange', exchanges_of('int4()'))
def test_compiled_bytes_of_a_round_are_those_of_a_mean(exchange: str | None) -> None:
    check_bytes(f'average(every=2, codec=int4(), exchange={exchange!r})', 'int4()', exchange)


def check_bytes(text: str, codec: str, exchange: str | None) -> None:
    update, built = line.build(text), line.build_codec(codec)
    formula, votes = bytes_sent(built, exchange), set() if getattr(built, 'has_zero', True) else {'float32'}
    for count, shapes in zip((2, 4, 8), itertools.cycle(SHAPES), strict=False):
        if exchange in exchanges_of(codec, count):
            trial = laws.Trial(update, count, shapes)
            entries = compiled(trial)
            assert sum(entry.sent for entry in entries) == formula(count, trial.start()), (count, shapes)
            assert {entry.dtype for entry in entries} <= PAYLOADS[exchange] | votes


def compiled(trial: laws.Trial) -> list[ledger.Collective]:
    """The collectives of the trial's compiled step on a mesh."""
    # Without optimisation it compiles faster, to the same collectives.
    lowered = trial.on_mesh.step.lower(trial.on_mesh.state, trial.batch(0))
    program = lowered.compile(compiler_options={'xla_backend_optimization_level': 0})
    return ledger.compiled(program, mesh.make({'workers': trial.count}))


@functools.cache
def sent(parts: str, count: int, layers: int) -> list[ledger.Collective]:
    shapes = {f'layer{i}/{name}': s for i in range(layers) for name, s in {'w': (20, 20), 'b': (20,)}.items()}
    return compiled(laws.Trial(line.build(f'mean({parts})'), count, shapes))


@SLOW
@pytest.mark.parametrize(
    'parts, collectives',
    [
        ("codec=int8(), exchange='gather'", 1),
        ("codec=int8(), exchange='two_phases'", 2),
        ("codec=by_size(large=int4(), below=64, small=bf16()), exchange='two_phases'", 4),
        ('codec=power_sgd(rank=1)', 2),
    ],
)
def test_more_layers_are_not_more_collectives(parts: str, collectives: int) -> None:
    """The compiler merges the exact mean of biases into one of power_sgd's two all-reduces."""
    assert [len(sent(parts, 4, layers)) for layers in (2, 9)] == [collectives] * 2


@pytest.mark.slow
def test_the_default_exchange_sends_the_fewest_bytes() -> None:
    for count, kinds in ((2, {'all_gather'}), (8, {'all_gather', 'all_to_all'})):
        assert {entry.kind for entry in sent('codec=int8()', count, 9)} == kinds
    assert {entry.kind for entry in sent('codec=random_k(k=8, block=64)', 4, 2)} == {'all_reduce'}


@pytest.mark.parametrize('exchange', ['all_reduce', None])
def test_random_positions_are_those_of_all_workers(exchange: str | None) -> None:
    """The kept entries, 8 of 64, are exact means."""
    trial = laws.Trial(line.build(f'mean(codec=random_k(k=8, block=64), exchange={exchange!r})'), 4, {'w': (10, 64)})
    updates, exact = (x['w'][0, 0] for x in (trial.path.updates, laws.mean_rows(trial.path.gradients)))
    kept = updates != 0
    assert (kept.sum(1) == 8).all()
    np.testing.assert_allclose(updates[kept], exact[kept], rtol=1e-5)


def test_zeros_and_ties_are_random() -> None:
    """An entry without a gradient must not drift, nor one with a tie of votes."""
    trial = laws.Trial(line.build('mean(codec=majority())'), 2, {'w': (4096,)})
    gradient = np.zeros((1, 2, 4096), np.float32)
    gradient[:, :, :8] = 1
    gradient[:, 0, 2048:], gradient[:, 1, 2048:] = 3, -2
    update = trial.run({'w': gradient}).updates['w'][0, 0]
    assert set(np.unique(update)) == {-1, 1}
    assert (update[:8] == 1).all()
    for part in (update[8:2048], update[2048:]):
        assert abs(part.mean()) < 0.12  # 5 standard errors


@pytest.mark.parametrize(
    'text, problem',
    [
        ("mean(exchange='gather')", 'needs a codec'),
        ("mean(codec=int8(), exchange='pigeon')", "exchange='pigeon' must be one of"),
        (
            "mean(codec=int8(), feedback='ef22')",
            "feedback='ef22' must be False, True, 'ef21', or the fraction of the residual that is kept",
        ),
        ("mean(feedback='ef21')", 'needs a codec'),
        ("mean(codec=sign(), exchange='all_reduce')", "can travel by ['gather', 'two_phases']"),
        ("mean(codec=power_sgd(), exchange='gather')", 'this codec brings its own collectives'),
        ("mean(codec=majority(), exchange='gather')", "can travel by ['two_phases']"),
        ('mean(codec=majority(), feedback=True)', 'would grow without bound'),
        ('mean(codec=qsgd(bits=2), feedback=True)', 'would grow without bound'),
        ("mean(codec=ternary(), feedback='ef21')", 'would grow without bound'),
        ('mean(codec=random_k(k=4, unbiased=True), feedback=True)', 'would grow without bound'),
        ('mean(codec=int4(block=7))', 'must be a multiple of 2'),
        ('mean(codec=int2(block=6))', 'must be a multiple of 4'),
        ('mean(codec=int2(block=0))', 'block=0 must be 1 or more'),
        ('mean(codec=sign(block=12))', 'must be a multiple of 8'),
        ('mean(codec=top_k(k=0))', 'k=0 must be 1 to the block'),
        ('mean(codec=top_k(k=5, block=4))', 'k=5 must be 1 to the block'),
        ('mean(codec=top_k(k=1, block=100000000))', 'block=100000000 must be 1 to 2**24'),
        ("mean(codec=top_k(k=1, values='bf16'))", 'values must be a codec of vectors'),
        ('mean(codec=top_k(k=1, values=power_sgd()))', 'values must be a codec of vectors'),
        ('mean(codec=random_k(k=0))', 'k=0 must be 1 to the block'),
        ('mean(codec=random_k(k=9, block=12, run=2))', 'run=2 must divide both'),
        ('mean(codec=threshold(at=0.0, most=1))', 'at=0.0 must be above 0'),
        ('mean(codec=threshold(at=1.0, most=0))', 'most=0 must be 1 to the block'),
        ('mean(codec=threshold(at=1.0, most=1, block=40000))', 'block=40000 must be 1 to 32767'),
        ('mean(codec=power_sgd(rank=0))', 'rank=0 must be 1 or more'),
        ('mean(codec=by_size(large=int8(), below=-1))', 'below=-1 must be 0 or more'),
        ("mean(codec=by_path(rules={'*': int8()}))", 'is not a valid regular expression'),
        (
            "mean(codec=by_path(rules={'kernel': int8()}))",
            "['kernel'] match no parameter; the parameters are ['b', 's', 'w']",
        ),
        ("mean(codec=fp8(format='e3m4'))", "must be 'e4m3' or 'e5m2'"),
        ('mean(codec=qsgd(bits=3))', 'bits=3 must be 2, 4 or 8'),
        ("mean(codec=int4(rounding='up'))", "must be 'nearest' or 'stochastic'"),
        ('mean(codec=ternary(clip=0.0))', 'must be above 0'),
    ],
)
def test_bad_parameters(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        laws.Trial(line.build(text), 2).program(workers.simulated(2))


def test_sums_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="the sum of 8 workers' int4 numbers does not fit 4 bits; 7 workers at most"):
        laws.Trial(line.build("mean(codec=int4(), exchange='all_reduce')"), 8).program(workers.simulated(8))


@pytest.mark.parametrize('codec', [pytest.param(codec, marks=[] if codec in QUICK else SLOW) for codec in CODECS])
@pytest.mark.parametrize('count', [pytest.param(1, marks=SLOW), 2])
def test_small_odd_and_empty_trees(codec: str, count: int) -> None:
    """One worker, a tensor smaller than a block, an empty one, a scalar: the mean has the right shape."""
    codec = codec if not codec.startswith('by_path') else "by_path(rules={'.*': int8()})"
    trial = laws.Trial(line.build(f'mean(codec={codec})'), count, {'a': (3,), 'b': (0, 4), 'c': (), 'd': (2, 1, 3)})
    updates = trial.run(trial.gradients(2)).updates
    assert {name: u.shape[2:] for name, u in updates.items()} == trial.shapes
    empty = laws.Trial(line.build(f'mean(codec={codec})'), count, {'b': (0, 4)})
    assert empty.run(empty.gradients(1)).updates['b'].size == 0


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="'n' is int32: a codec takes means of floating-point numbers only"):
        line.build('mean(codec=int8())').init({'n': jax.numpy.zeros(3, 'int32')})


@pytest.mark.parametrize('exchange', ['gather', pytest.param('two_phases', marks=SLOW), 'all_reduce'])
@pytest.mark.parametrize('bad', [float('nan'), pytest.param(float('inf'), marks=SLOW)])
def test_a_non_finite_entry_reaches_all_workers(exchange: str, bad: float) -> None:
    """So that the guard of each worker skips the step."""
    trial = laws.Trial(line.build(f'mean(codec=int8(), exchange={exchange!r})'), 4)
    gradients = trial.gradients(1)
    gradients['w'][0, 2, 5, 5] = bad
    for place in (None, trial.on_mesh):
        updates = trial.run(gradients, place).updates['w'][0]
        assert not jax.numpy.isfinite(updates[:, 5, 5]).any()
