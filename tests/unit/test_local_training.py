"""Local training: no communication between rounds, rejected steps, identical data on all workers, bad arguments."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_fixtures import batches, init, loss, place, sent, with_nan

from jaxdist import laws, line
from jaxdist.algorithms import _delay_queue as delay_queue
from jaxdist.algorithms._fragments import RULES, divide, join, pick
from jaxdist.training.step import make_step

SLOW = pytest.mark.slow
OUTER = 'outer=sgd(0.7, momentum=0.9, nesterov=True)'
LOCAL = (
    'sgd(0.1) | average(every=3)',
    'sgd(0.1) | average(every=piecewise_constant_schedule(1, {2: 4}))',
    'sgd(0.1) | slowmo(every=3)',
    f'adamw(0.01) | diloco(every=3, {OUTER}, codec=int4(), feedback=True)',
    f'sgd(0.1) | eager_diloco(every=3, {OUTER})',
    f'sgd(0.1) | streaming_diloco(every=4, fragments=2, {OUTER}, codec=int8())',
    'sgd(0.1) | easgd(every=3)',
    "des_loc(optimizer=adamw(0.01), every=3, moments={'mu': 4, 'nu': 6})",
    'post_local(optimizer=adamw(0.01), start=1, every=3)',
    'fed_admm(every=3, optimizer=adam(0.01))',
)


def program(text: str, mode: str = 'simulated', count: int = 4, guard: bool = True) -> Any:
    return make_step(loss, init, line.build(text), batches(1)[0], place(mode, count), guard=guard)


@pytest.mark.parametrize('text', [pytest.param(text, marks=[SLOW] * (i > 3)) for i, text in enumerate(LOCAL)])
def test_nothing_is_sent_between_rounds(text: str) -> None:
    """Every collective of the compiled step is in a conditional branch, which only a round takes."""
    mesh_workers, (batch,) = place('mesh', 4), batches(1)
    collectives = sent(make_step(loss, init, line.build(text), batch, mesh_workers), batch, mesh_workers)
    assert collectives
    assert all(each.branch for each in collectives), collectives


@pytest.mark.parametrize('text', [pytest.param(text, marks=[SLOW] * (i > 1)) for i, text in enumerate(LOCAL[2:])])
def test_a_worker_without_a_finite_gradient_skips_the_step(text: str) -> None:
    """Its parameters and optimiser state stay as they are; other workers are not affected before the next round."""
    train = program(text)
    state, clean = train.init(jax.random.key(0)), train.init(jax.random.key(0))
    first, second, *rest = batches(10)
    state, _ = train.step(state, first)
    clean, _ = train.step(clean, first)
    before = jax.device_get((state.params, moments(state.opt_state)))
    state, metrics = train.step(state, with_nan(second, 4, 1))
    clean, _ = train.step(clean, second)
    after = jax.device_get((state.params, moments(state.opt_state)))
    others = np.array([0, 2, 3])
    if 'fragments' not in text:  # one fragment has had a round by then
        assert jax.tree.all(jax.tree.map(lambda a, b: (a[1] == b[1]).all(), before[0], after[0]))
        alike = jax.tree.map(lambda a, b: np.allclose(a[others], b[others], 1e-6), after[0], dict(clean.params))
        assert jax.tree.all(alike)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a[1] == b[1]).all(), before[1], after[1]))
    assert metrics['skipped'].tolist() == [0, 1, 0, 0]
    for batch in rest:
        state, metrics = train.step(state, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert not np.asarray(metrics['skipped']).any()


def test_post_local_workers_reject_a_common_gradient_together() -> None:
    """Before local training it skips the steps that data parallelism skips, and keeps the residuals as they were."""
    arguments = 'codec=int8(), feedback=True'
    lines = f'post_local(optimizer=adamw(0.01), start=9, every=2, {arguments})', f'mean({arguments}) | adamw(0.01)'
    post_local, parallel = (program(text) for text in lines)
    state, expected = (each.init(jax.random.key(0)) for each in (post_local, parallel))
    for i, batch in enumerate(batches(4)):
        given = with_nan(batch, 4, 1) if i == 1 else batch
        state, metrics = post_local.step(state, given)
        expected, _ = parallel.step(expected, given)
        assert metrics['skipped'].tolist() == [0, i == 1, 0, 0]
        for name, p in expected.params.items():
            np.testing.assert_allclose(state.params[name], np.broadcast_to(p, (4, *p.shape)), 1e-5, 1e-6)


@pytest.mark.parametrize(
    'optimizer, agrees', [('sgd(0.1)', True), ('sgd(0.1, momentum=0.9)', True), ('adam(0.1)', False)]
)
def test_the_mean_of_parameters_is_that_of_gradients_for_linear_optimisers(optimizer: str, agrees: bool) -> None:
    texts = f'{optimizer} | average(every=1)', f'mean() | {optimizer}'
    after_local, after_mean = (laws.Trial(line.build(text), 3).path.params['w'] for text in texts)
    distance = np.abs(after_local - after_mean).max()
    assert distance < 1e-5 if agrees else distance > 0.1


def moments(opt_state: Any) -> list[Any]:
    """Adam's moments in an optimiser state; none without Adam."""
    leaves = jax.tree_util.tree_flatten_with_path(opt_state)[0]
    return [x for path, x in leaves if re.search(r'\.(mu|nu)\b', jax.tree_util.keystr(path))]


