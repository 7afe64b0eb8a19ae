"""An experiment as plain data: every setting of a run, to and from JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxdist.clock.settings import Clock
from jaxdist.constraints.dual_ascent import Order
from jaxdist.core.mesh import KINDS
from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.layout_settings import ContextSettings as ContextSettings
from jaxdist.training.layout_settings import FsdpSettings as FsdpSettings
from jaxdist.training.layout_settings import Mesh as Mesh
from jaxdist.training.layout_settings import PipelineSettings as PipelineSettings
from jaxdist.training.plain_data import ExperimentError, check_settings, decode, encode
from jaxdist.training.user_code import blame, load_script


@dataclass(frozen=True)
class ConstraintSettings:
    """The constraints, and how their multipliers are updated; see docs/constraints.md."""

    hold: tuple[str, ...] = ()
    """Constraints, as 'squared_norm(bound=4.0)', or 'small: squared_norm(bound=4.0)' to name it."""
    dual: str = 'sgd(0.01)'
    """The dual line: the optimiser of the multipliers, whose gradient is minus the violations."""
    penalty: float | str = 0.0
    """Penalty coefficient of the augmented Lagrangian: a number, or a schedule such as 'growing(start=1.0)'."""
    order: Order = 'alternating'
    """Order of the updates in a step: multipliers first, both at once, parameters first, or both twice."""
    every: int = 1
    """Primal steps per dual step."""
    tolerance: float = 0.01
    """Distance of a value above its bound, or from it, at which the constraint still counts as holding."""


@dataclass(frozen=True)
class Experiment:
    """The settings of a training run: model, data, update line, devices and length.

    `model` and `data` are dataclasses of settings, of jaxdist or your own: a model's method `build(task)` returns a
    `jaxdist.core.types.Model`, and a data set's `load()` a `jaxdist.data.Data`.
    """

    update: str = 'mean() | adamw(learning_rate=1e-3)'
    """The update line: algorithms and optax transformations in the order in which they are applied."""
    model: Any = field(default_factory=Transformer)
    data: Any = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    fsdp: FsdpSettings = field(default_factory=FsdpSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    batch: int = 64
    """Global batch size: examples per step over all workers."""
    steps: int = 500
    """Steps to train for."""
    seed: int = 0
    """Seed of the initial parameters and of the order of the data."""
    accumulate: int = 1
    """Gradient accumulation: microbatches per step and worker; the result is that of the whole batch."""
    precision: Literal['float32', 'bfloat16'] = 'float32'
    """Dtype in which the model computes; parameters stay float32."""
    virtual_shards: int = 0
    """Parts of the batch that are evaluated one by one, so that a run has the same bits on any number of workers that
    divides it: a power of two; 0 for none. For update lines mean() | ..."""
    guard: bool = True
    """Skip steps whose gradient has no finite squared norm."""
    constraints: ConstraintSettings = field(default_factory=ConstraintSettings)
    state_sync: str = ''
    """How workers synchronise a model state, such as running statistics: a line that acts on its changes, as
    'average(every=30)' or 'identity()'. By default their mean at every step; none for lines that train locally."""
    log_every: int = 10
    """Steps between two records of the training loss."""
    evaluate_every: int = 100
    """Steps between two evaluations on held-out data."""
    save_every: int = 100
    """Steps between two checkpoints."""
    keep: int = 3
    """Number of newest checkpoints to keep."""
    spike: float = 0.0
    """Go back to an earlier checkpoint, and skip the batches in between, when a recorded training loss is above so many
    times the median of the records before; 0 is off."""
    rewinds: int = 10
    """Times that a run goes back so, before it ends."""
    clock: Clock = field(default_factory=Clock)
    check_replicas: bool = False
    """Compare the copies of the state that devices have, before each save: it finds a bit that has flipped."""

    def __post_init__(self) -> None:
        check_settings('model', self.model, 'build(task)', 'Model')
        check_settings('data', self.data, 'load()', 'Data')
        for name in ('batch', 'steps', 'accumulate', 'log_every', 'evaluate_every', 'save_every', 'keep', 'rewinds'):
            if getattr(self, name) < 1:
                raise ExperimentError(f'{name}={getattr(self, name)} must be 1 or more')
        for kind in KINDS:
            if getattr(self.mesh, kind, 1) < 1:
                raise ExperimentError(f'mesh.{kind}={getattr(self.mesh, kind)} must be 1 or more')
        if self.pipeline.microbatches < 1:
            raise ExperimentError(f'pipeline.microbatches={self.pipeline.microbatches} must be 1 or more')
        if self.constraints.every < 1:
            raise ExperimentError(f'constraints.every={self.constraints.every} must be 1 or more')
        if not self.constraints.tolerance >= 0:
            raise ExperimentError(f'constraints.tolerance={self.constraints.tolerance} must be 0 or more')
        if self.spike != 0 and not self.spike > 1:
            raise ExperimentError(f'spike={self.spike} must be above 1, or 0 to ignore spikes of the loss')
        if self.seed < 0:
            raise ExperimentError(f'seed={self.seed} must be 0 or more')
        if self.mesh.simulate and len(self.mesh.axes) > 1:
            raise ExperimentError(
                f'simulated workers share one device: mesh.{self.mesh.axes[1].name} must be 1 with --simulate'
            )


FREE = (
    'steps',
    'mesh',
    'pipeline',
    'fsdp.regather',
    'context',
    'log_every',
    'evaluate_every',
    'save_every',
    'keep',
    'spike',
    'rewinds',
    'check_replicas',
    'constraints.tolerance',
)
"""Fields that may change when a run is resumed."""


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON data; each dataclass has its name under `kind`.

    >>> to_json(Experiment(steps=7))['pipeline']
    {'kind': 'PipelineSettings', 'microbatches': 4, 'schedule': '1f1b'}
    """
    return encode(experiment)


