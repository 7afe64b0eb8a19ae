"""A process of a learner as a Ray actor, with its JAX and its devices. Most learners are one process.

Ray starts an actor again when its process is lost, and calls `run` again, which begins at the newest anchor.
"""

import os
import time
from pathlib import Path
from typing import Any

from jaxdist import cluster
from jaxdist.learners.calls import Settings, prepared
from jaxdist.learners.client import Client
from jaxdist.learners.joining import join_world, leaving_with_others
from jaxdist.learners.learner import Kept, Learner, batches
from jaxdist.training.alike import check_programs
from jaxdist.training.checkpoint import Checkpoints

NUMBER = 'JAXDIST_LEARNER'
"""In the environment of a learner: its index, for the user's model and data."""


class LearnerActor:
    """A process of a learner, with its own devices.

    Args:
        settings: what it needs.
        number: the learner's index.
        process: the index of the process in the learner.
        synchroniser: the name of that actor.
    """

    def __init__(self, settings: Settings, number: int, process: int, synchroniser: str) -> None:
        import ray

        os.environ[NUMBER] = str(number)
        call: Any = ray.get_actor(synchroniser)
        get: Any = ray.get  # its types do not know what actors return
        enrol = lambda member: get(call.enrol.remote(member))  # noqa: E731
        host, count = ray.util.get_node_ip_address(), settings.processes
        with leaving_with_others():
            whole, training, terms = prepared(settings, count, lambda: join_world(number, process, count, host, enrol))
            check_programs(training)
            self.learner = Learner(training, terms, number, batches(training, number, terms.learners))
            cluster.doing('compile', 0)
            self.learner.warm_up()
            self.client = Client(ray, call, self.learner)
        self.save_every = whole.save_every
        self.checkpoints = Checkpoints(Path(settings.folder) / 'learners' / str(number))

    def run(self) -> None:
        """Trains until the run has ended."""
        with leaving_with_others():
            with self.checkpoints:
                self._train()
            cluster.finish()

    def _train(self) -> None:
        learner, client = self.learner, self.client
        at, done = client.begin()
        cluster.doing('restore', at.step)
        kept = _restored(self.checkpoints, at.saved, learner)
        learner.begin(at if kept is not None else at._replace(saved=-1), kept)
        saved = at.step
        while not done:
            learner.train()
            client.alive()
            wanted, closed = client.news()
            due = sorted({*learner.due_now, *wanted} - set(learner.sent))
            client.hand_in([learner.hand_in(fragment) for fragment in due])
            for fragment in [*learner.to_adopt, *closed]:
                answer = client.answer(fragment)
                done |= answer.done
                if not answer.done:
                    learner.adopt(fragment, answer.anchor, answer.version, answer.merged)
                    if not answer.merged:
                        client.hand_in([learner.hand_in(fragment, late=True)])
            if not done and learner.step >= saved + self.save_every:
                saved = learner.step
                cluster.doing('save', saved)
                self.checkpoints.save(saved, learner.keep(), {})

    def watch(self) -> None:
        """Never returns: the call ends with an error when the process is lost."""
        while True:
            time.sleep(3600)


def _restored(checkpoints: Checkpoints, saved: int, learner: Learner) -> Kept | None:
    """What an earlier start of a learner has saved at this step; None if there is nothing intact."""
    checkpoints.forget_after(saved)
    if saved < 0:
        return None
    found = checkpoints.restore(learner.kept)
    return found.state if found is not None and found.step == saved else None
