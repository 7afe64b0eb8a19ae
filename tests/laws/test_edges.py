"""Inputs at the edges: zeros, tails of blocks, frozen parts, huge and tiny values, gradients of low rank."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codec_fixtures import CODECS, QUICK, allows_feedback, exchanges_of, linear_loss, random_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import laws, line
from jaxdist.codecs._sharded import bytes_sent
from jaxdist.core import registry, workers
from jaxdist.training.step import make_step

SLOW = pytest.mark.slow
ROUTES = [(codec, exchange) for codec in CODECS for exchange in exchanges_of(codec) if exchange is not None]
NO_ZERO = ('sign()', 'int2()', 'majority()')
EXAMPLES = {text: name for name, entry in registry.algorithms().items() for text in entry.examples}


def slow_but(*quick: str) -> list[Any]:
    """All pairs of codec and exchange; slow except these codecs in two phases."""
    return [pytest.param(*r, marks=[] if r[0] in quick and r[1] == 'two_phases' else SLOW) for r in ROUTES]


# What has no gradient.


MOVES = {text for text in EXAMPLES if 'decay' in text or text.startswith('gossip(codec=')}
"""Weight decay, and gossip of whole parameters through a codec: its error is that of the parameters' size."""


@pytest.mark.parametrize('text', [pytest.param(text, marks=SLOW) for text in EXAMPLES if text not in MOVES])
def test_a_tensor_without_a_gradient_does_not_move_under_any_algorithm(text: str) -> None:
    laws.keeps_still(rounding=1e-6).check(algorithm(text))


@functools.cache
def algorithm(text: str) -> laws.Trial:
    """The example of an algorithm as a program, with workers as many as its laws need."""
    return laws.Trial(line.build(text), laws.count_for(registry.algorithms()[EXAMPLES[text]].examples[text], 3))


@pytest.mark.parametrize('codec, exchange', [route for route in ROUTES if not allows_feedback(route[0])])
@SLOW
def test_a_tensor_without_a_gradient_does_not_move_under_any_codec(codec: str, exchange: str) -> None:
    """With feedback `test_any_values_with_feedback_by_any_exchange` tries it."""
    text = f'mean(codec={codec}, exchange={exchange!r}) | sgd(0.1)'
    laws.keeps_still().check(laws.Trial(line.build(text), 3))


@pytest.mark.parametrize('codec', [pytest.param(codec, marks=[SLOW] * (codec != 'sign()')) for codec in NO_ZERO])
@pytest.mark.parametrize('update', ['sgd(0.1)', 'sgd(0.1, momentum=0.9)', 'adam(0.1)'])
def test_a_frozen_bias_stays_where_it_is(codec: str, update: str) -> None:
    """A bias of ten entries without a gradient, beside a matrix whose entries are in the same block."""
    shapes = {'bias': (10,), 'matrix': (32, 32)}
    batches = random_gradients(40, 4, shapes)
    batches = [{**batch, 'bias': np.zeros_like(batch['bias'])} for batch in batches]
    params = trained(f'mean(codec={codec}) | {update}', shapes, batches)
    np.testing.assert_array_equal(params['bias'], 0)
    assert np.abs(params['matrix']).mean() > 0.1


@SLOW
@pytest.mark.parametrize('codec', NO_ZERO)
def test_zeros_among_other_entries_do_not_drift(codec: str) -> None:
    """Entries without a gradient inside a tensor that has one are moved at random, by nothing on average."""
    shapes, count = {'w': (40, 50)}, 4
    batches = random_gradients(100, count, shapes)
    for batch in batches:
        batch['w'][:, 20:] = 0
    params = trained(f'mean(codec={codec}) | sgd(1.0)', shapes, batches)
    moved = params['w'][20:].reshape(-1)
    largest_step = 3 * np.abs(batches[0]['w']).mean()
    assert abs(moved.mean()) < 5 * largest_step * np.sqrt(len(batches) / moved.size)
    assert np.abs(moved).max() < 6 * largest_step * np.sqrt(len(batches))


def trained(text: str, shapes: dict[str, Any], batches: list[Any]) -> Any:
    """The parameters after a step with each of these gradients [W, ...], from zeros."""
    count = next(iter(batches[0].values())).shape[0]
    start = lambda key: {name: jnp.zeros(shape) for name, shape in shapes.items()}  # noqa: E731
    program = make_step(linear_loss, start, line.build(text), batches[0], workers.simulated(count))
    state = program.init(jax.random.key(0))
    for batch in batches:
        state, _ = program.step(state, batch)
    return jax.device_get(state.params)


@SLOW
@pytest.mark.parametrize('codec', ['sign()', 'int2()'])
def test_a_server_neither_moves_what_has_no_gradient_nor_hides_the_votes(codec: str) -> None:
    """Both ways, and the votes on zeros of both are among the bytes of the formula."""
    update = line.build(f'parameter_server(optimizer=sgd(1.0), push={codec}, pull={codec})')
    trial = laws.Trial(update, 3, {'w': (9, 7), 'b': (5,)})
    laws.keeps_still().check(trial)
    laws.sends(lambda w, params: 2 * bytes_sent(line.build_codec(codec))(w, params)).check(trial)