@pytest.mark.parametrize('text', [pytest.param(text, marks=SLOW) for text in LOCAL if 'eager' not in text])
def test_identical_data_on_all_workers_equals_one_worker(text: str) -> None:
    """Without codecs: these encode twice for the mean of several workers, and once for one worker."""
    text = re.sub(r', codec=int\d\(\)|, feedback=True', '', text)
    four, one = program(text), make_step(loss, init, line.build(text), batches(1)[0], place('simulated', 1))
    state, single = four.init(jax.random.key(0)), one.init(jax.random.key(0))
    for batch in batches(8, rows=60):
        state, _ = four.step(state, {name: np.tile(x, (4, *[1] * (x.ndim - 1))) for name, x in batch.items()})
        single, _ = one.step(single, batch)
    if 'easgd' not in text:  # its rate beta / W depends on the number of workers
        for name, p in single.params.items():
            np.testing.assert_allclose(state.params[name], np.broadcast_to(p, (4, *p.shape[1:])), 1e-4, 1e-5)
    assert all(np.ptp(x, axis=0).max() < 1e-5 for x in jax.tree.leaves(state.params))


BAD = {
    'average(every=0)': r'average: every=0 must be a whole number, 1 or more, or a schedule',
    'average(every=2.5)': r'average: every=2.5 must be a whole number',
    f'diloco(every=0, {OUTER})': r'diloco: every=0 must be',
    'diloco(every=3, outer=0.7)': r'diloco: outer is of type float, and must be an optimiser, such as sgd',
    'diloco(every=3, outer=int8())': r'diloco: outer is of type Codec, and must be',
    'diloco(every=3, outer=cosine_decay_schedule(1.0, 10))': r'diloco: outer is a schedule, and must be',
    'slowmo(every=3, beta=1.0)': r'slowmo: beta=1.0 must be 0 or more, and less than 1',
    'easgd(every=3, beta=0.0)': r'easgd: beta=0.0 must be more than 0',
    f'streaming_diloco(every=3, fragments=2, {OUTER}, overlap=3)': r'overlap=3 must be 0 or more, and less than every',
    f'streaming_diloco(every=3, fragments=2, {OUTER}, mixing=1.1)': 'mixing=1.1 must be from 0, .* to 1',
    f'streaming_diloco(every=linear_schedule(1, 9, 9), fragments=2, {OUTER})': 'take turns in a fixed number of steps',
    'des_loc(optimizer=3, every=2)': r'des_loc: optimizer is of type int',
    "des_loc(optimizer=sgd(0.1), every=2, moments={'mu': 0})": r"moments\['mu'\]=0 must be a whole number",
    'post_local(optimizer=0.1, start=2, every=2)': r'post_local: optimizer is of type float',
    'post_local(optimizer=sgd(0.1), start=-1, every=2)': r'post_local: start=-1 must be a whole number, 0 or more',
    'post_local(optimizer=sgd(0.1), start=2, every=0)': r'post_local: every=0 must be a whole number, 1 or more',
    'post_local(optimizer=sgd(0.1), start=2, every=linear_schedule(1, 9, 9))': 'every is a schedule, and must be a num',
    'fed_adam(0.1, b1=1.0)': 'fed_adam: b1=1.0 must be 0 or more, and less than 1',
    'fed_yogi(0.1, b2=-0.1)': 'fed_yogi: b2=-0.1 must be 0 or more, and less than 1',
    'fed_adagrad(0.1, tau=0.0)': 'fed_adagrad: tau=0.0 must be above 0',
    'fed_adam(0.1, initial_accumulator_value=-1.0)': 'initial_accumulator_value=-1.0 must be 0 or more',
    'delay(steps=-1)': 'steps=-1 must be a whole number, 0 or more',
    'delay(steps=1.5)': 'steps=1.5 must be a whole number',
    'delay(steps=())': 'must have a delay for each worker',
    'delay(steps=linear_schedule(0, 9, 9))': 'longest=... must say how long',
    'delay(steps=3, longest=9)': 'longest=9 is for a schedule',
    'delay(damping=-1.0)': 'damping=-1.0 must be 0 or more',
    'dc_asgd(steps=linear_schedule(0, 9, 9))': 'two gradients could be due at once',
    'dc_asgd(strength=-1.0)': 'strength=-1.0 must be 0 or more',
}
BAD_FOR_THE_MODEL = {
    f'sgd(0.1) | diloco(every=3, {OUTER}, feedback=0.9)': 'needs a codec',
    f'sgd(0.1) | diloco(every=3, {OUTER}, codec=int8(), feedback=1.5)': 'a number between 0 and 1',
    f'sgd(0.1) | streaming_diloco(every=3, fragments=3, {OUTER})': 'fragments=3 is more than there are tensors, 2',
    f'sgd(0.1) | streaming_diloco(every=3, fragments=1, {OUTER}, rule="odd")': "rule='odd' must be one of balanced",
    "des_loc(optimizer=adam(0.1), every=2, moments={'v': 4})": r"nothing called 'v' to average; it has \['mu', 'nu'\]",
    'delay(steps=(0, 1, 2)) | mean() | sgd(0.1)': r'steps=\(0, 1, 2\) is for 3 workers, and there are 4',
}
"""Arguments that are wrong only for these parameters, or for this number of workers."""