def from_json(data: dict[str, Any], known: tuple[type, ...] = ()) -> Experiment:
    """The experiment that `to_json` wrote.

    Args:
        data: the JSON data.
        known: a user's classes, which need not be looked for in the files that define them.

    Raises:
        ExperimentError: a field is unknown or of the wrong type, or a class is not found; the message names the field.

    >>> from_json(to_json(Experiment(steps=7))) == Experiment(steps=7)
    True
    """
    experiment: Experiment = decode(Experiment, data, 'experiment', known)
    return experiment


def flat(experiment: Experiment) -> dict[str, Any]:
    """Every setting by its dotted name.

    >>> flat(Experiment())['mesh.workers']
    8
    """
    out: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, v in value.items():
                walk(f'{name}.{key}' if name else key, v)
        else:
            out[name] = value

    walk('', to_json(experiment))
    return out


def differences(given: Experiment, saved: Experiment) -> list[str]:
    """The fields in which two experiments differ, save those in `FREE`; one text each.

    >>> differences(Experiment(seed=1, steps=5), Experiment(seed=2))
    ['seed: 1 given, 2 saved']
    """
    new, old = flat(given), flat(saved)
    names = [name for name in {**new, **old} if name not in FREE and name.split('.')[0] not in FREE]
    return [
        f'{name}: {new.get(name, "nothing")} given, {old.get(name, "nothing")} saved'
        for name in names
        if new.get(name) != old.get(name)
    ]


def load(path: Path) -> Experiment:
    """The experiment of a config: a Python file with a function `experiment()`, or a JSON file, which runs no code.

    A class that a JSON file names must be imported already; `jaxdist.training.run_code` runs the code of a run.

    Raises:
        ExperimentError: there is no such file, or it defines no experiment.
        ScriptError: the Python file cannot be run.

    >>> load(Path('nowhere.py'))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: there is no config 'nowhere.py'
    """
    if path.suffix == '.json':
        return from_json(read_json(path))
    return _checked(path, 'experiment() must return', _call(path, 'experiment'))


def sweep(path: Path) -> Iterator[tuple[str, Experiment]]:
    """The experiments that the function `sweep()` of a config yields, each with its label.

    The function yields experiments, or pairs of a label and an experiment; the label of an experiment alone is ''.

    Raises:
        ExperimentError: the file has no such function, or it yields something else.
        ScriptError: the Python file cannot be run.

    >>> next(sweep(Path('nowhere.py')))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: there is no config 'nowhere.py'
    """
    for each in _call(path, 'sweep', list):
        label, experiment = each if isinstance(each, tuple) and len(each) == 2 else ('', each)
        if not isinstance(label, str):
            raise ExperimentError(f'{path}: a label that sweep() yields must be text, not {label!r}')
        yield label, _checked(path, 'sweep() must yield', experiment)


def space(path: Path) -> list[str]:
    """The fields that a config's function `space()` names for tuning, with their ranges; none without the function.

    It returns a dict, such as `{'adamw.learning_rate': 'log(1e-4, 1e-1)'}`.

    Raises:
        ExperimentError: it returns something else.
        ScriptError: the Python file cannot be run.

    >>> space(Path('nowhere.py'))
    []
    """
    if not path.is_file() or path.suffix != '.py' or not hasattr(load_script(path), 'space'):
        return []
    fields = _call(path, 'space')
    if not isinstance(fields, dict) or not all(isinstance(text, str) for each in fields.items() for text in each):
        raise ExperimentError(
            f"{path}: space() must return a dict of texts, as {{'batch': 'int(16, 64)'}}, not {fields!r}"
        )
    return [f'{name}={text}' for name, text in fields.items()]


def _call(path: Path, name: str, convert: Callable[[Any], Any] = lambda result: result) -> Any:
    """The converted result of a config's function."""
    if not path.is_file():
        raise ExperimentError(f'there is no config {str(path)!r}')
    function = getattr(load_script(path), name, None)
    if not callable(function):
        raise ExperimentError(f'{path} has no function {name}()')
    try:
        return convert(function())
    except Exception as error:  # a user's file may raise anything; the message names the line
        raise ExperimentError(blame(path, error)) from error


def _checked(path: Path, promise: str, x: Any) -> Experiment:
    if not isinstance(x, Experiment):
        raise ExperimentError(f'{path}: {promise} jaxdist.training.experiment.Experiment, not {type(x).__name__}')
    return x


def read_json(path: Path) -> dict[str, Any]:
    """The data of a JSON config.

    Raises:
        ExperimentError: there is no such file, or it is not JSON.

    >>> read_json(Path('nowhere.json'))
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: there is no config 'nowhere.json'
    """
    if not path.is_file():
        raise ExperimentError(f'there is no config {str(path)!r}')
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ExperimentError(f'{path} is not JSON: {error}') from None
    if not isinstance(data, dict):
        raise ExperimentError(f'{path} contains a {type(data).__name__}, not an experiment')
    return data
