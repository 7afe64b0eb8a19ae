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
from jaxdist.cluster.errors import listed
from jaxdist.cluster.options import RayOptions
from jaxdist.cluster.ray_local import check_resources, ray_cluster
from jaxdist.core.errors import InputError
from jaxdist.learners.book import Ended, LearnersEvent, Shown, Started
from jaxdist.learners.progress import Quorum
from jaxdist.learners.record import read_rounds
from jaxdist.learners.replay import ReplayError, replay
from jaxdist.learners.rounds import check_rule
from jaxdist.learners.run import check_folder, run_learners
from jaxdist.learners.terms import check_processes, emulated, of_one_learner, terms_of
from jaxdist.report import bytes_text
from jaxdist.training.experiment import Experiment
from jaxdist.training.run_folder import code_of, new_folder
from jaxdist.training.user_code import script_options

ROUNDED = 1e-2
"""How far a loss may be from the recorded one, relative to it, where learners had several processes."""


@dataclass(frozen=True)
class Learners(options.OneRun):
    """Trains by independent learners, each its own process, whose rounds close with a quorum.

    The update line ends in diloco or streaming_diloco. The config is a Python file, a run's folder (to resume that run)
    or an experiment.json (to repeat it); every field can be changed by an option.
    """

    learners: int = 0
    """How many learners there are. By default as many as the mesh has workers: each is one."""
    processes: int = 1
    """How many processes each learner has: they share its devices, as on several machines."""
    quorum: int = 0
    """How many learners close a round. By default all."""
    grace: float = 0.5
    """Seconds that the others have from then on."""
    replay: options.Flag = False
    """Compute a run's rounds again from its record, in this process, and compare the anchors bit for bit."""
    ray: RayOptions = field(default_factory=RayOptions)


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
    n = experiment.mesh.workers
    if chosen.replay:
        _replay(experiment, folder, chosen.compilation_cache)
        return
    rule = Quorum(n, chosen.quorum or n, chosen.grace)
    folder = chosen.run or new_folder(Path('runs'), path.stem if path else 'run')
    _train(experiment, folder, rule, chosen)


def _train(experiment: Experiment, folder: Path, rule: Quorum, chosen: Learners) -> None:
    resume = f'jaxdist learners {shlex.quote(str(folder))}{script_options(code_of(experiment))}'
    resources = {'num_cpus': chosen.ray.cpus, 'num_gpus': chosen.ray.gpus}
    # Mistakes are shown before Ray starts, which takes seconds; JAX starts after it, for Ray forks.
    check_rule(rule)
    terms_of(experiment)
    one = of_one_learner(experiment)
    check_processes(one, chosen.processes)
    check_folder(experiment, folder)
    with ray_cluster(chosen.ray.address, num_cpus=rule.learners * chosen.processes * chosen.ray.cpus) as ray:
        check_resources(ray.nodes(), chosen.ray)
        options.start(one if chosen.processes == 1 else emulated(one))
        view = _View(experiment, folder, chosen.processes)
        view.print(keep_programs(chosen.compilation_cache, several=chosen.processes > 1))
        with asked_to_stop() as stop:
            for event in run_learners(
                *(experiment, folder, rule, ray),
                processes=chosen.processes,
                resources=resources,
                command=options.command_line(),
                stop=stop,
            ):
                view.show(event)
        if event.kind == 'stopped':
            view.print(f'stopped; {event.value.rounds} rounds are saved. Resume with:\n  {resume}')
            sys.exit(stop.code)
        view.print(_ending(event.value, folder, f'{resume} --steps {2 * experiment.steps}'))


def _ending(ended: Ended, folder: Path, longer: str) -> str:
    if ended.goodput is None:
        return f'{folder} has already taken its {ended.step} steps. Train longer with:\n  {longer}'
    files = f'no loss.png ({ended.problem})' if ended.problem else 'loss.png'
    return (
        f'{ended.goodput.words}\ndone; in {folder}: rounds.jsonl, metrics.jsonl, {files}, checkpoints. '
        f'Train longer with:\n  {longer}'
    )