# Tails of blocks.


@pytest.mark.parametrize('codec', ['sign()', 'sign(block=64)', 'int2()', 'int2(block=512)', 'ternary(clip=2.5)'])
@pytest.mark.parametrize(
    'exchange, n',
    [('two_phases', 8), pytest.param('two_phases', 520, marks=SLOW), pytest.param('gather', 100, marks=SLOW)],
)
def test_a_scale_is_of_real_entries(codec: str, exchange: str, n: int) -> None:
    """Ones are ones, however many of them there are in the last block."""
    mean = line.build(f'mean(codec={codec}, exchange={exchange!r})')
    np.testing.assert_allclose(averaged(mean, np.ones((3, n), np.float32)), 1, rtol=1e-6)


@SLOW
@pytest.mark.parametrize('codec', ['sign(block=64)', 'int2(block=64)'])
def test_a_server_scales_by_real_entries(codec: str) -> None:
    server = line.build(f'parameter_server(optimizer=sgd(1.0), push={codec}, pull={codec})')
    np.testing.assert_allclose(averaged(server, np.ones((3, 70), np.float32)), -1, rtol=1e-6)


def averaged(update: optax.GradientTransformation, gradients: np.ndarray) -> np.ndarray:
    """The first update of each worker for these gradients [W, n]."""
    trial = laws.Trial(update, len(gradients), {'w': gradients.shape[1:]})
    return trial.run({'w': gradients[None]}).updates['w'][0]


# Gradients of zeros and of low rank.


