"""Simulated time of experiments: closed forms for each kind of line; in plans, records and comparisons."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_fixtures import Jaxdist, finish, small, train_until

from jaxdist.clock.link import Link
from jaxdist.clock.lockstep import Times
from jaxdist.clock.settings import Clock
from jaxdist.core.errors import InputError
from jaxdist.data import Digits, Dirichlet
from jaxdist.ledger import Collective, Sending
from jaxdist.line import overlap
from jaxdist.report import seconds_text
from jaxdist.training import simulated_time
from jaxdist.training.experiment import ExperimentError, Mesh
from jaxdist.training.run_folder import read_records
from jaxdist.training.simulated_time import simulated_times
from jaxdist.training.train import prepare

PARAMETERS = 610
"""Those of the small experiment's perceptron, 64-8-10."""
CONSTANT = Clock('constant(mean=1.0)', link=Link(bandwidth=1.0))


def simulated(update: str, clock: Clock = CONSTANT, **changes: Any) -> Times:
    times = simulated_times(prepare(small(update, 4, **{'simulate': True, 'clock': clock, **changes})))
    assert times is not None
    return times


def paces(update: str, **changes: Any) -> np.ndarray:
    return np.diff(simulated(update, steps=6, **changes).ends, prepend=0)


MEAN = 2 * 3 / 4 * 4 * PARAMETERS
"""Seconds of an all-reduce of float32 over 4 workers, at a byte a second."""
VOTE = 2 * 3 / 4 * 4
"""Seconds of the guard's vote."""
LINES = {
    'mean() | sgd(0.1)': [1 + MEAN] * 6,
    'sgd(0.1) | average(every=3)': [1, 1, 1 + MEAN] * 2,
    'sgd(0.1) | diloco(every=2, outer=sgd(0.7))': [1, 1 + MEAN] * 3,
    'delay(steps=1) | mean() | sgd(0.1)': [MEAN] * 6,  # what is sent is a step old, and takes longer than a step
    'mean(codec=bf16(), exchange="gather") | sgd(0.1)': [1 + 3 * 1536] * 6,  # 1220 bytes, filled up to whole tiles
}


@pytest.mark.parametrize('simulate', [True, False], ids=['simulated', 'mesh'])
@pytest.mark.parametrize('update', LINES)
def test_each_step_takes_what_it_computes_and_what_it_sends(update: str, simulate: bool) -> None:
    np.testing.assert_allclose(paces(update, guard=False, simulate=simulate), LINES[update])


def test_kinds_of_collectives_have_their_factors_and_latencies() -> None:
    clock = Clock('constant(mean=1.0)', link=Link(latency=10.0, bandwidth=1.0, all_reduce=1.5))
    np.testing.assert_allclose(paces('mean() | sgd(0.1)', guard=False, clock=clock), 1 + 6 * 10 + 1.5 * MEAN)
    twice = paces('mean(codec=power_sgd(rank=1)) | sgd(0.1)', guard=False, clock=clock)
    sent = paces('mean(codec=power_sgd(rank=1)) | sgd(0.1)', guard=False) - 1
    np.testing.assert_allclose(twice, 1 + 2 * 6 * 10 + 1.5 * sent)  # the second factor depends on the first


def test_the_vote_of_the_guard_is_waited_for_at_every_step() -> None:
    np.testing.assert_allclose(paces('mean() | sgd(0.1)'), 1 + MEAN + VOTE)
    np.testing.assert_allclose(paces('sgd(0.1) | average(every=3)'), [1, 1, 1 + MEAN] * 2)  # each worker for itself
    clock = Clock('constant(mean=1.0)', slow=(3.0,))
    times = simulated('delay(steps=1) | mean() | sgd(0.1)', clock, steps=6)
    assert times.ends.tolist() == [3, 6, 9, 12, 15, 18]
    assert times.waited.tolist() == [3] * 6


def test_local_steps_average_the_times_of_steps_before_they_wait() -> None:
    times = simulated('sgd(0.1) | average(every=3)', Clock('exponential(mean=1.0)', seed=3), steps=9, guard=False)
    sums = times.compute.reshape(3, 3, 4).sum(axis=1)
    np.testing.assert_allclose(times.ends[2::3], sums.max(axis=1).cumsum())
    assert times.waited[2::3].tolist() == sums.argmax(axis=1).tolist()
    assert (times.waited[[0, 1, 3, 4, 6, 7]] == -1).all()


def test_what_is_given_longer_hides_more() -> None:
    clock = Clock('exponential(mean=1.0)')
    lines = [f'delay(steps={steps}) | mean() | sgd(0.1)' for steps in (0, 1, 2, 8)]
    found = [simulated(line, clock, steps=200, guard=False).ends[-1] for line in lines]
    assert found == sorted(found, reverse=True)
    assert found[0] / 200 == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.1)
    assert found[-1] / 200 < 1.3


