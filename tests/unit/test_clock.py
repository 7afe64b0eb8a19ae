"""Compute times, links and the recursion of simulated time, against closed forms and a heap of events."""

from pathlib import Path

import numpy as np
import numpy_clock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdist.clock.compute import ComputeTime, constant, exponential, lognormal, markov, measured
from jaxdist.clock.durations import BLOCK, Durations
from jaxdist.clock.link import KINDS, Link
from jaxdist.clock.lockstep import Communication, lockstep
from jaxdist.clock.settings import Clock
from jaxdist.core.errors import InputError

DRAWN = {
    'constant': constant(mean=2.0),
    'lognormal': lognormal(mean=2.0, sigma=0.5),
    'exponential': exponential(mean=2.0),
    'markov': markov(mean=2.0, factor=5.0, enter=0.1, leave=0.3),
}
ALL = pytest.mark.parametrize('compute', DRAWN.values(), ids=DRAWN)


@ALL
def test_the_mean_is_as_given(compute: ComputeTime) -> None:
    table = Durations(compute, (), workers=4, seed=0).table(20_000)
    assert table.min() > 0
    assert table.mean() == pytest.approx(2.0, rel=0.03)


@ALL
def test_a_time_is_a_function_of_worker_and_turn(compute: ComputeTime) -> None:
    table = Durations(compute, (2.0, 3.0), workers=5, seed=1).table(2 * BLOCK + 3)
    asked = Durations(compute, (2.0, 3.0), workers=5, seed=1)
    for worker, turn in [(4, 2 * BLOCK + 2), (0, 0), (3, BLOCK), (4, 1), (0, 2 * BLOCK - 1)]:  # in any order
        assert asked.of(worker, turn) == table[turn, worker]
    np.testing.assert_array_equal(Durations(compute, (2.0, 3.0), 5, 1).table(BLOCK + 1), table[: BLOCK + 1])
    # Another number of workers leaves those that stay on the same luck.
    np.testing.assert_array_equal(Durations(compute, (), 2, 1).table(9), table[:9, :2])


@pytest.mark.parametrize('compute', [DRAWN[name] for name in ('lognormal', 'exponential', 'markov')])
def test_workers_seeds_and_blocks_have_their_own_luck(compute: ComputeTime) -> None:
    table = Durations(compute, (), workers=3, seed=0).table(2 * BLOCK)
    other = Durations(compute, (), workers=3, seed=1).table(2 * BLOCK)
    columns = [*table.T, *other.T, np.roll(table[:, 0], BLOCK)]
    for i, one in enumerate(columns):
        assert all((one != two).mean() > 0.1 for two in columns[i + 1 :])


def test_the_times_of_a_distribution_are_as_its_formulas_say() -> None:
    logs = np.log(Durations(lognormal(mean=1.0, sigma=0.3), (), 4, 0).table(20_000))
    assert (logs.mean(), logs.std()) == pytest.approx((-(0.3**2) / 2, 0.3), abs=0.005)
    times = Durations(exponential(mean=2.0), (), 4, 0).table(20_000)
    assert (times > 2.0).mean() == pytest.approx(np.exp(-1), abs=0.01)


def test_a_markov_chain_is_slow_for_a_while() -> None:
    slow = Durations(markov(mean=1.0, factor=5.0, enter=0.1, leave=0.3), (), 4, 0).table(20_000) > 1.0
    assert slow.mean() == pytest.approx(0.1 / 0.4, abs=0.02)
    assert slow[1:][~slow[:-1]].mean() == pytest.approx(0.1, abs=0.01)
    assert slow[1:][slow[:-1]].mean() == pytest.approx(0.7, abs=0.02)
    first = Durations(markov(mean=1.0, factor=5.0, enter=0.1, leave=0.3), (), 2_000, 0).table(1) > 1.0
    assert first.mean() == pytest.approx(0.25, abs=0.04)  # from the first turn on