@pytest.mark.parametrize('text', BAD)
def test_a_bad_argument(text: str) -> None:
    with pytest.raises(line.LineError, match=BAD[text]):
        line.build(text)


@pytest.mark.parametrize('text', BAD_FOR_THE_MODEL)
def test_an_argument_that_does_not_fit(text: str) -> None:
    with pytest.raises(ValueError, match=BAD_FOR_THE_MODEL[text]):
        program(text)


@pytest.mark.parametrize('text', [text.rpartition('| ')[2] for text in LOCAL])
def test_an_update_without_parameters_is_an_error(text: str) -> None:
    update = line.build(text)
    without_params = jax.vmap(lambda g: update.update([g, g], update.init([g, g]))[0], axis_name='workers')
    with pytest.raises(ValueError, match='moves parameters, so update'):
        without_params(jnp.ones((2, 3)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.data())
def test_every_tensor_is_in_one_fragment(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    rule = data.draw(st.sampled_from(RULES))
    tree = {f'leaf{i}': np.full(n, i) for i, n in enumerate(sizes)}
    parts = divide(tree, count, rule)
    assert len(parts) == count
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    whole = join([pick(tree, part) for part in parts])
    assert all((whole[name] == x).all() for name, x in tree.items())
    if rule == 'balanced':
        totals = [sum(sizes[i] for i in part) for part in parts]
        assert max(totals) - min(totals) <= max(sizes)


def test_a_delay_queue_loses_nothing() -> None:
    """The sum of the popped values and of those in the queue is the sum of the pushed values, whatever the delays."""
    rng = np.random.default_rng(0)
    queue, popped, pushed = delay_queue.init(jnp.zeros(3), 5), np.zeros(3), np.zeros(3)
    for _ in range(40):
        value = jnp.asarray(rng.normal(size=3), jnp.float32)
        out, queue = delay_queue.push_pop(value, queue, jnp.int32(rng.integers(0, 6)))
        popped, pushed = popped + np.asarray(out), pushed + np.asarray(value)
    np.testing.assert_allclose(popped + np.asarray(queue.slots).sum(0), pushed, 0, 1e-5)


def test_a_codec_by_path_applies_in_every_fragment() -> None:
    """Also in a fragment without a tensor of some rule."""
    text = 'streaming_diloco(every=4, fragments=3, outer=sgd(1.0), overlap=0, mixing=0.0, codec={})'
    by_path = text.format("by_path(rules={'w': int8(), '.': None})")
    coded, exact = (laws.Trial(line.build(each), 3).path for each in (by_path, text.format(None)))
    for name in 'bs':
        assert (coded.params[name] == exact.params[name]).all()
    error = np.abs(coded.params['w'] - exact.params['w']).max()
    assert 0 < error < 0.05 * np.abs(exact.params['w']).max()


def test_one_worker_with_an_outer_rate_of_one_equals_the_inner_optimiser() -> None:
    trial = laws.Trial(line.build('diloco(every=3, outer=sgd(1.0))'), 1)
    laws.equals('identity()').check(trial)


def test_with_a_mixing_weight_of_one_the_anchor_follows_separate_workers() -> None:
    """Against a NumPy loop over the workers: pseudo-gradients are taken every 3 steps and applied one step later."""
    outer = 'outer=sgd(0.5, momentum=0.9)'
    path = laws.Trial(line.build(f'streaming_diloco(every=3, fragments=1, {outer}, overlap=1, mixing=1.0)'), 4).path
    for name, updates in path.gradients.items():
        x = path.params[name][0].astype(np.float64)
        anchor, velocity, in_flight = x[0], np.zeros(x.shape[1:]), None
        for t, each in enumerate(updates.astype(np.float64), 1):
            x = x + each
            if in_flight is not None:
                velocity = 0.9 * velocity + in_flight.mean(0)
                anchor = anchor - 0.5 * velocity
            in_flight = anchor - x if t % 3 == 0 else None
        np.testing.assert_allclose(path.params[name][-1], x, 1e-4, 1e-5)
        np.testing.assert_allclose(path.state[1].anchor[name], anchor, 1e-4, 1e-5)


def test_accumulation_and_momentum_are_those_of_optax() -> None:
    """With delayed gradients, accumulated over two steps, under momentum: the undelayed run, four steps later."""
    inner = 'MultiSteps(sgd(0.1, momentum=0.9), every_k_schedule=2)'
    lines = f'delay(steps=4) | mean() | {inner}', f'mean() | {inner}'
    delayed, undelayed = (laws.Trial(line.build(text), 3).path for text in lines)
    for name, p in delayed.params.items():
        np.testing.assert_allclose(p[4:], undelayed.params[name][:-4], 1e-5, 1e-6)


def test_an_outer_optimiser_gets_the_anchor_as_parameters() -> None:
    """Weight decay in the outer step decays the anchor."""
    text = 'sgd(0.0) | diloco(every=1, outer=adamw(0.1, weight_decay=0.5))'
    train = program(text)
    state = train.init(jax.random.key(1))
    before = jax.device_get(state.params['w'][0])
    state, _ = train.step(state, batches(1)[0])
    np.testing.assert_allclose(state.params['w'][0], before * (1 - 0.1 * 0.5), 1e-5)
    assert isinstance(line.build(text), optax.GradientTransformationExtraArgs)
