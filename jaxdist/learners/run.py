"""Runs of learners: starts their actors on Ray, and writes the run's folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jaxdist.core.errors import InputError
from jaxdist.data.streams import Stream
from jaxdist.learners.actors import Actors
from jaxdist.learners.book import Book, LearnersEvent, Started
from jaxdist.learners.calls import Settings, tokens_a_step
from jaxdist.learners.progress import Quorum, first_progress, from_json, total_tokens
from jaxdist.learners.rounds import check_rule
from jaxdist.learners.synchroniser import Synchroniser
from jaxdist.learners.terms import check_processes, of_one_learner, terms_of
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
    processes: int = 1,
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
        processes: the processes of a learner, which share its devices as one program of JAX.
        resources: a process's: `num_cpus`, `num_gpus`.
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
    check_processes(of_one_learner(experiment), processes)
    terms, training = terms_of(experiment), prepare(of_one_learner(experiment))
    first = first_progress(terms.learners, terms.fragments)
    Synchroniser(terms, training.program.state.params)
    _check_state(training)
    _check_data(training, processes)
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
                processes,
            )
            actors = Actors(ray, settings, resources)
            try:
                yield from book.watch(actors, stop)
            finally:
                actors.end()
        yield book.end()


def _check_state(training: Training) -> None:
    """Refuses a model with a state, such as running statistics: learners would each have another."""
    if jax.tree.leaves(training.program.state.model):
        raise ExperimentError(
            'the model has a state beside its parameters, which learners do not synchronise: take a model without one, '
            'or jaxdist train'
        )


def _check_data(training: Training, processes: int) -> None:
    batch = training.data.batch
    if processes > 1 and isinstance(batch, Stream) and batch.per_process:
        raise InputError(
            'the data are read in parts, one by each process of a run: the processes of a learner read whole batches '
            '(per_process=False), or use jaxdist train'
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