def test_measured_times_are_read(tmp_path: Path) -> None:
    (tmp_path / 'times.csv').write_text('a,b\n0.5,1\n2,0.25\n')
    times = Durations(measured(str(tmp_path / 'times.csv')), (10.0,), workers=2, seed=0)
    assert times.table(2).tolist() == [[0.5, 10.0], [2.0, 2.5]]
    assert times.of(1, 1) == 2.5
    with pytest.raises(InputError, match='has 2 turns, and 3 are needed: measure more, or train for fewer steps'):
        times.table(3)
    for workers in (1, 3):
        with pytest.raises(InputError, match=f'has the times of 2 workers, and there are {workers}'):
            Durations(times.compute, (), workers=workers, seed=0)


@pytest.mark.parametrize('text', ['\ufeff1,2\n3,4', 'a,b\n1,2\n3,4'])
def test_no_row_of_seconds_is_taken_for_names(tmp_path: Path, text: str) -> None:
    (tmp_path / 'times.csv').write_text(text, 'utf-8')
    assert measured(str(tmp_path / 'times.csv')).measured.tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    'text, error',
    [
        ('', 'has no rows'),
        ('a,b\n', 'has no rows'),
        ('1,2\n3\n', "row 2 of .* must have seconds above 0 of 2 workers, as the first has: '3'"),
        ('a,b\n1,2\n3,0\n', "row 3 of .*: '3,0'"),
        ('1,2\n3,x\n', "row 2 of .*: '3,x'"),
        ('"1",2\n3,4\n', 'row 1 of'),
        ('inf,2\n3,4\n', 'row 1 of'),
        ('1,2\n3,inf\n', "row 2 of .*: '3,inf'"),
    ],
)
def test_a_file_of_other_content_is_refused(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / 'times.csv').write_text(text)
    with pytest.raises(InputError, match=error):
        measured(str(tmp_path / 'times.csv'))


@pytest.mark.parametrize(
    'clock, error',
    [
        (Clock('constant(mean=0.0)'), 'constant: mean=0.0 must be a number above 0'),
        (Clock('lognormal(mean=1.0, sigma=-1.0)'), 'lognormal: sigma=-1.0 must be a number above 0'),
        (Clock('exponential(mean=-1.0)'), 'exponential: mean=-1.0 must be'),
        (Clock('markov(mean=1.0, enter=2.0)'), 'markov: enter=2.0 must be a probability'),
        (Clock('lognormal'), 'lognormal'),
        (Clock('sgd(0.1)'), 'sgd'),
        (Clock('constant(mean=1.0)', slow=(0.0,)), r'slow=\(0.0,\): a factor must be a number above 0'),
        (Clock('constant(mean=1.0)', slow=(2.0,) * 5), 'has factors of 5 workers, and there are 4'),
        (Clock('constant(mean=1.0)', seed=-1), 'clock.seed=-1 must be 0 or more'),
        (Clock('constant(mean=1.0)', link=Link(bandwidth=-1.0)), 'clock.link.bandwidth=-1.0 must be 0 or more'),
        (Clock('constant(mean=1.0)', link=Link(latency=np.inf)), 'clock.link.latency=inf must be 0 or more'),
        (Clock('constant(mean=1.0)', link=Link(permute=0.0)), 'clock.link.permute=0.0 must be above 0'),
    ],
)
def test_a_clock_with_a_mistake_is_refused(clock: Clock, error: str) -> None:
    with pytest.raises(InputError, match=error):
        clock.durations(4)


def test_a_collective_takes_latency_by_rounds_and_bytes_by_bandwidth() -> None:
    link = Link(latency=0.5, bandwidth=100.0, all_gather=2.0)
    rounds = {'all_reduce': 6, 'all_gather': 3, 'reduce_scatter': 3, 'all_to_all': 3, 'permute': 1}
    for kind in KINDS:
        factor = 2.0 if kind == 'all_gather' else 1.0
        assert link.seconds(kind, 50.0, workers=4) == pytest.approx(0.5 * rounds[kind] + factor * 0.5)
    assert Link().seconds('all_reduce', 1e12, workers=4) == 0  # a free network


def test_synchronous_steps_of_exponential_times_take_the_harmonic_number() -> None:
    compute = Durations(exponential(mean=1.0), (), workers=16, seed=0).table(20_000)
    times = lockstep(compute, [[Communication(0.25)]] * 20_000)
    seconds = times.summary()['seconds_per_step']
    assert seconds == pytest.approx(sum(1 / n for n in range(1, 17)) + 0.25, rel=0.01)
    assert times.idle == pytest.approx(1 - 1 / seconds, rel=0.02)
    assert min(times.summary()['waited_for'].values()) == pytest.approx(1 / 16, abs=0.02)


