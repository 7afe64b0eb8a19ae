"""A run's folder: writes and reads the files other than checkpoints."""

import ast
import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdist import cluster, report
from jaxdist.core import files, registry
from jaxdist.core.types import Model
from jaxdist.training.alike import versions
from jaxdist.training.commit import commit
from jaxdist.training.experiment import Experiment, ExperimentError, differences, from_json, read_json, to_json
from jaxdist.training.monitor import Monitor
from jaxdist.training.objective import objective_lines
from jaxdist.training.train import Training
from jaxdist.training.user_code import UserCode, script_options, user_code

FILES = (
    *('experiment.json', 'run.json', 'metrics.jsonl', 'starts.json', 'verdict.json', 'result.json', 'code'),
    *('loss.png', 'constraints.png'),
)
"""What runs write in their folder, other than the lock and checkpoints."""


class Log:
    """The files of a run other than checkpoints; only process 0 writes.

    Args:
        folder: the run's folder, which must exist.
        begin: the step that the run resumes from; records of later steps are dropped, to be recorded again.

    Raises:
        FileError: a file that a run writes is a symbolic link, or no regular file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(Path(folder), begin=0)
    ...     _ = log.write({'step': 1, 'loss': 2.5})
    ...     [record['loss'] for record in read_records(Path(folder))]
    [2.5]
    """

    def __init__(self, folder: Path, begin: int) -> None:
        _refuse_links(folder)
        self.folder, self.path = folder, folder / 'metrics.jsonl'
        self.records = [r for r in read_records(folder) if r['step'] <= begin]
        self.writes = jax.process_index() == 0
        self.seen = self.path.stat().st_mtime if self.path.exists() else None
        self.started = time.monotonic() - max((r['seconds'] for r in self.records), default=0.0)
        self._rewrite()

    @property
    def seconds(self) -> float:
        """Seconds of training since the run's first start, without the time in between."""
        return round(time.monotonic() - self.started, 3)

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Appends a record to `metrics.jsonl`, with the seconds trained so far, and returns it."""
        record = {**record, 'seconds': self.seconds}
        self.records.append(record)
        if self.writes:
            files.write(self.path, _line(record), append=True)
        return record

    def rewind(self, step: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Drops the records of later steps, which the run takes back, and writes and returns one with these facts."""
        kept = [record for record in self.records if record['step'] <= step]
        self.records = [*kept, {'step': step, 'rewind': facts, 'seconds': self.seconds}]
        self._rewrite()
        return self.records[-1]

    def _rewrite(self) -> None:
        if self.writes:
            files.replace(self.path, ''.join(_line(r) for r in self.records))

    def describe(self, training: Training, command: str) -> list[str]:
        """Writes `run.json`, `experiment.json` and a copy of the user's code; the commands of earlier starts are kept.

        Returns:
            The names of files of the code that have changed since an earlier start: their former text is kept beside
            them.
        """
        changed = []
        if self.writes:
            path = self.folder / 'run.json'
            before = read_facts(self.folder).get('commands', [])
            facts = describe(training, [*before, command], self.folder)
            files.replace(path, json.dumps(facts, indent=2) + '\n')
            files.replace(self.folder / 'experiment.json', json.dumps(to_json(training.experiment), indent=2) + '\n')
            for name, file in code_of(training.experiment).files.items():
                changed += [name] * _copy(file, self.folder / 'code' / name)
        return changed

    def conclude(self, verdicts: Mapping[str, Any]) -> None:
        """Writes the verdicts, NamedTuples by name, to `verdict.json`, if there are any."""
        if self.writes and verdicts:
            text = json.dumps(_plain({name: verdict._asdict() for name, verdict in verdicts.items()}), indent=2)
            files.replace(self.folder / 'verdict.json', text + '\n')

    def _metrics(self, model: Model) -> dict[str, str]:
        """The metrics beside the loss that all evaluations have, and which of their values are better."""
        every = [record['held_out'] for record in self.records if 'held_out' in record] or [{}]
        names = [name for name in every[0] if name != 'loss' and all(name in each for each in every)]
        return {name: model.metrics[name].better if name in model.metrics else '' for name in names}

    def plot(self, training: Training, monitor: Monitor | None = None) -> str:
        """Draws `loss.png`, and the monitor's plot if there is one; returns the reason if it cannot, else ''."""
        data = training.data
        try:
            if self.writes:
                baseline, metrics = (data.baseline_name, data.baseline), self._metrics(training.model)
                report.loss_plot(self.records, self.folder / 'loss.png', baseline, metrics)
                if monitor is not None:
                    monitor.plot(self.records)
        except ImportError as missing:  # plots need an optional extra; a run must not fail for lack of it
            return str(missing)
        return ''


