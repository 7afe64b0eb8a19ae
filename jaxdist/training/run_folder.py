"""A run's folder: what is written there beside the checkpoints, and what can be read from it."""

import ast
import inspect
import json
import math
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdist import cluster, report
from jaxdist.core import registry
from jaxdist.core.errors import FileError
from jaxdist.training.experiment import Experiment, to_json
from jaxdist.training.monitor import Monitor
from jaxdist.training.objective import objective_lines
from jaxdist.training.train import Training


class Log:
    """The files of a run other than checkpoints; only process 0 writes.

    Args:
        folder: the run's, which must be there.
        begin: the step that the run goes on from: what was recorded after it is dropped, to be recorded again.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(Path(folder), begin=0)
    ...     _ = log.write({'step': 1, 'loss': 2.5})
    ...     [record['loss'] for record in read_records(Path(folder))]
    [2.5]
    """

    def __init__(self, folder: Path, begin: int) -> None:
        self.folder, self.path = folder, folder / 'metrics.jsonl'
        self.records = [r for r in read_records(folder) if r['step'] <= begin]
        self.writes = jax.process_index() == 0
        self.started = time.monotonic() - max((r['seconds'] for r in self.records), default=0.0)
        if self.writes:
            _replace(self.path, ''.join(_line(r) for r in self.records))

    @property
    def seconds(self) -> float:
        """Seconds that the run has trained, all its starts together."""
        return round(time.monotonic() - self.started, 3)

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Appends a record to `metrics.jsonl`, with the seconds trained so far, and returns it."""
        record = {**record, 'seconds': self.seconds}
        self.records.append(record)
        if self.writes:
            _append(self.path, _line(record))
        return record

    def describe(self, training: Training, command: str) -> None:
        """Writes `run.json` and `experiment.json`; commands that the run was started with before are kept."""
        if self.writes:
            path = self.folder / 'run.json'
            before = json.loads(path.read_text()).get('commands', []) if path.exists() else []
            facts = describe(training, [*before, command], self.folder)
            _replace(path, json.dumps(facts, indent=2) + '\n')
            _replace(self.folder / 'experiment.json', json.dumps(to_json(training.experiment), indent=2) + '\n')

    def conclude(self, verdicts: Mapping[str, Any]) -> None:
        """Writes `verdict.json`, the outcome by name, if there is any; each is a NamedTuple."""
        if self.writes and verdicts:
            text = json.dumps(_plain({name: verdict._asdict() for name, verdict in verdicts.items()}), indent=2)
            _replace(self.folder / 'verdict.json', text + '\n')

    def plot(self, training: Training, monitor: Monitor | None = None) -> str:
        """Draws `loss.png`, and the monitor's plot if there is one; returns why it could not, or nothing."""
        data = training.data
        try:
            if self.writes:
                report.loss_plot(self.records, self.folder / 'loss.png', (data.baseline_name, data.baseline))
                if monitor is not None:
                    monitor.plot(self.records)
        except ImportError as missing:  # an optional extra; the run is none the worse for it
            return str(missing)
        return ''


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; none if there is no such file. A last line cut short is left out.

    Numbers that were not finite come back as None: JSON has no word for them.

    >>> read_records(Path('nowhere'))
    []
    """
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def describe(training: Training, commands: list[str], folder: Path) -> dict[str, Any]:
    """What a reader needs to trust a run or make it again: versions, commit, devices, data, commands.

    >>> from jaxdist.training.experiment import Digits, Experiment, Mesh, Perceptron
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> describe(prepare(small), [], Path('runs/x'))['resume']
    'jaxdist train runs/x'
    """
    packages = ('jaxdist', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'commands': commands,
        'repeat': f'jaxdist train {shlex.quote(str(folder / "experiment.json"))}',
        'resume': f'jaxdist train {shlex.quote(str(folder))}',
        'versions': {'python': platform.python_version(), **{name: metadata.version(name) for name in packages}},
        'commit': _commit(),
        'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
        'data': training.data.facts,
        'baseline': {training.data.baseline_name: training.data.baseline},
        'scripts': scripts(*lines(training.experiment)),
    }


def lines(experiment: Experiment) -> list[str]:
    """Every line of an experiment: the update's, and those of its objective.

    >>> lines(Experiment(update='mean() | sgd(0.1)'))
    ['mean() | sgd(0.1)', 'sgd(0.01)', '0.0']
    """
    return [experiment.update, *objective_lines(experiment)]


def scripts(*texts: str) -> list[str]:
    """The files outside of jaxdist that define what lines call, relative to where we are if they lie below.

    >>> scripts('mean(codec=int8()) | sgd(0.1)')
    []
    """
    nodes = (node for text in texts for node in ast.walk(ast.parse(text, mode='eval')))
    calls = (ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call))
    found = [entry for name in calls if isinstance(entry := registry.find(name), registry.Entry)]
    files = {Path(inspect.getfile(entry.make)).resolve() for entry in found}
    own = Path(__file__).resolve().parents[1]
    paths = sorted(path for path in files if own not in path.parents)
    return [str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path) for path in paths]


def new_folder(parent: Path, name: str) -> Path:
    """A folder `NAME-1`, `NAME-2`, ... below `parent` that is not there yet; the same for all processes.

    >>> new_folder(Path('nowhere'), 'quickstart')
    PosixPath('nowhere/quickstart-1')
    """
    taken = [int(end) for p in parent.glob(f'{name}-*') if (end := p.name.removeprefix(f'{name}-')).isdecimal()]
    return parent / f'{name}-{cluster.agree(max(taken, default=0) + 1)}'


def _line(record: dict[str, Any]) -> str:
    """A record as a line of JSON."""
    return json.dumps(_plain(record), allow_nan=False) + '\n'


def _plain(value: Any) -> Any:
    """What JSON can say, with null for a number that is not finite."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _append(path: Path, text: str) -> None:
    try:
        with path.open('a') as file:
            file.write(text)
    except OSError as error:  # a full disk does not say which file it was
        raise FileError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, text: str) -> None:
    """Writes the file in one move: who reads it meanwhile, or is killed, finds the old one or the new one."""
    new = path.with_name(f'{path.name}.new')
    new.unlink(missing_ok=True)
    _append(new, text)
    os.replace(new, path)


def _commit() -> str | None:
    """The commit of jaxdist's sources, with `+changes` where they differ from it; None if they are not in git."""
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+changes' if changes.strip() else '')
