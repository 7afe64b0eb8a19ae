"""Training by a table of arrivals agrees with synchronous references; the server's rules have their identities."""

from functools import partial

import numpy as np
from numpy_arrivals import (
    KAsync,
    KBatchAsync,
    KBatchSync,
    KSync,
    Pairs,
    Quorum,
    Ringmaster,
    Row,
    Rule,
    Simulation,
    Ssp,
)
from numpy_asynchronous import (
    Context,
    DelayCompensation,
    DelayedNesterov,
    HeLoCo,
    LocalSteps,
    Optimiser,
    ServerRule,
    inverse,
    inverse_root,
    threshold,
    train,
    train_pairs,
)
from numpy_local import DiLoCo, OuterSgd
from numpy_training import Array, Delay, Exact, Mean, Model, Sgd, Transformation, examples_of, gradient, plane
from numpy_training import train as train_synchronously

WORKERS = 6
RNG = np.random.default_rng(0)
LOGNORMAL = RNG.lognormal(sigma=0.6, size=(WORKERS, 200))
MODEL = Model(plane, {'w': (3, 2), 'b': (2,)})
BATCHES = [{'x': RNG.normal(size=(2 * WORKERS, 3)), 'y': RNG.normal(size=(2 * WORKERS, 2))} for _ in range(60)]
"""Batch `turn` of a synchronous run has the examples of all workers."""
START = RNG.normal(size=8)


def partner(update: int, worker: int) -> int:
    return (worker + 1 + update % (WORKERS - 1)) % WORKERS


def table(rule: Rule, rows: int, workers: int = WORKERS) -> list[Row]:
    return Simulation(workers, lambda worker, turn: LOGNORMAL[worker, turn]).run(rule, rows)


def message(params: Array, worker: int, turn: int, workers: int = WORKERS) -> Array:
    return gradient(MODEL, params, examples_of(worker, workers, BATCHES[turn]))[0]


def sgd(rate: float, momentum: float = 0.0) -> list[ServerRule]:
    return [Optimiser(Sgd(rate, momentum))]


def test_bsp_is_synchronous_sgd() -> None:
    actual = train(table(KSync(WORKERS), 20 * WORKERS), START, message, sgd(0.1, 0.9))
    expected = train_synchronously(MODEL, START, [Mean(Exact()), Sgd(0.1, 0.9)], BATCHES[:20], WORKERS)
    np.testing.assert_allclose(actual[1:], expected.params[:, 0], atol=1e-13)


def test_ssp_0_is_bsp_for_a_server_that_adds() -> None:
    rows = 20 * WORKERS
    ssp, bsp = table(Ssp(0), rows), table(KSync(WORKERS), rows)
    actual, expected = train(ssp, START, message, sgd(0.1 / WORKERS)), train(bsp, START, message, sgd(0.1))
    np.testing.assert_allclose(actual[::WORKERS], expected, atol=1e-13)
    actual, expected = train(ssp, START, message, sgd(0.1 / WORKERS, 0.5)), train(bsp, START, message, sgd(0.1, 0.5))
    assert np.abs(actual[::WORKERS] - expected).max() > 1e-2


def test_one_worker_is_plain_sgd() -> None:
    expected = train_synchronously(MODEL, START, [Sgd(0.1)], BATCHES[:20], 1)
    rules: list[Rule] = [KSync(1), KBatchSync(1), KAsync(1), KBatchAsync(1), Ssp(0), Ringmaster(1), Quorum(1, 0.4)]
    for rule in rules:
        actual = train(table(rule, 20, workers=1), START, partial(message, workers=1), sgd(0.1))
        np.testing.assert_array_equal(actual[1:], expected.params[:, 0])


def test_equal_speeds_are_delayed_sgd_of_one_worker() -> None:
    """Of W workers: staleness W - 1, after the first W messages, which all read the start."""

    def numbered(params: Array, worker: int, turn: int) -> Array:
        return message(params, 0, turn * WORKERS + worker, 1)

    rows = Simulation(WORKERS, lambda worker, turn: 1.0).run(KAsync(1), 50)
    actual = train(rows, START, numbered, sgd(0.02))
    line: list[Transformation] = [Delay(WORKERS - 1), Sgd(0.02)]
    expected = train_synchronously(MODEL, START, line, BATCHES[: 50 + WORKERS - 1], 1)
    np.testing.assert_array_equal(actual[1:], expected.params[WORKERS - 1 :, 0])


def test_bsp_with_local_steps_is_diloco() -> None:
    local = LocalSteps(message, lambda: Sgd(0.1, 0.5), lambda worker: 4)
    actual = train(table(KSync(WORKERS), 10 * WORKERS), START, local, [Optimiser(Sgd(0.7, 0.9, nesterov=True))])
    line: list[Transformation] = [Sgd(0.1, 0.5), DiLoCo(4, OuterSgd(0.7, 0.9, nesterov=True), Exact())]
    expected = train_synchronously(MODEL, START, line, BATCHES[:40], WORKERS)
    np.testing.assert_allclose(actual[1:], expected.params[3::4, 0], atol=1e-13)


