"""Runs of learners: starts their actors on Ray, and writes the run's folder."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jaxdist.core.errors import JaxdistError
from jaxdist.learners.book import Book, LearnersEvent, Started
from jaxdist.learners.calls import Settings, View, tokens_a_step
from jaxdist.learners.learner_actor import LearnerActor
from jaxdist.learners.progress import Quorum, first_progress, from_json, total_tokens
from jaxdist.learners.rounds import check_rule
from jaxdist.learners.synchroniser import Params, Synchroniser
from jaxdist.learners.synchroniser_actor import SynchroniserActor
from jaxdist.learners.terms import of_one_learner, terms_of
from jaxdist.training.alike import check_data
from jaxdist.training.checkpoint import Checkpoints, lock
from jaxdist.training.experiment import Experiment, ExperimentError, to_json
from jaxdist.training.run_folder import Log, check_experiment, code_of
from jaxdist.training.train import Training, prepare
from jaxdist.training.user_code import to_name

SETTINGS = (
    *('jax_compilation_cache_dir', 'jax_enable_compilation_cache', 'jax_persistent_cache_min_compile_time_secs'),
    'jax_persistent_cache_enable_xla_caches',
)
"""Settings of JAX that actors take from their starter: a learner that returns has its programs at once."""


def run_learners(
    experiment: Experiment,
    folder: Path,
    rule: Quorum,
    ray: ModuleType,
    *,
    resources: dict[str, float] = {},  # noqa: B006
    command: str = '',
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[LearnersEvent]:
    """Trains by learners, each its own process, and yields events; resumes the folder's run if there is one.

    The folder gets what a run's has, and `rounds.jsonl`, a line for each closed round, from which `replay` computes the
    run again. Its checkpoints have the anchor and the outer state. The run ends when the learners have together
    trained on the tokens of `steps` steps of the whole batch; with another number of learners than before, those that
    are new begin where the furthest is.

    Args:
        experiment: the experiment; each worker of its mesh is a learner.
        folder: the run's folder, created if missing, on a file system that all learners see.
        rule: when a round closes.
        ray: the module, connected to a cluster; see `jaxdist.cluster.ray_local.ray_cluster`.
        resources: a learner's: `num_cpus`, `num_gpus`.
        command: the command line, for the record.
        stop: called a few times a second; True ends the run. Steps since the last rounds are taken again by the next
            start.

    Raises:
        InputError: the update line, the mesh or the rule is not one for learners.
        ExperimentError: the folder has a run of another experiment.
        DataChangedError: the data are not those that the run began with.
        CheckpointError: the folder is in use or cannot be written, or every checkpoint in it is damaged.

    >>> import types
    >>> list(run_learners(Experiment(), Path('nowhere'), Quorum(4, 5), types))
    Traceback (most recent call last):
    jaxdist.InputError: quorum=5 must be from 1 to the number of learners, 4: a round closes when so many have handed in
    """
    check_rule(rule)
    terms, training = terms_of(experiment), prepare(of_one_learner(experiment))
    first = first_progress(terms.learners, terms.fragments)
    Synchroniser(terms, training.program.state.params)
    _check_state(training)
    folder = folder.absolute()
    with lock(folder):
        meta = check_folder(experiment, folder)
        check_data(training, (meta or {}).get('data', {}))
        progress = from_json(meta['progress']) if meta else first
        a_step = tokens_a_step(experiment, training)
        log = Log(folder, total_tokens(progress) // a_step)
        log.describe(training._replace(experiment=experiment), command)
        yield LearnersEvent('ready', Started(training, progress.rounds, rule))
        book = Book(experiment, training, log)
        if total_tokens(progress) < experiment.steps * a_step:
            names: Any = jax.config
            settings = Settings(
                to_json(experiment),
                [str(Path(name).resolve()) if name.endswith('.py') else name for name in to_name(code_of(experiment))],
                str(folder),
                rule,
                {name: getattr(names, name) for name in SETTINGS},
            )
            actors = _Actors(ray, settings, terms.learners, resources)
            try:
                yield from book.watch(actors, stop)
            finally:
                actors.end()
        yield book.end()


class StartError(JaxdistError):
    """A learner or the synchroniser cannot start, as on a machine that lacks the data."""

    exit_code = 1


class _Actors:
    """The actors of a run."""

    def __init__(self, ray: ModuleType, settings: Settings, learners: int, resources: dict[str, float]) -> None:
        self.ray, always = ray, {'max_restarts': -1, 'max_task_retries': -1}
        # By name: Ray keeps a handle among a constructor's arguments where it is lost with its process.
        name = f'synchroniser-{secrets.token_hex(8)}'
        self.synchroniser = ray.remote(**always, num_cpus=0, name=name)(SynchroniserActor).remote(settings)
        # Two threads, so that its end is seen while it trains.
        options = {**always, 'num_cpus': 0, 'max_concurrency': 2, **resources}
        made = ray.remote(**options)(LearnerActor)
        self.learners = [made.remote(settings, k, name) for k in range(learners)]
        self.runs = [learner.run.remote() for learner in self.learners]
        self.watched = {self._watch(k): k for k in range(learners)}

    def look(self, since: int) -> View:
        """The synchroniser's view; raises what ended a learner, such as a mistake in the user's model."""
        for ended in self.ray.wait(self.runs, num_returns=len(self.runs), timeout=0)[0]:
            self._result(ended)
        view: View = self._result(self.synchroniser.view.remote(since))
        return view

    def lost(self) -> list[int]:
        """The learners whose processes were lost since the last call."""
        ended = self.ray.wait(list(self.watched), num_returns=len(self.watched), timeout=0)[0]
        numbers = [self.watched.pop(each) for each in ended]
        for k in numbers:
            self.watched[self._watch(k)] = k
        return numbers

    def _watch(self, k: int) -> Any:
        return self.learners[k].watch.options(max_task_retries=0).remote()

    def anchor(self) -> Params:
        """The parameters."""
        return self._result(self.synchroniser.anchor.remote())

    def stop(self) -> None:
        """Ends the run."""
        self._result(self.synchroniser.stop.remote())

    def end(self) -> None:
        """Ends the processes, which have on disk what counts; those that end by themselves may finish a save."""
        self.ray.wait(self.runs, num_returns=len(self.runs), timeout=2)
        for each in [*self.learners, self.synchroniser]:
            self.ray.kill(each)

    def _result(self, call: Any) -> Any:
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if error.cause is not None else error from None
        except self.ray.exceptions.RayActorError as error:  # others are started again, but not who cannot start
            raise StartError(f'a process could not start: {str(error).strip().splitlines()[-1]}') from error


def _check_state(training: Training) -> None:
    """Refuses a model with a state, such as running statistics: learners would each have another."""
    if jax.tree.leaves(training.program.state.model):
        raise ExperimentError(
            'the model has a state beside its parameters, which learners do not synchronise: take a model without one, '
            'or jaxdist train'
        )


def check_folder(experiment: Experiment, folder: Path) -> dict[str, Any] | None:
    """The meta of the newest checkpoint of a folder, None for a new one; JAX need not have started.

    Raises:
        ExperimentError: the folder contains a run of another experiment, or one of `jaxdist train`.

    >>> check_folder(Experiment(), Path('nowhere'))
    """
    meta = Checkpoints(folder / 'checkpoints').meta()
    if meta is not None and 'learners' not in meta:
        raise ExperimentError(f'{folder} contains a run of jaxdist train: choose another folder for learners')
    check_experiment(experiment, folder, meta)
    return meta