class _View:
    """The output: a line for the rounds of every `log_every` steps, and one for each learner lost or back."""

    def __init__(self, experiment: Experiment, folder: Path, processes: int) -> None:
        self.experiment, self.folder, self.processes, self.terminal = experiment, folder, processes, Terminal()
        self.shown = 0
        self.lost: dict[int, float] = {}

    def print(self, text: str) -> None:
        """Prints a line that is not empty."""
        if text:
            self.terminal.print(text, markup=False, soft_wrap=True)

    def show(self, event: LearnersEvent) -> None:
        """Prints an event."""
        match event:
            case LearnersEvent('ready', started):
                self._ready(started)
            case LearnersEvent('round', shown):
                self._round(shown)
            case LearnersEvent('here', (name, where)):
                self.print(f'{name} is {where}')
            case LearnersEvent('lost', (k, where)):
                self.lost[k] = time.monotonic()
                self.print(f'learner {k} was lost ({where}); Ray starts it again')
            case LearnersEvent('back', (k, sign)):
                after = f' after {time.monotonic() - self.lost.pop(k):.1f} s' if k in self.lost else ''
                self.print(f'learner {k} is back at step {sign.step}{after} (start {sign.start})')
            case LearnersEvent('missing', (k, processes)):
                self.print(f'learner {k} waits for its {listed(processes)}: Ray has not started what it needs')
            case LearnersEvent('held_out', record):
                scores = '  '.join(f'{name} {value:.4f}' for name, value in sorted(record['held_out'].items()))
                self.print(f'step {record["step"]}  held-out: {scores}')

    def _ready(self, started: Started) -> None:
        (n, quorum, grace), p = started.rule, self.processes
        self.print(f'{self.folder}: {self.experiment.update}')
        after = f', the others {grace:g} s later' if quorum < n else ''
        self.print(
            f'{n} learners, each {f"{p} processes" if p > 1 else "a process"}; a round closes with {quorum}{after}'
        )
        if started.rounds:
            self.print(f'resumed after {started.rounds} rounds')

    def _round(self, shown: Shown) -> None:
        every = self.experiment.log_every
        if shown.step // every == self.shown // every:
            return
        self.shown = shown.step
        merged = ' '.join(str(each['learner']) for each in shown.round.learners)
        steps = ' '.join(str(shown.signs[k].step) for k in sorted(shown.signs))
        self.print(
            f'round {shown.round.number}  step {shown.step}/{self.experiment.steps}  loss {shown.round.loss:.4f}  '
            f'merged {merged}  learners at {steps}  {shown.goodput.share:.0%} goodput  '
            f'{bytes_text(shown.round.received)} received'
        )


def _replay(experiment: Experiment, folder: Path | None, cache: str) -> None:
    """Replays the run of a folder, in one process: where learners had several, on emulated devices."""
    if folder is None or not (rounds := read_rounds(folder)):
        raise InputError('--replay computes the rounds of a run again: give the folder of a run that has some')
    check_folder(experiment, folder)
    one = of_one_learner(experiment)
    options.start(emulated(one) if any(each.processes > 1 for each in rounds) else one)
    keep_programs(cache)
    equal, difference, several = 0, 0.0, False
    for each in replay(experiment, rounds):
        equal, difference = equal + each.equal, max(difference, each.difference)
        several |= each.round.processes > 1  # from then on, for its rounding stays in the anchors
        if not each.equal and not (several and each.difference < ROUNDED):
            raise ReplayError(
                f'round {each.round.number} gives another anchor ({each.digest}, and a loss of {each.loss:.6g}) than '
                f'the run had ({each.round.digest}, {each.round.loss:.6g}): another machine, version or program rounds '
                'otherwise'
            )
    found = 'all anchors are equal, bit for bit'
    if equal < len(rounds):
        found = (
            f'{equal} anchors are equal bit for bit, and losses within {difference:.1e}: the learners had several '
            'processes, which add in another order'
        )
    Terminal().print(f'{len(rounds)} rounds of {folder} computed again: {found}', markup=False, soft_wrap=True)