def test_pairs_move_the_mean_by_a_share_of_the_update() -> None:
    rows = table(Pairs(partner), 100)
    params = train_pairs(rows, START, message, lambda: Sgd(0.05), WORKERS)
    updates = [-0.05 * message(params[row.read][row.worker], row.worker, row.turn) for row in rows]
    np.testing.assert_allclose(np.diff(params.mean(1), axis=0), np.array(updates) / WORKERS, atol=1e-15)
    only_mixed = train_pairs(rows, START, lambda *_: np.zeros(8), lambda: Sgd(1.0), WORKERS)
    np.testing.assert_array_equal(only_mixed[-1], np.tile(START, (WORKERS, 1)))


def context(params: Array, read: Array) -> Context:
    return Context(0, read, params, 0)


FRESH = context(START, START)


def test_weights_by_staleness() -> None:
    assert [inverse(tau) for tau in (0, 1, 4)] == [1, 1, 0.25]
    assert [inverse_root(tau) for tau in (0, 3)] == [1, 0.5]
    assert [threshold(2)(tau) for tau in (0, 2, 8)] == [1, 1, 0.25]
    rows = table(KBatchAsync(4), 80)
    plain = train(rows, START, message, sgd(0.1))
    np.testing.assert_array_equal(train(rows, START, message, sgd(0.1), threshold(np.inf)), plain)
    assert np.abs(train(rows, START, message, sgd(0.1), inverse_root) - plain).max() > 1e-3


def test_delay_compensation_of_no_delay_or_no_strength_is_plain() -> None:
    values, read = RNG.normal(size=(2, 8))
    for adaptive in (False, True):
        np.testing.assert_array_equal(DelayCompensation(0.5, adaptive)(values, FRESH), values)
        np.testing.assert_array_equal(DelayCompensation(0.0, adaptive)(values, context(START, read)), values)
    compensated = values + 0.5 * values * values * (START - read)
    np.testing.assert_allclose(DelayCompensation(0.5)(values, context(START, read)), compensated)
    compensated = values + 0.5 * np.abs(values) / np.sqrt(0.25) * (START - read)
    adaptive_rule = DelayCompensation(0.5, True, decay=0.75, eps=0.0)
    np.testing.assert_allclose(adaptive_rule(values, context(START, read)), compensated)


def test_delayed_nesterov_is_nesterov_on_means() -> None:
    values = RNG.normal(size=(12, 8))
    single, delayed, nesterov = (
        DelayedNesterov(0.1, 0.9, 1, 0.7),
        DelayedNesterov(0.1, 0.9, 4),
        OuterSgd(0.1, 0.9, True),
    )
    for each in values:
        np.testing.assert_allclose(single(each, FRESH), nesterov.step(each, START), atol=1e-15)
    delayed, nesterov = DelayedNesterov(0.1, 0.9, 4), OuterSgd(0.1, 0.9, nesterov=True)
    for group in values.reshape(3, 4, 8):
        moved = sum(delayed(each, FRESH) for each in group)
        np.testing.assert_allclose(moved, nesterov.step(group.mean(0), START), atol=1e-15)


def test_delayed_nesterov_spreads_the_momentum() -> None:
    """With gradients of zero after a first group, each update is c beta m, or (1 - c n + c) beta of the next m."""
    rule = DelayedNesterov(1.0, 0.5, 4, 0.25)
    for _ in range(4):
        rule(np.full(8, 2.0), FRESH)  # m = 2
    updates = [rule(np.zeros(8), FRESH)[0] for _ in range(4)]
    assert updates == [-0.25 * 0.5 * 2] * 3 + [-0.25 * 0.5 * 1]


def heloco(keep: float, shrink_limit: float = 1.0) -> HeLoCo:
    return HeLoCo(0.5, 0.9, [np.arange(3), np.arange(3, 8)], keep, 100.0, shrink_limit, 0.5, 1.0)


def test_heloco_keeps_what_is_aligned_and_is_plain_momentum_if_it_keeps_all() -> None:
    plain, m = heloco(-1.0), np.zeros(8)
    for d in RNG.normal(size=(5, 8)):
        m = 0.9 * m + 0.1 * d
        np.testing.assert_allclose(plain(d, FRESH), -0.5 * (d + 0.9 * m), atol=1e-15)
    d = np.array([1.0, 0.0])
    np.testing.assert_array_equal(heloco(0.5).correct(d, np.array([1.0, 1.0])), d)


def test_heloco_corrects_by_hand() -> None:
    """Against m: the component along m is taken away up to the limit. Across: turned, of the same norm."""
    m = np.array([0.0, 4.0])
    np.testing.assert_allclose(heloco(0.5).correct(np.array([3.0, -4.0]), m), [3, 0])
    np.testing.assert_allclose(heloco(0.5, 0.25).correct(np.array([3.0, -4.0]), m), [3, -3])
    turned = heloco(0.5).correct(np.array([4.0, 0.0]), m)  # cosine 0, trust 4 / (4 + 4): a quarter of the direction
    np.testing.assert_allclose(turned, 4 * np.array([0.75, 0.25]) / np.sqrt(0.625))


def test_heloco_corrects_each_tensor_before_the_step() -> None:
    """The second arrival is against the momentum in the first tensor, and with it in the second."""
    rule, d = heloco(0.5), np.ones(8)
    rule(d, FRESH)
    corrected = np.repeat([0.0, 1.0], [3, 5])
    momentum = 0.9 * 0.1 * d + 0.1 * corrected
    actual = rule(np.repeat([-1.0, 1.0], [3, 5]), FRESH)
    np.testing.assert_allclose(actual, -0.5 * (corrected + 0.9 * momentum), atol=1e-15)
