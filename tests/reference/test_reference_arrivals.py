"""Tables of arrivals are those of the reference, written from the rules by somebody who had not seen the code.

Where versions are kept has no counterpart in the reference, which has a dict of them: there a run of numbers shows it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_arrivals as reference
import numpy_asynchronous
import numpy_training
import optax
import pytest
from reference_fixtures import LOSSES, NETWORK, normal_data

from jaxdist.clock import rules
from jaxdist.clock.arrivals import Arrival, arrivals
from jaxdist.clock.compute import constant, exponential, lognormal
from jaxdist.clock.durations import Durations
from jaxdist.core import workers
from jaxdist.core.errors import InputError
from jaxdist.line.arriving import Arriving
from jaxdist.training.arrivals import make_arrivals, rows_of

W, ROWS = 6, 400
CLOCKS = {
    'equal': Durations(constant(mean=1.0), (), W, 0),
    'lognormal': Durations(lognormal(mean=1.0, sigma=0.5), (), W, 0),
    'exponential': Durations(exponential(mean=1.0), (), W, 0),
    'one slow': Durations(constant(mean=1.0), (7.5,), W, 0),
}
RULES = {
    'bsp': (rules.k_sync(k=W), lambda: reference.KSync(W)),
    'k_sync': (rules.k_sync(k=4), lambda: reference.KSync(4)),
    'k_batch_sync': (rules.k_batch_sync(k=4), lambda: reference.KBatchSync(4)),
    'asgd': (rules.k_async(k=1), lambda: reference.KAsync(1)),
    'k_async': (rules.k_async(k=3), lambda: reference.KAsync(3)),
    'k_batch_async': (rules.k_batch_async(k=4), lambda: reference.KBatchAsync(4)),
    'ssp': (rules.ssp(bound=2), lambda: reference.Ssp(2)),
    'ssp, none': (rules.ssp(bound=0), lambda: reference.Ssp(0)),
    'ssp, any': (rules.ssp(bound=math.inf), lambda: reference.Ssp(math.inf)),
    'ringmaster': (rules.ringmaster(limit=4), lambda: reference.Ringmaster(4)),
    'ringmaster, stop': (rules.ringmaster(limit=4, stop=True), lambda: reference.Ringmaster(4, stop=True)),
    'quorum': (rules.quorum(k=3, grace=0.4), lambda: reference.Quorum(3, 0.4)),
}
EACH = pytest.mark.parametrize('clock', CLOCKS)


def table(rule: str, clock: str, rows: int = ROWS) -> list[Arrival]:
    return arrivals(RULES[rule][0].begin(W), W, CLOCKS[clock].of, rows)


@EACH
@pytest.mark.parametrize('rule', RULES)
def test_tables_are_the_references(rule: str, clock: str) -> None:
    expected = reference.Simulation(W, CLOCKS[clock].of).run(RULES[rule][1](), ROWS)
    for ours, theirs in zip(table(rule, clock), expected, strict=True):
        assert ours[:6] == (theirs.start, theirs.time, theirs.worker, theirs.turn, theirs.read, theirs.version)
        assert ours.weight == pytest.approx(theirs.weight)
        assert (ours.closes, ours.staleness) == (theirs.closes, theirs.staleness)


@EACH
@pytest.mark.parametrize('rule', RULES)
def test_what_is_kept_is_the_version_that_is_read(rule: str, clock: str) -> None:
    rows = table(rule, clock)
    kept = dict.fromkeys(range(W + 1), 0)  # the version in each slot
    for row in rows:
        assert kept[row.slot] == row.read
        if row.keep >= 0:
            kept[row.keep] = row.version + row.closes
    slots = 1 + max(max(row.slot, row.keep) for row in rows)
    assert slots <= (1 if rule in ('bsp', 'k_sync', 'k_batch_sync') else W)


@pytest.mark.parametrize('rule', RULES)
def test_a_longer_table_begins_with_the_shorter_one(rule: str) -> None:
    assert table(rule, 'lognormal', 400)[:123] == table(rule, 'lognormal', 123)


@pytest.mark.parametrize(
    'make, error',
    [
        (lambda: rules.k_sync(k=7).begin(W), 'k_sync: k=7 messages never come from 6 workers that wait'),
        (lambda: rules.k_async(k=0).begin(W), 'k_async: k=0 must be a whole number, 1 or more'),
        (lambda: rules.quorum(k=7).begin(W), 'quorum: k=7 messages never come'),
        (lambda: rules.quorum(k=2, grace=-1.0), 'quorum: grace=-1.0 must be 0 seconds or more'),
        (lambda: rules.ssp(bound=-1), 'ssp: bound=-1 must be 0 or more'),
        (lambda: rules.ringmaster(limit=0), 'ringmaster: limit=0 must be 1 or more'),
    ],
)
def test_a_rule_that_can_never_go_on_is_refused(make: object, error: str) -> None:
    with pytest.raises(InputError, match=error):
        make()  # type: ignore[operator]


def test_seconds_of_an_update_are_duttas() -> None:
    many, w, k = 4000, 8, 3
    times = Durations(exponential(mean=1.0), (), w, 1).of
    harmonic = lambda n: sum(1 / i for i in range(1, n + 1))  # noqa: E731
    for rule, expected in (
        (rules.k_sync(k=k), harmonic(w) - harmonic(w - k)),
        (rules.k_async(k=k), harmonic(w) - harmonic(w - k)),
        (rules.k_batch_sync(k=k), k / w),
        (rules.k_batch_async(k=k), k / w),
    ):
        rows = arrivals(rule.begin(w), w, times, many * k)
        updates = np.array([row.time for row in rows if row.closes])
        assert updates[-1] / len(updates) == pytest.approx(expected, rel=0.04), rule.name


def trained(rule: str, clock: str, server: optax.GradientTransformation, rows: int) -> tuple[np.ndarray, Any, Any]:
    """The server's parameters after each step of W arrivals, in float64; the start, and the batches by turn."""
    chosen = table(rule, clock, rows)
    start, batches, _ = normal_data(NETWORK, 0, steps=1 + max(row.turn for row in chosen))
    of = lambda row: numpy_training.examples_of(row.worker, W, batches[row.turn])  # noqa: E731
    examples = jax.tree.map(lambda *parts: np.stack(parts), *map(of, chosen))
    at = Arriving(optax.with_extra_args_support(optax.identity()), None, optax.with_extra_args_support(server))
    program = make_arrivals(LOSSES[NETWORK.loss], lambda key: start, at, workers.simulated(W))
    params = []
    state = program.init(jax.random.key(0))
    all_rows = rows_of(chosen, W)
    for begin in range(0, rows, W):
        part = jax.tree.map(lambda x, begin=begin: jnp.asarray(x[begin : begin + W]), (all_rows, examples))
        state, _ = program.step(state, {'rows': part[0], 'examples': part[1]})
        params.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(state.params))]))
    return np.stack(params), start, batches


@pytest.mark.parametrize('rule', RULES)
def test_the_scan_is_the_references_loop(rule: str) -> None:
    rows = 10 * W
    with jax.enable_x64(True):
        params, start, batches = trained(rule, 'lognormal', optax.sgd(0.02, momentum=0.5), rows)

    def message(at: np.ndarray, worker: int, turn: int) -> np.ndarray:
        part = numpy_training.examples_of(worker, W, batches[turn])
        return numpy_training.gradient(NETWORK, at, part)[0]

    expected_rows = reference.Simulation(W, CLOCKS['lognormal'].of).run(RULES[rule][1](), rows)
    server = [numpy_asynchronous.Optimiser(numpy_training.Sgd(0.02, 0.5))]
    versions = numpy_asynchronous.train(expected_rows, numpy_training.join(start), message, server)
    at_ends = [versions[row.version + row.closes] for row in expected_rows[W - 1 :: W]]
    np.testing.assert_allclose(params, at_ends, rtol=1e-10, atol=1e-10)
