"""A learner as a Ray actor: a process, with its JAX and its devices.

Ray starts an actor again when its process is lost, and calls `run` again, which begins at the newest anchor.
"""

import os
import time
from pathlib import Path
from typing import Any

import jax

from jaxdist.learners.calls import Answer, Settings, Sign, here, prepared
from jaxdist.learners.learner import Kept, Learner, batches
from jaxdist.training.checkpoint import Checkpoints

NUMBER = 'JAXDIST_LEARNER'
"""In the environment of a learner: its index, for the user's model and data."""
SIGN_OF_LIFE = 1.0
"""Seconds between two signs of life."""


class LearnerActor:
    """A learner: its own process, with its own devices."""

    def __init__(self, settings: Settings, number: int, synchroniser: str) -> None:
        import ray

        os.environ[NUMBER] = str(number)
        whole, training, terms = prepared(settings)
        self.number = number
        self.synchroniser: Any = ray.get_actor(synchroniser)
        self.learner = Learner(training, terms, number, batches(training, number, terms.learners))
        self.learner.warm_up()
        self.save_every = whole.save_every
        self.checkpoints = Checkpoints(Path(settings.folder) / 'learners' / str(number))

    def run(self) -> None:
        """Trains until the run has ended."""
        import ray

        learner, number, call = self.learner, self.number, self.synchroniser
        get: Any = ray.get  # its types do not know what actors return
        with self.checkpoints:
            at, done = get(call.begin.remote(number, here()))
            kept = _restored(self.checkpoints, at.saved, learner)
            learner.begin(at if kept is not None else at._replace(saved=-1), kept)
            wanted, waits = call.wanted.remote(number), {}
            saved, said = at.step, 0.0
            while not done:
                learner.train()
                if time.monotonic() - said > SIGN_OF_LIFE:
                    said = time.monotonic()
                    call.alive.remote(number, Sign(at.start, learner.step, here()))
                asked = get(wanted) if (news := bool(ray.wait([wanted], timeout=0)[0])) else []
                for fragment in sorted({*learner.due_now, *asked} - set(learner.sent)):
                    waits[fragment] = call.hand_in.remote(learner.hand_in(fragment))
                if news:
                    wanted = call.wanted.remote(number)
                closed = [p for p in learner.late if ray.wait([waits[p]], timeout=0)[0]]
                for fragment in [*learner.to_adopt, *closed]:
                    answer: Answer = get(waits.pop(fragment))
                    done |= answer.done
                    if not answer.done:
                        learner.adopt(fragment, answer.anchor, answer.version, answer.merged)
                        if not answer.merged:
                            waits[fragment] = call.hand_in.remote(learner.hand_in(fragment, late=True))
                if not done and learner.step >= saved + self.save_every:
                    saved = learner.step
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
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    residual = tuple(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), each.start())
        for each in learner.messengers
    )
    found = checkpoints.restore(Kept(learner.training.program.state.opt_state, residual))
    return found.state if found is not None and found.step == saved else None