@given(st.integers(0, 10**6), st.sampled_from(['all', 'neighbours']), st.sampled_from([[0, 1], [1], [3]]))
def test_the_recursion_is_a_heap_of_events(seed: int, heard: str, lags: list[int]) -> None:
    rng = np.random.default_rng(seed)
    steps, workers = int(rng.integers(1, 8)), int(rng.integers(2, 6))
    compute, sent = rng.exponential(size=(steps, workers)), []
    for _ in range(steps):
        sources = [None if heard == 'all' else rng.integers(0, workers, (workers, 2)) for _ in range(rng.integers(3))]
        sent.append([Communication(rng.random(), each, int(rng.choice(lags))) for each in sources])
    rounds = [
        [
            numpy_clock.Communication(each.seconds, None if each.sources is None else each.sources.tolist(), each.lag)
            for each in together
        ]
        for together in sent
    ]
    np.testing.assert_allclose(lockstep(compute, sent).begins, numpy_clock.begin_times(compute, rounds))


def test_what_is_sent_on_has_to_arrive_first() -> None:
    compute, ring = np.array([[3.0, 1.0, 1.0, 1.0]]), (np.arange(4)[:, None] + [-1]) % 4
    both = [Communication(0.5, ring), Communication(0.5, ring)]
    assert lockstep(compute, [both]).begins[1].tolist() == [4, 4, 2, 2]
    both[1] = both[1]._replace(after=(0,))  # the second hop brings news of worker 0
    assert lockstep(compute, [both]).begins[1].tolist() == [4, 4, 4, 2]


def test_a_link_is_free_when_a_collective_of_all_has_ended() -> None:
    compute, ring = np.array([[3.0, 1.0, 1.0, 1.0]]), (np.arange(4)[:, None] + [-1]) % 4
    assert lockstep(compute, [[Communication(0.5), Communication(0.5, ring)]]).begins[1].tolist() == [4, 4, 4, 4]


def test_who_only_hears_itself_waits_for_nobody() -> None:
    compute = Durations(lognormal(mean=1.0), (5.0,), workers=3, seed=0).table(50)
    itself = np.arange(3)[:, None]
    for communications in ([[]] * 50, [[Communication(0.0, itself)]] * 50):
        np.testing.assert_allclose(lockstep(compute, communications).begins[1:], compute.cumsum(axis=0))


def test_news_of_a_slow_worker_goes_round_a_ring_one_step_at_a_time() -> None:
    compute = np.ones((4, 6))
    compute[0, 0] = 3.0
    ring = (np.arange(6)[:, None] + [-1, 1]) % 6
    begins = lockstep(compute, [[Communication(0.0, ring)]] * 4).begins
    late = begins - np.arange(5)[:, None]
    assert late.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 2],
        [2, 2, 2, 0, 2, 2],
        [2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2],
    ]


@pytest.mark.parametrize('link, lag, pace', [(0.5, 0, 1.5), (0.5, 1, 1.0), (2.0, 0, 3.0), (2.0, 1, 2.0), (2.0, 3, 2.0)])
def test_what_lies_ready_is_sent_beside_the_computation(link: float, lag: int, pace: float) -> None:
    # A link sends one message after the other, however long they have lain ready: so it can set the pace.
    times = lockstep(np.ones((9, 3)), [[Communication(link, lag=lag)]] * 9)
    assert np.diff(times.ends)[3:].tolist() == [pace] * 5


def test_what_has_lain_ready_for_long_hides_a_slow_turn_of_another() -> None:
    compute = np.ones((8, 2))
    compute[::4, 0], compute[2::4, 1] = 4.0, 4.0  # each is slow now and then, and never both
    paces = [lockstep(compute, [[Communication(0.0, lag=lag)]] * 8).ends[-1] for lag in (0, 1, 2, 4)]
    assert paces[0] == 20
    assert paces == sorted(paces, reverse=True)
    assert paces[-1] < paces[1]
