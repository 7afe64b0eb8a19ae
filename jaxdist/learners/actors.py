"""The actors of a run of learners: starts them on Ray, watches and ends them."""

import secrets
from types import ModuleType
from typing import Any

from jaxdist.core.errors import JaxdistError
from jaxdist.learners.calls import Settings, View
from jaxdist.learners.learner_actor import LearnerActor
from jaxdist.learners.synchroniser import Params
from jaxdist.learners.synchroniser_actor import SynchroniserActor

Process = tuple[int, int]
"""A process of a learner: the learner's index, and its own in the learner."""


class StartError(JaxdistError):
    """A learner or the synchroniser cannot start, as on a machine that lacks the data."""

    exit_code = 1


class Actors:
    """The actors of a run: the synchroniser, and of each learner one for each process.

    Args:
        ray: the module, connected to a cluster.
        settings: what the actors need.
        resources: a process's: `num_cpus`, `num_gpus`.
    """

    def __init__(self, ray: ModuleType, settings: Settings, resources: dict[str, float]) -> None:
        self.ray, always, token = ray, {'max_restarts': -1, 'max_task_retries': -1}, secrets.token_hex(8)
        # By name: Ray keeps a handle among a constructor's arguments where it is lost with its process.
        name = f'synchroniser-{token}'
        self.synchroniser = ray.remote(**always, num_cpus=0, name=name)(SynchroniserActor).remote(settings)
        # Two threads, so that its end is seen while it trains.
        made = ray.remote(**{**always, 'num_cpus': 0, 'max_concurrency': 2, **resources})(LearnerActor)
        self.learners: dict[Process, Any] = {}
        for k in range(settings.rule.learners):
            for p, place in enumerate(_places(settings.processes, resources)):
                options = {'name': f'learner-{k}-{p}-{token}', 'scheduling_strategy': place}
                self.learners[k, p] = made.options(**options).remote(settings, k, p, name)
        self.runs = [learner.run.remote() for learner in self.learners.values()]
        self.watched = {self._watch(process): process for process in self.learners}

    def look(self, since: int) -> View:
        """The synchroniser's view; raises what ended a learner, such as a mistake in the user's model."""
        for ended in self.ray.wait(self.runs, num_returns=len(self.runs), timeout=0)[0]:
            self._result(ended)
        view: View = self._result(self.synchroniser.view.remote(since))
        return view

    def lost(self) -> list[Process]:
        """The processes of learners that were lost since the last call."""
        ended = self.ray.wait(list(self.watched), num_returns=len(self.watched), timeout=0)[0]
        lost = [self.watched.pop(each) for each in ended]
        for process in lost:
            self.watched[self._watch(process)] = process
        return lost

    def _watch(self, process: Process) -> Any:
        return self.learners[process].watch.options(max_task_retries=0).remote()

    def anchor(self) -> Params:
        """The parameters."""
        return self._result(self.synchroniser.anchor.remote())

    def stop(self) -> None:
        """Ends the run."""
        self._result(self.synchroniser.stop.remote())

    def end(self) -> None:
        """Ends the processes, which have on disk what counts; those that end by themselves may finish a save."""
        self.ray.wait(self.runs, num_returns=len(self.runs), timeout=2)
        for each in [*self.learners.values(), self.synchroniser]:
            self.ray.kill(each)

    def _result(self, call: Any) -> Any:
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if error.cause is not None else error from None
        except self.ray.exceptions.RayActorError as error:  # others are started again, but not who cannot start
            raise StartError(f'a process could not start: {str(error).strip().splitlines()[-1]}') from error


def _places(processes: int, resources: dict[str, float]) -> list[Any]:
    """Where Ray starts the processes of a learner: in places that it reserves together.

    Otherwise two learners could each have a part of what they need, and wait for each other.
    """
    each = {name: n for name, n in zip(('CPU', 'GPU'), map(resources.get, ('num_cpus', 'num_gpus')), strict=True) if n}
    if processes == 1 or not each:
        return ['DEFAULT'] * processes
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([each] * processes)
    return [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=p) for p in range(processes)]
