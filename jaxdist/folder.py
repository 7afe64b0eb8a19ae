"""A run's folder: what is written there beside the checkpoints, and what can be read from it."""

import json
import platform
import shlex
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdist import cluster, report
from jaxdist.experiment import to_json
from jaxdist.train import Training


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
            self.path.write_text(''.join(json.dumps(r) + '\n' for r in self.records))

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Appends a record to `metrics.jsonl`, with the seconds trained so far, and returns it."""
        record = {**record, 'seconds': round(time.monotonic() - self.started, 3)}
        self.records.append(record)
        if self.writes:
            with self.path.open('a') as file:
                file.write(json.dumps(record) + '\n')
        return record

    def describe(self, training: Training, command: str) -> None:
        """Writes `run.json` and `experiment.json`."""
        if self.writes:
            facts = describe(training, command, self.folder)
            (self.folder / 'run.json').write_text(json.dumps(facts, indent=2) + '\n')
            (self.folder / 'experiment.json').write_text(json.dumps(to_json(training.experiment), indent=2) + '\n')

    def plot(self, training: Training) -> None:
        """Draws `loss.png`."""
        if self.writes:
            data = training.data
            report.loss_plot(self.records, self.folder / 'loss.png', (data.baseline_name, data.baseline))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; none if there is no such file. A last line cut short is left out.

    >>> read_records(Path('nowhere'))
    []
    """
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def describe(training: Training, command: str, folder: Path) -> dict[str, Any]:
    """What a reader needs to trust a run or make it again: versions, commit, devices, data, commands.

    >>> from jaxdist.experiment import Digits, Experiment, Mesh, Perceptron
    >>> from jaxdist.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> describe(prepare(small), '', Path('runs/x'))['resume']
    'jaxdist train runs/x'
    """
    packages = ('jaxdist', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'command': command,
        'repeat': f'jaxdist train {shlex.quote(str(folder / "experiment.json"))}',
        'resume': f'jaxdist train {shlex.quote(str(folder))}',
        'versions': {'python': platform.python_version(), **{name: metadata.version(name) for name in packages}},
        'commit': _commit(),
        'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
        'data': training.data.facts,
        'baseline': {training.data.baseline_name: training.data.baseline},
    }


def _commit() -> str | None:
    """The commit of jaxdist's sources, with `+changes` where they differ from it; None if they are not in git."""
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+changes' if changes.strip() else '')


def new_folder(parent: Path, name: str) -> Path:
    """A folder `NAME-1`, `NAME-2`, ... below `parent` that is not there yet; the same for all processes.

    >>> new_folder(Path('nowhere'), 'quickstart')
    PosixPath('nowhere/quickstart-1')
    """
    taken = [int(end) for p in parent.glob(f'{name}-*') if (end := p.name.removeprefix(f'{name}-')).isdecimal()]
    return parent / f'{name}-{cluster.agree(max(taken, default=0) + 1)}'
