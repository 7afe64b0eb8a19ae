"""`jaxdist learners`: trains by independent learners and a synchroniser, on Ray."""

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from jaxdist.cli import options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.stopping import asked_to_stop
from jaxdist.cli.terminal import Terminal
from jaxdist.cluster.ray_local import ray_cluster
from jaxdist.core.errors import InputError
from jaxdist.learners.record import read_rounds
from jaxdist.learners.replay import replay
from jaxdist.learners.run import Ended, LearnersEvent, Shown, Started, run_learners
from jaxdist.learners.synchroniser import Quorum
from jaxdist.learners.terms import of_one_learner, terms_of
from jaxdist.report import bytes_text
from jaxdist.training.experiment import Experiment
from jaxdist.training.run_folder import code_of, new_folder
from jaxdist.training.train import prepare
from jaxdist.training.user_code import script_options


@dataclass(frozen=True)
class Learners:
    """Trains by independent learners, each with a JAX of its own, whose rounds close with a quorum.

    The update line ends in diloco or streaming_diloco. The config is a Python file, a run's folder (to resume that run)
    or an experiment.json (to repeat it); every field can be changed by an option.
    """

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    set: options.Settings = ()
    """Change one keyword inside the update line, such as diloco.every=50; may be given more than once."""
    script: options.Scripts = ()
    run: options.Folder = None
    """The run's folder; a run of this experiment in it is resumed. By default a new folder below runs/."""
    learners: int = 0
    """How many learners there are. By default as many as the mesh has workers: each is one."""
    quorum: int = 0
    """How many learners close a round. By default all."""
    grace: float = 0.5
    """Seconds that the others have from then on."""
    replay: options.Flag = False
    """Compute a run's rounds again from its record, in this process, and compare the anchors bit for bit."""
    compilation_cache: options.CompilationCache = ''


def main(arguments: list[str]) -> None:
    """Runs the command; ends with 128 + the signal's number if it was asked to stop."""
    path, rest = options.config_path(arguments, 'learners')
    folder = path if path is not None and path.is_dir() else None
    default = Learners(options.load_config(path, options.scripts(rest), 'learners'), run=folder)
    chosen = options.parse(default, rest, f'learners {path or "CONFIG"}')
    experiment = options.settled(chosen.experiment, chosen.set)
    if chosen.learners:
        mesh = dataclasses.replace(experiment.mesh, workers=chosen.learners)
        experiment = dataclasses.replace(experiment, mesh=mesh)
    options.start(of_one_learner(experiment))
    kept = keep_programs(chosen.compilation_cache)
    if chosen.replay:
        _replay(experiment, folder)
        return
    n = experiment.mesh.workers
    rule = Quorum(n, chosen.quorum or n, chosen.grace)
    _train(experiment, chosen.run or new_folder(Path('runs'), path.stem if path else 'run'), rule, kept)
