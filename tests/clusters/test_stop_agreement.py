"""Processes in lockstep stop at the same step, whenever one of them is asked to."""

import random
import threading
import time
from typing import Any

import pytest

from jaxdist.cluster.stop_agreement import StopAgreement


class Store:
    """A coordination service of one process."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}


class Fake:
    def __init__(self, store: Store, process: int, processes: int) -> None:
        self.store, self.process, self.processes = store, process, processes

    def put(self, key: str, value: Any) -> None:
        self.store.values[key] = value

    def all(self, group: str) -> dict[str, Any]:
        return {k.partition('/')[2]: v for k, v in dict(self.store.values).items() if k.startswith(f'{group}/')}


def lockstep(processes: int, asked: int, seed: int) -> list[int]:
    """The last step of each process; each step is a barrier, as a collective is."""
    store, barrier, last = Store(), threading.Barrier(processes), [0] * processes
    ended = threading.Event()

    def run(k: int) -> None:
        chance = random.Random(seed * 100 + k)
        agreement = StopAgreement(Fake(store, k, processes), 10.0)  # type: ignore[arg-type]

        def poll() -> None:
            while not ended.is_set():
                time.sleep(chance.uniform(0, 0.02))
                agreement.poll()

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        step = 0
        while agreement.may_begin(step + 1):
            step += 1
            time.sleep(chance.uniform(0, 0.003))
            barrier.wait(timeout=10)
            if step == 5 and k == asked:
                agreement.ask()
        last[k] = step

    threads = [threading.Thread(target=run, args=(k,)) for k in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    ended.set()
    return last


@pytest.mark.parametrize('seed', range(6))
def test_all_stop_at_one_step(seed: int) -> None:
    last = lockstep(3, asked=seed % 3, seed=seed)
    assert len(set(last)) == 1, last
    assert last[0] >= 5
