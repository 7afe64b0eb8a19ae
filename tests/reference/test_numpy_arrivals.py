"""Tables of arrivals obey their laws: order, versions, bounds of staleness, and closed forms of seconds."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy_arrivals import (
    Computation,
    KAsync,
    KBatchAsync,
    KBatchSync,
    KSync,
    Pairs,
    Quorum,
    Ringmaster,
    Row,
    Rule,
    Seconds,
    Simulation,
    Ssp,
)

WORKERS, ROWS = 6, 400
RNG = np.random.default_rng(0)
LOGNORMAL, EXPONENTIAL = RNG.lognormal(sigma=0.6, size=(WORKERS, 4000)), RNG.exponential(size=(WORKERS, 20000))
CLOCKS: dict[str, Seconds] = {
    'equal': lambda worker, turn: 1.0,
    'lognormal': lambda worker, turn: LOGNORMAL[worker, turn],
    'one slow': lambda worker, turn: 7.5 if worker == 2 else 1.0,
}
RULES: dict[str, Callable[[], Rule]] = {
    'bsp': lambda: KSync(WORKERS),
    'k-sync': lambda: KSync(4),
    'k-batch-sync': lambda: KBatchSync(4),
    'asgd': lambda: KAsync(1),
    'k-async': lambda: KAsync(3),
    'k-batch-async': lambda: KBatchAsync(4),
    'ssp-0': lambda: Ssp(0),
    'ssp': lambda: Ssp(2),
    'ringmaster': lambda: Ringmaster(4),
    'ringmaster-stop': lambda: Ringmaster(4, stop=True),
    'quorum': lambda: Quorum(3, 0.4),
    'pairs': lambda: Pairs(partner),
}


def partner(update: int, worker: int) -> int:
    return (worker + 1 + update % (WORKERS - 1)) % WORKERS


def table(rule: Rule, clock: str = 'lognormal', rows: int = ROWS) -> list[Row]:
    return Simulation(WORKERS, CLOCKS[clock]).run(rule, rows)


def timing(rows: list[Row]) -> list[tuple[float, ...]]:
    return [(row.start, row.time, row.worker, row.turn) for row in rows]


@pytest.mark.parametrize('clock', CLOCKS)
@pytest.mark.parametrize('name', RULES)
def test_laws_of_every_table(name: str, clock: str) -> None:
    simulation = Simulation(WORKERS, CLOCKS[clock])
    rows = simulation.run(RULES[name](), ROWS)
    assert [(row.time, row.worker) for row in rows] == sorted((row.time, row.worker) for row in rows)
    closes = np.cumsum([0, *(row.closes for row in rows)])
    assert [row.version for row in rows] == closes[:-1].tolist()
    assert all(row.start + CLOCKS[clock](row.worker, row.turn) == row.time and row.read <= row.version for row in rows)
    simulation.rows += simulation.open
    begun: Iterable[Row | Computation] = [*simulation.rows, *simulation.cancelled, *simulation.computing.values()]
    turns = Counter((each.worker, each.turn) for each in begun if each.worker < WORKERS)
    assert set(turns.values()) == {1}
    assert all((worker, turn - 1) in turns for worker, turn in turns if turn)


@pytest.mark.parametrize('name', RULES)
def test_a_longer_table_begins_alike(name: str) -> None:
    assert table(RULES[name]())[:123] == table(RULES[name](), rows=123)


@pytest.mark.parametrize('name', RULES)
def test_the_weights_of_an_update_sum_to_one(name: str) -> None:
    rows = table(RULES[name]())
    sums = np.zeros(rows[-1].version + 1)
    np.add.at(sums, [row.version for row in rows], [row.weight for row in rows])
    np.testing.assert_allclose(sums[:-1], 1)


def test_ssp_bounds_how_far_workers_are_apart() -> None:
    """Worker 0 is fast until it is `bound` messages ahead, then slow: its staleness reaches the bound exactly."""
    for bound in (0, 1, 3):
        for clock in CLOCKS:
            rows = table(Ssp(bound), clock)
            for row in rows:
                done = Counter(each.worker for each in rows if each.time <= row.start)
                assert done[row.worker] - min(done[i] for i in range(WORKERS)) <= bound
            assert max(row.staleness for row in rows) <= (WORKERS - 1) * (2 * bound + 1)

        def slow_when_ahead(worker: int, turn: int, bound: int = bound) -> float:
            return 1.0 if worker else 100.0 if turn == bound else 0.01

        worst = max(row.staleness for row in Simulation(WORKERS, slow_when_ahead).run(Ssp(bound), ROWS))
        assert worst == (WORKERS - 1) * (2 * bound + 1)


def test_ringmaster_accepts_what_is_fresh() -> None:
    for clock in CLOCKS:
        rows = table(Ringmaster(4), clock)
        assert all((row.staleness < 4) == (row.weight == 1) == row.closes for row in rows)
        assert any(row.staleness >= 4 for row in rows)
    simulation = Simulation(WORKERS, CLOCKS['lognormal'])
    assert all(row.staleness < 4 and row.closes for row in simulation.run(Ringmaster(4, stop=True), ROWS))
    assert simulation.cancelled


def test_quorum_waits_for_its_grace_time() -> None:
    rows = table(Quorum(3, 0.4))
    groups = [[row for row in rows if row.version == version] for version in range(rows[-1].version)]
    for group in groups:
        assert len(group) >= 3
        end = group[2].time + 0.4
        assert group[-1].time <= end
        assert all(row.time > end for row in rows if row.version == group[0].version + 1)
        assert {row.start for row in rows if row.read == group[0].version + 1} <= {end}
    assert {len(group) for group in groups} > {3, 4}
    assert any(row.staleness for row in rows)


def test_rules_that_are_the_same() -> None:
    for clock in CLOCKS:
        asgd = table(KAsync(1), clock)
        for rule in (KBatchAsync(1), Ssp(np.inf), Ringmaster(np.inf), Ringmaster(np.inf, stop=True)):
            assert table(rule, clock) == asgd
        bsp = table(KSync(WORKERS), clock)
        assert table(KAsync(WORKERS), clock) == bsp
        assert table(Quorum(WORKERS, 0.0), clock) == bsp
        assert timing(table(Ssp(0), clock)) == timing(bsp)


def test_bsp_has_no_staleness_and_equal_speeds_have_that_of_a_queue() -> None:
    assert {row.staleness for row in table(KSync(4))} == {0}
    assert [row.staleness for row in table(KAsync(1), 'equal')] == [min(k, WORKERS - 1) for k in range(ROWS)]


def test_a_rule_that_waits_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match='more messages than there are workers'):
        table(KSync(WORKERS + 1))


def test_seconds_of_an_update_are_the_closed_forms() -> None:
    """Exponential seconds of mean 1 (Dutta et al. 2018); K of W workers."""
    k = 3
    ordered = sum(1 / i for i in range(WORKERS - k + 1, WORKERS + 1))
    for rule, expected in {KSync: ordered, KAsync: ordered, KBatchSync: k / WORKERS, KBatchAsync: k / WORKERS}.items():
        rows = Simulation(WORKERS, lambda worker, turn: EXPONENTIAL[worker, turn]).run(rule(k), 9000)
        assert rows[-1].time / (rows[-1].version + 1) == pytest.approx(expected, rel=0.03)