def check_experiment(experiment: Experiment, folder: Path, meta: dict[str, Any] | None) -> None:
    """Checks that a folder has no run of another experiment.

    Args:
        experiment: the experiment.
        folder: the run's folder.
        meta: the meta of its newest checkpoint; None if it has none.

    Raises:
        ExperimentError: it has one; the message names the fields that differ.

    >>> check_experiment(Experiment(), Path('nowhere'), None)
    """
    path = folder / 'experiment.json'
    if meta is None and not path.exists():
        return
    # Checkpoints come first: experiment.json may have been edited since.
    data = meta['experiment'] if meta else read_json(path)
    differ = differences(experiment, from_json(data, known=(type(experiment.model), type(experiment.data))))
    if differ:
        raise ExperimentError(
            f'{folder} contains a run of another experiment; they differ in\n  ' + '\n  '.join(differ) + '\n'
            'Choose another folder, or resume the saved experiment.'
        )


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a run in its `run.json`; {} if there are none.

    >>> read_facts(Path('nowhere'))
    {}
    """
    path = folder / 'run.json'
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return facts


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; none if there is no such file. An incomplete last line is ignored.

    Numbers that were not finite are None: JSON cannot represent them.

    >>> read_records(Path('nowhere'))
    []
    """
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def describe(training: Training, commands: list[str], folder: Path) -> dict[str, Any]:
    """The provenance of a run, from which it can be repeated: versions, commit, devices, data, commands.

    Args:
        training: the run's prepared experiment.
        commands: the command lines of the run's starts.
        folder: the run's folder.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> describe(prepare(small), [], Path('runs/x'))['resume']
    'jaxdist train runs/x'
    """
    code = code_of(training.experiment)
    scripts = script_options(code)
    return {
        'commands': commands,
        'repeat': f'jaxdist train {shlex.quote(str(folder / "experiment.json"))}{scripts}',
        'resume': f'jaxdist train {shlex.quote(str(folder))}{scripts}',
        'versions': versions(),
        'commit': commit(),
        'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
        'data': training.data.facts,
        'baseline': {training.data.baseline_name: training.data.baseline},
        **{name: getattr(code, name) for name in ('scripts', 'modules', 'imports', 'installed')},
    }


def lines(experiment: Experiment) -> list[str]:
    """All lines of an experiment: the update line, that of the model state, the dual line, penalty and constraints.

    >>> lines(Experiment(update='mean() | sgd(0.1)'))
    ['mean() | sgd(0.1)', 'sgd(0.01)', '0.0']
    """
    return [experiment.update, *filter(None, [experiment.state_sync]), *objective_lines(experiment)]


def code_of(experiment: Experiment) -> UserCode:
    """The files outside jaxdist that define calls of the experiment's lines, its model or its data.

    >>> code_of(Experiment()).files
    {}
    """
    nodes = (node for text in lines(experiment) for node in ast.walk(ast.parse(text, mode='eval')))
    calls = (ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call))
    entries = [entry.make for name in calls if isinstance(entry := registry.find(name), registry.Entry)]
    return user_code(*entries, *_classes(experiment))


def _classes(value: Any) -> Iterator[type]:
    """The classes of a dataclass and of the dataclasses in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _classes(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _classes(entry)


def new_folder(parent: Path, name: str) -> Path:
    """The next unused folder `NAME-1`, `NAME-2`, ... below `parent`; the same in all processes.

    >>> new_folder(Path('nowhere'), 'quickstart')
    PosixPath('nowhere/quickstart-1')
    """
    taken = [int(end) for p in parent.glob(f'{name}-*') if (end := p.name.removeprefix(f'{name}-')).isdecimal()]
    return parent / f'{name}-{cluster.agree(max(taken, default=0) + 1)}'


def _line(record: dict[str, Any]) -> str:
    """A record as one line of JSON."""
    return json.dumps(_plain(record), allow_nan=False) + '\n'


def _plain(value: Any) -> Any:
    """A record with None, JSON's null, for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_links(folder: Path) -> None:
    """Refuses links where a run writes, at its start: a folder that came from a stranger may have some."""
    for name in FILES:
        files.refuse_link(folder / name)
        files.refuse_link(folder / f'{name}.new')
    for at, folders, names in os.walk(folder / 'code'):
        for name in [*folders, *names]:
            files.refuse_link(Path(at, name))


def _copy(file: Path, to: Path) -> bool:
    """Copies a file of code; returns whether there was another text, which is then kept in `NAME.1`, `NAME.2`, ..."""
    to.parent.mkdir(parents=True, exist_ok=True)
    text, former = file.read_text(), to.read_text() if to.exists() else None
    if text == former:
        return False
    if former is not None:
        taken = len(list(to.parent.glob(f'{to.name}.*')))
        os.replace(to, to.with_name(f'{to.name}.{taken + 1}'))
    files.replace(to, text)
    return former is not None