def test_how_many_examples_workers_have_is_known_when_a_step_begins() -> None:
    # Workers with uneven data add up the numbers of their examples, and wait for nobody's gradient in that.
    line, clock = 'delay(steps=1) | mean() | sgd(0.1)', Clock('exponential(mean=1.0)')
    uneven = simulated(line, clock, steps=9, guard=False, data=Digits(division=Dirichlet(alpha=0.3)))
    np.testing.assert_array_equal(uneven.ends, simulated(line, clock, steps=9, guard=False).ends)
    assert (uneven.waited == -1).all()


@pytest.mark.parametrize(
    'line, slow, begins',
    [
        ('gossip()', (3.0,), [3, 1, 3, 3]),
        ('gossip(graph=one_peer_exponential())', (3.0,), [3, 1, 1, 3]),  # in round 0 each hears the one before it
        ('gossip(graph=edges(((0, 1), (1, 2), (2, 3))))', (3.0, 1.0, 1.0, 1.0), [3, 3, 1, 1]),
    ],
)
def test_a_worker_waits_for_those_whom_it_hears_alone(line: str, slow: tuple[float, ...], begins: list[float]) -> None:
    times = simulated(f'sgd(0.1) | {line}', Clock('constant(mean=1.0)', slow=slow), steps=1)
    assert times.begins[1].tolist() == begins


def test_a_worker_sends_to_one_neighbour_after_the_other() -> None:
    size = 4 * PARAMETERS
    np.testing.assert_allclose(paces('sgd(0.1) | gossip(every=2)', guard=False), [1, 1 + 2 * size] * 3)
    line = 'sgd(0.1) | gossip(graph=one_peer_exponential(), every=2)'
    np.testing.assert_allclose(paces(line, guard=False), [1, 1 + size] * 3)


def test_what_devices_of_a_worker_send_each_other_belongs_to_its_computation() -> None:
    mesh = Mesh(workers=4, fsdp=2)  # a device sends half of the gradient
    np.testing.assert_allclose(paces('mean() | sgd(0.1)', guard=False, simulate=False, mesh=mesh), 1 + MEAN / 2)


def sending(path: str, runs: list[int] | None, needs: str = 'state batch', after: str = '', pairs: Any = ()) -> Sending:
    collective = Collective(('workers',), 'permute' if pairs else 'all_reduce', 'float32', Fraction(2))
    known = None if runs is None else np.array(runs)
    return Sending(collective, known, frozenset(needs.split()), path, frozenset(after.split()), pairs)


NEXT = ((0, 1), (1, 2), (2, 3), (3, 0))
SLOW = Clock('constant(mean=1.0)', slow=(3.0,))
SENDINGS: dict[str, tuple[list[Sending], Clock, list[float]]] = {
    'several times in a step': ([sending('0', [1, 2])], CONSTANT, [8, 8, 8, 8]),
    'a batch is there when its step begins': ([sending('0', [1, 1], 'batch')], SLOW, [3, 3, 3, 6]),
    'parameters as long as the line says': ([sending('0', [1, 1], 'state')], SLOW, [2, 2, 2, 6]),
    'two messages': ([sending('0', [0, 1], pairs=NEXT), sending('1', [0, 1], pairs=NEXT[::-1])], SLOW, [6, 2, 2, 6]),
    'a message on': (
        [sending('0', [0, 1], pairs=NEXT), sending('1', [0, 1], after='0', pairs=NEXT)],
        SLOW,
        [6, 6, 2, 6],
    ),
}


@pytest.mark.parametrize('name', SENDINGS)
def test_each_sending_is_in_the_recursion(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sendings, clock, begins = SENDINGS[name]
    monkeypatch.setattr(simulated_time, '_sendings', lambda training, placed: sendings)
    assert simulated('delay(steps=2) | mean() | sgd(0.1)', clock, steps=2).begins[-1].tolist() == begins


def test_what_depends_on_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_time, '_sendings', lambda training, placed: [sending('0', None)])
    with pytest.raises(ExperimentError, match='what all_reduce of float32 sends depends on data'):
        simulated('mean() | sgd(0.1)')


def test_an_algorithm_says_how_long_what_it_sends_has_lain_ready() -> None:
    assert overlap('delay(steps=(4, 2)) | mean() | sgd(0.1)') == 2
    assert overlap('sgd(0.1) | eager_diloco(every=5, outer=sgd(0.7))') == 5


def test_a_longer_run_has_the_same_first_steps() -> None:
    clock = Clock('lognormal(mean=1.0)', link=Link(bandwidth=1e3))
    long = simulated('sgd(0.1) | average(every=3)', clock, steps=300).ends
    np.testing.assert_array_equal(simulated('sgd(0.1) | average(every=3)', clock, steps=20).ends, long[:20])


def test_a_clock_that_lacks_its_compute_time_is_refused() -> None:
    for clock in (Clock(slow=(3.0,)), Clock(link=Link(bandwidth=1e6)), Clock(seed=1)):
        with pytest.raises(InputError, match=r'the clock has no compute time: give one, as in --clock\.compute'):
            simulated('mean() | sgd(0.1)', clock)


