"""Who is silent, and who holds up the others: decided from reports alone."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from jaxdist.cluster import peers
from jaxdist.cluster.exits import PEER, STUCK
from jaxdist.cluster.options import Cluster, Limits
from jaxdist.cluster.roll_call import Lines
from jaxdist.cluster.stragglers import Cost, straggler
from jaxdist.cluster.verdict import Report, judge
from jaxdist.cluster.watch import Watch
from jaxdist.core.errors import InputError, JaxdistError
from jaxdist.training.checkpoint import CheckpointError

LIMITS = Limits(data=20.0, step=20.0, compile=100.0, save=50.0)


def report(phase: str = 'step', step: int = 9, seconds: float = 1.0, silent: float = 0.5) -> Report:
    return Report(phase, step, seconds, silent)


def test_all_is_well_within_the_limits() -> None:
    assert judge({0: report(), 1: report('data', seconds=19.0)}, LIMITS, 10.0) is None


def test_a_silent_process_is_named_with_its_phase() -> None:
    verdict = judge({0: report(), 1: report('data', silent=11.0)}, LIMITS, 10.0)
    assert verdict == (PEER, "process 1 has not answered for 11 s: it was in 'data' of step 9", [1])


def test_the_one_that_others_wait_for_is_named_whoever_exceeds_first() -> None:
    waits = {k: report('step', 9, 40.0) for k in (0, 2)}
    verdict = judge({**waits, 1: report('data', 9, 40.0)}, LIMITS, 10.0)
    assert verdict is not None
    assert (verdict.code, verdict.culprits) == (STUCK, [1])
    # Others that wait longer than their own limit do not end a run whose last process is within its limit.
    assert judge({**waits, 1: report('compile', 9, 40.0)}, LIMITS, 10.0) is None
    assert judge({**waits, 1: report('save', 8, 40.0)}, LIMITS, 10.0) is None
    late = judge({**waits, 1: report('compile', 9, 101.0)}, LIMITS, 10.0)
    assert late is not None
    assert late.culprits == [1]


def test_a_process_that_is_a_step_behind_is_the_one_though_it_is_in_a_step() -> None:
    verdict = judge({0: report('step', 10, 30.0), 1: report('step', 9, 30.0)}, LIMITS, 10.0)
    assert verdict is not None
    assert verdict.culprits == [1]


def test_a_collective_that_does_not_end_has_no_culprit_among_them() -> None:
    verdict = judge({0: report('step', 9, 21.0), 1: report('step', 9, 22.0)}, LIMITS, 10.0)
    assert verdict is not None
    assert verdict.words.startswith("all 2 processes have been in 'step' of step 9 for 21 s; the limit is 20 s")


def test_a_phase_without_a_limit_is_not_judged() -> None:
    assert judge({0: report('end', 9, 1e6), 1: report('end', 9, 1e6)}, LIMITS, 10.0) is None


def test_a_process_that_stops_before_its_first_report_is_silent() -> None:
    class Service:
        process, processes = 0, 2

        def all(self, group: str) -> dict[str, Any]:
            return {'0': [1, 'step', 9, 1.0, 0.0, 0.0, 0.0, 0.0]} if group == 'at' else {}

    said: list[Any] = []
    watch = Watch(Service(), Lines({}), Cluster(heartbeat_seconds=0.05), None)  # type: ignore[arg-type]
    watch._leave = lambda *words: said.append(words)  # type: ignore[method-assign, assignment]
    time.sleep(0.1)
    watch._read_reports()
    watch._judge()
    assert [words[2] for words in said] == [[1]]


def test_its_threads_have_ended_when_it_has_stopped() -> None:
    # A thread that came back from JAX while Python ended aborted a run that had ended well.
    begun = threading.Event()

    class Service:
        process, processes = 1, 2

        def put(self, key: str, value: Any) -> None:
            begun.set()
            time.sleep(0.2)

        def all(self, group: str) -> dict[str, Any]:
            return {}

    agreement = SimpleNamespace(poll=lambda: None)
    watch = Watch(Service(), Lines({}), Cluster(), agreement)  # type: ignore[arg-type]
    watch.period = 0.2
    watch.start()
    assert begun.wait(10)
    watch.stop()
    assert not any(thread.is_alive() for thread in watch.threads)


EVEN = Cost(data=0.01, step=0.10, compute=0.002, answer=0.001)


@pytest.mark.parametrize(
    'cause, change', [('data', {'data': 0.05}), ('compute', {'compute': 0.004}), ('communication', {'answer': 0.02})]
)
@pytest.mark.parametrize('count', [2, 5])
def test_the_cause_of_a_straggler_is_what_it_measures(cause: str, change: dict[str, float], count: int) -> None:
    costs = dict.fromkeys(range(count), EVEN)
    assert straggler(costs) is None
    found = straggler({**costs, 1: EVEN._replace(**change)})
    assert found is not None
    assert (found.process, found.cause) == (1, cause)


def test_of_several_causes_the_one_furthest_above_its_bound_is_named() -> None:
    # A computation that is interrupted once hid a link that is slow.
    costs = {0: EVEN._replace(compute=2 * EVEN.compute), 1: EVEN, 2: EVEN._replace(answer=0.1), 3: EVEN}
    found = straggler(costs)
    assert found is not None
    assert (found.process, found.cause) == (2, 'communication')


def test_differences_within_the_noise_are_no_straggler() -> None:
    others = {0: EVEN, 1: EVEN._replace(data=0.025), 2: EVEN._replace(compute=0.0025), 3: EVEN._replace(answer=0.004)}
    assert straggler(others) is None
    assert straggler({0: EVEN}) is None
    assert straggler({0: EVEN, 1: EVEN._replace(step=0.0)}) is None


@pytest.mark.parametrize(
    'error, code',
    [
        (CheckpointError('step 20 was not saved: ValueError: UNKNOWN: Gloo AllGather failed: Connection reset'), 71),
        (ValueError('UNKNOWN: Gloo AllReduce failed: Connection closed by peer'), 71),
        (CheckpointError('step 20 was not saved: No space left on device'), 1),
        (InputError('there is no gloo'), 2),
    ],
)
def test_an_error_because_another_process_is_gone_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = SimpleNamespace(period=0.0, reason=lambda: None)
    monkeypatch.setattr(peers, 'current', lambda: SimpleNamespace(watch=watch))
    reason = peers.explained(error)
    assert isinstance(reason, JaxdistError)
    assert reason.exit_code == code
