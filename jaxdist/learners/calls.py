"""What the processes of a run of learners need to start, and what they send each other."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdist.learners.progress import Quorum
from jaxdist.learners.record import Round
from jaxdist.learners.synchroniser import Params
from jaxdist.learners.terms import Terms, of_one_learner, terms_of
from jaxdist.training.experiment import Experiment, from_json
from jaxdist.training.layout_settings import check_devices
from jaxdist.training.run_code import Commands, run_code
from jaxdist.training.train import Training, prepare


class Settings(NamedTuple):
    """What an actor needs.

    Attributes:
        experiment: as JSON data; each worker of its mesh is a learner.
        code: the user's code, which the folder's `run.json` records; see `jaxdist.training.run_code`.
        folder: the run's folder.
        rule: when a round closes.
        jax: settings of JAX, such as the folder of compiled programs.
        processes: the processes of a learner, which share its devices.
    """

    experiment: dict[str, Any]
    code: list[str]
    folder: str
    rule: Quorum
    jax: dict[str, Any]
    processes: int = 1


class Prepared(NamedTuple):
    """An actor's experiment, prepared.

    Attributes:
        whole: the experiment of all learners.
        training: that of one learner.
        terms: how learners and synchroniser work together.
    """

    whole: Experiment
    training: Training
    terms: Terms


class Answer(NamedTuple):
    """The synchroniser's answer to an arrival.

    Attributes:
        anchor: the fragment's anchor: the tree with None for the tensors of other fragments.
        version: the closed rounds of the fragment.
        merged: whether the arrival is in it.
        done: whether the run has ended.
    """

    anchor: Params
    version: int
    merged: bool
    done: bool


class Sign(NamedTuple):
    """A sign of life of a learner.

    Attributes:
        start: which of its starts this is.
        step: its steps so far.
        where: its processes, each with its machine.
    """

    start: int
    step: int
    where: tuple[str, ...]


class View(NamedTuple):
    """What the synchroniser shows.

    Attributes:
        rounds: the rounds that have closed since the last view.
        signs: the last sign of life of each learner that gave one.
        where: the synchroniser's process and machine.
        begun: when a learner first began, as `time.time()`; 0 before.
        done: whether the run has ended.
        missing: the processes, by learner, for which others of the learner have waited for long.
    """

    rounds: list[Round]
    signs: dict[int, Sign]
    where: str
    begun: float
    done: bool
    missing: dict[int, list[int]]


def prepared(settings: Settings, processes: int = 1, join: Callable[[], None] = lambda: None) -> Prepared:
    """Sets up JAX in this process, and prepares the experiment.

    Args:
        settings: what the actor needs.
        processes: how many share a learner's devices; 1 for a process that has none of them and emulates all.
        join: joins them, before JAX starts.

    Raises:
        InputError: the processes together do not have the devices of a learner.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh, to_json
    >>> two = Mesh(workers=2, simulate=True)
    >>> line = 'sgd(0.1) | diloco(every=5, outer=sgd(0.7))'
    >>> small = Experiment(update=line, model=Perceptron(hidden=(4,)), data=Digits(), mesh=two, batch=8)
    >>> found = prepared(Settings(to_json(small), [], 'nowhere', Quorum(2, 1), {}))
    >>> found.terms.learners, found.training.workers.count
    (2, 1)
    """
    run_code(Path(settings.folder), settings.code, Commands('jaxdist learners', 'jaxdist learners CONFIG.py'))
    whole = from_json(settings.experiment)
    one = of_one_learner(whole)
    for name, value in settings.jax.items():
        jax.config.update(name, value)
    if one.mesh.emulate or processes < settings.processes:
        jax.config.update('jax_num_cpu_devices', one.mesh.devices // processes)
        jax.config.update('jax_platforms', 'cpu')
    join()
    check_devices(one.mesh)
    return Prepared(whole, prepare(one), terms_of(whole))


def here() -> str:
    """This process, and its machine.

    >>> here().startswith('process ')
    True
    """
    return f'process {os.getpid()} on {platform.node()}'


def tokens_a_step(whole: Experiment, training: Training) -> int:
    """Tokens, or for other data examples, of a step of all learners.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> two = Mesh(workers=2, simulate=True)
    >>> line = 'sgd(0.1) | diloco(every=5, outer=sgd(0.7))'
    >>> small = Experiment(update=line, model=Perceptron(hidden=(4,)), data=Digits(), mesh=two, batch=8)
    >>> tokens_a_step(small, prepare(of_one_learner(small)))
    8
    """
    task = training.data.task
    return whole.batch * (task.shape[0] if task.kind == 'tokens' else 1)