def recorded(folder: Path) -> list[float]:
    return [record['simulated_seconds'] for record in read_records(folder) if 'loss' in record]


def test_records_have_it_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    clock = Clock('lognormal(mean=1.0)', link=Link(bandwidth=1e3))
    experiment = small('mean() | sgd(0.1)', clock=clock)
    finish(experiment, tmp_path / 'whole')
    expected = simulated('mean() | sgd(0.1)', clock).ends
    np.testing.assert_array_equal(recorded(tmp_path / 'whole'), expected)
    train_until(4, experiment, tmp_path / 'resumed')
    finish(experiment, tmp_path / 'resumed')
    assert recorded(tmp_path / 'resumed') == recorded(tmp_path / 'whole')


def test_steps_of_another_number_of_workers_keep_their_time(tmp_path: Path) -> None:
    experiment = small('mean() | sgd(0.1)', clock=CONSTANT, guard=False)
    train_until(4, experiment, tmp_path)
    two = dataclasses.replace(experiment, mesh=Mesh(workers=2))
    finish(two, tmp_path)
    paces = np.diff(recorded(tmp_path), prepend=0)
    np.testing.assert_allclose(paces, [1 + MEAN] * 4 + [1 + 2 * 1 / 2 * 4 * PARAMETERS] * 3)


def test_a_run_does_not_go_on_under_another_clock(tmp_path: Path) -> None:
    experiment = small('mean() | sgd(0.1)', simulate=True, clock=CONSTANT)
    train_until(4, experiment, tmp_path)
    with pytest.raises(ExperimentError, match=r'clock\.seed'):
        finish(dataclasses.replace(experiment, clock=dataclasses.replace(CONSTANT, seed=1)), tmp_path)


def test_a_plan_shows_it_and_draws_it(jaxdist: Jaxdist) -> None:
    words = ['plan', 'small.py', '--simulate', '--clock.compute', 'constant(mean=0.5)', '--clock.slow', '3']
    code, out, err = jaxdist(*words, '--gantt', 'gantt.svg')
    assert (code, err) == (0, '')
    assert 'clock       1.50 s a step, 50% idle; all wait in 100% of steps, for worker 3 in 100% of them' in out
    assert Path('gantt.svg').read_text().count('<path') > 16
    clock = json.loads(jaxdist(*words, '--json').out)['clock']
    assert clock == {'seconds_per_step': 1.5, 'idle': 0.5, 'waits': 1.0, 'waited_for': {'3': 1.0}}


def test_a_comparison_shows_the_seconds_to_a_target(jaxdist: Jaxdist) -> None:
    words = ['compare', 'small.py', '--simulate', '--update', 'mean() | sgd(0.1)', '--update', 'mean() | sgd(0.01)']
    words += ['--clock.compute', 'constant(mean=0.5)', '--evaluate-every', '1', '--out', 'compared']
    code, _, err = jaxdist(*words, '--target', 'loss=2.25', '--target', 'accuracy=0.999')
    assert (code, err) == (0, '')
    table = Path('compared/table.md').read_text().splitlines()
    header = [cell.strip() for cell in table[0].split('|')]
    rows = [dict(zip(header, map(str.strip, row.split('|')), strict=True)) for row in table[2:4]]
    reached = [row['simulated time to loss 2.25'] for row in rows]
    assert [row['simulated time'] for row in rows] == ['2.00 s', '2.00 s']
    assert reached[1] == 'not reached'
    records = [each for path in Path('compared').rglob('metrics.jsonl') for each in read_records(path.parent)]
    first = min(record['step'] for record in records if record.get('held_out', {}).get('loss', 9.9) <= 2.25)
    assert reached[0] == seconds_text(first * 0.5)
    assert {row['simulated time to accuracy 0.999'] for row in rows} == {'not reached'}


def test_who_sends_more_messages_takes_longer() -> None:
    # On a path of four the ends send one message of 2440 bytes, and those between them two.
    line = 'sgd(0.1) | gossip(graph=edges(((0, 1), (1, 2), (2, 3))))'
    ends = simulated(line, steps=1, guard=False).begins[1]
    assert ends.tolist() == [1 + 2440, 1 + 2 * 2440, 1 + 2 * 2440, 1 + 2440]
    star = simulated('sgd(0.1) | gossip(graph=star())', steps=1, guard=False).begins[1]
    assert star.max() == 1 + 3 * 2440  # the worker in the middle sends one after the other
    assert star.min() < star.max()


def test_parameters_have_not_lain_ready_longer_than_their_step() -> None:
    clock = Clock('exponential(mean=1.0)')
    late = simulated('delay(steps=4) | sgd(0.1) | gossip(adapt_first=False)', clock, steps=50, guard=False)
    same = simulated('sgd(0.1) | gossip(adapt_first=False)', clock, steps=50, guard=False)
    np.testing.assert_array_equal(late.ends, same.ends)