@pytest.mark.parametrize('rank', [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize('feedback', [False, pytest.param(True, marks=SLOW)])
def test_power_sgd_survives_a_gradient_of_zeros(rank: int, feedback: bool) -> None:
    """After a gradient of zeros, one of rank one is applied as it is, though its first rows are zero."""
    trial = laws.Trial(line.build(f'mean(codec=power_sgd(rank={rank}), feedback={feedback})'), 2, {'w': (24, 16)})
    rng = np.random.default_rng(0)
    column, row = rng.normal(size=(24, 1)), rng.normal(size=(1, 16))
    column[:8] = 0
    gradients = np.zeros((6, 2, 24, 16), np.float32)
    gradients[1:] = column * row
    updates = trial.run({'w': gradients}).updates['w']
    np.testing.assert_array_equal(updates[0], 0)
    np.testing.assert_allclose(updates[2:], gradients[2:], rtol=1e-4, atol=1e-5)


# Huge and tiny values.

HUGE = float(np.finfo(np.float32).max) / 2
RANGE = {'fp16()': 6e4}
"""The largest entry that a codec has a code for, where that is less than float32's."""


@pytest.mark.parametrize('codec, exchange', [*slow_but(*QUICK), (None, None)])
def test_the_mean_of_finite_numbers_is_finite(codec: str | None, exchange: str | None) -> None:
    """Also where their sum is not. Without a codec in a narrow type: of a wide one the guard rejects the terms."""
    if codec and exchange and allows_feedback(codec):
        trial = with_feedback(codec, exchange)
    else:
        mean = line.build(f'mean(codec={codec}, exchange={exchange!r})' if codec else 'mean()')
        trial = laws.Trial(mean, 4, {'w': (33, 20), 'b': (5,)}, np.float32 if codec else np.float16)
    top = RANGE.get(codec or 'fp16()', HUGE / 20 if codec and codec.startswith(('qsgd', 'random_k')) else HUGE)
    signs = dict(zip(trial.shapes, (1, -1, 1), strict=False))
    gradients = {
        name: np.full((1, trial.count, *shape), signs[name] * top, trial.dtype) for name, shape in trial.shapes.items()
    }
    for places in (None, trial.on_mesh) if codec in (None, *QUICK) else (None,):
        updates = trial.run(gradients, places).updates
        assert all(np.isfinite(u).all() for u in updates.values()), {k: u.reshape(-1)[:3] for k, u in updates.items()}


@SLOW
@pytest.mark.parametrize('text', ['mean()', 'mean(codec=int8())', 'clip_by_global_norm(1.0)'])
@pytest.mark.parametrize('size', [1e19, 1e30, 3e38])
def test_a_gradient_without_a_finite_norm_is_rejected(text: str, size: float) -> None:
    """All would be lost if it came through: its squares, and with them the second moments, are infinite."""
    shapes = {'w': (30,)}
    update = line.build(f'mean() | {text} | adam(0.1)' if 'clip' in text else f'{text} | adam(0.1)')
    start = lambda key: {'w': jnp.zeros(30)}  # noqa: E731
    batches = random_gradients(3, 4, shapes)
    batches[1]['w'][2, 7] = size
    program = make_step(linear_loss, start, update, batches[0], workers.simulated(4))
    state = program.init(jax.random.key(0))
    for batch in batches:
        state, _ = program.step(state, batch)
    numbers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    assert all(np.isfinite(x).all() for x in numbers)
    assert int(state.skipped) == (size > 1.8e19)


@SLOW
@pytest.mark.parametrize('codec', [text for text in CODECS if getattr(line.build_codec(text), 'has_zero', False)])
@pytest.mark.parametrize('constant', [True, False])
@pytest.mark.parametrize('top', [1.0, 1e15, 1e-15])
def test_an_entry_far_below_the_largest_stays_there(codec: str, constant: bool, top: float) -> None:
    """Also where its quotient by the largest is subnormal, which a program may compute as zero."""
    built: Any = line.build_codec(codec)
    x = np.zeros(max(built.block, 64), np.float32)
    x[:5] = top * np.array([1, 1e-37, -1e-38, 3e-39, 1e-44])
    both = lambda x: built.decode(built.encode(x, jax.random.key(0)), x.size)  # noqa: E731
    decoded = jax.jit(lambda: both(jnp.asarray(x)))() if constant else jax.jit(both)(x)
    assert np.abs(decoded[1:]).max() <= 1e-30 * top


# All of them at once.

values = st.sampled_from([0.0, -0.0, 1.0, -3.0, 1e-45, -1e-38, 1e-30, 1e15, -1e18])
leaves = st.sampled_from([(), (0, 3), (1,), (7,), (8,), (65,), (3, 5)])
COUNT = 3


@functools.cache
def trial_of(codec: str, shapes: tuple[tuple[int, ...], ...]) -> laws.Trial:
    return laws.Trial(line.build(f'mean(codec={codec})'), COUNT, {f'p{i}': s for i, s in enumerate(shapes)})


def drawn(
    data: st.DataObject, trial: laws.Trial, steps: int, values: st.SearchStrategy[float] = values
) -> tuple[dict[str, np.ndarray], str | None]:
    """Gradients [steps, W, ...] of a few drawn values, and the name of a tensor whose gradients are zero, or None."""
    gradients, frozen = {}, data.draw(st.sampled_from([*trial.shapes, None]))
    for name, shape in trial.shapes.items():
        few = np.float32(data.draw(st.lists(values, min_size=4, max_size=4)))
        picks = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 4, (steps, trial.count, *shape))
        gradients[name] = few[picks] * np.float32(name != frozen)
    return gradients, frozen


def holds(trial: laws.Trial, gradients: dict[str, np.ndarray], frozen: str | None) -> None:
    """Updates of these gradients are finite, and the same on all workers; a tensor of zeros stays zeros."""
    for name, u in trial.run(gradients).updates.items():
        assert np.isfinite(u).all(), (name, gradients[name], u)
        assert np.array_equal(u, np.broadcast_to(u[:, :1], u.shape))
        if name == frozen:
            np.testing.assert_array_equal(u, 0)


@SLOW
@pytest.mark.parametrize('codec', [codec for codec in CODECS if not codec.startswith('by_path')])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_tree_of_any_values(codec: str, data: st.DataObject) -> None:
    shapes = data.draw(st.sampled_from([((), (65,), (0, 3)), ((3, 5), (8,), (1,))]))
    trial = trial_of(codec, shapes)
    gradients, frozen = drawn(data, trial, 1)
    if codec == 'fp16()':
        gradients = {name: np.clip(g, -6e4, 6e4) for name, g in gradients.items()}
    holds(trial, gradients, frozen)


@SLOW
@pytest.mark.parametrize('codec, exchange', [route for route in ROUTES if allows_feedback(route[0])])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_values_with_feedback_by_any_exchange(codec: str, exchange: str, data: st.DataObject) -> None:
    trial = with_feedback(codec, exchange)
    gradients, frozen = drawn(data, trial, 3)
    if codec == 'fp16()':
        gradients = {name: np.clip(g, -6e4, 6e4) for name, g in gradients.items()}
    holds(trial, gradients, frozen)


@functools.cache
def with_feedback(codec: str, exchange: str) -> laws.Trial:
    update = line.build(f'mean(codec={codec}, exchange={exchange!r}, feedback=True)')
    return laws.Trial(update, COUNT, {'a': (65,), 'b': (3, 5), 'none': (0, 3)})


@SLOW
@pytest.mark.parametrize('text', EXAMPLES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_algorithms_with_any_values(text: str, data: st.DataObject) -> None:
    """The parameters stay finite over two rounds, or more."""
    trial = algorithm(text)
    gradients, _ = drawn(data, trial, 8, st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-38, 1e-30, -1e4]))
    for name, params in trial.run(gradients).params.items():
        assert np.isfinite(params).all(), (name, params)
