"""One experiment as plain data: everything that a run depends on, JSON in and out."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdist.constraints.dual_ascent import Order
from jaxdist.core.errors import InputError
from jaxdist.core.mesh import KINDS, Axis, axis_table
from jaxdist.data import Census, Digits, FashionMNIST, Table, Text
from jaxdist.models import ConvNet, Perceptron, Transformer
from jaxdist.training.user_code import blame, load_script


class ExperimentError(InputError):
    """An experiment that cannot be read or run; its text says what is wrong and where."""


@dataclass(frozen=True)
class Mesh:
    """The devices, by mesh axis."""

    workers: int = 8
    """Workers: each has a part of the batch, and the update line says how they communicate."""
    model: int = 1
    """Devices that one worker's parameters are sharded over."""
    emulate: Annotated[bool, tyro.conf.arg(prefix_name=False)] = False
    """Emulate the devices on this machine's CPU."""
    simulate: Annotated[bool, tyro.conf.arg(prefix_name=False)] = False
    """Simulate the workers on one device."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The table of mesh axes."""
        return axis_table(**{kind: getattr(self, kind) for kind in KINDS if hasattr(self, kind)})

    @property
    def devices(self) -> int:
        """How many devices the mesh needs; 1 if the workers are simulated."""
        return 1 if self.simulate else math.prod(axis.size for axis in self.axes)


@dataclass(frozen=True)
class ConstraintSettings:
    """What is to hold, and how its multipliers move; see docs/constraints.md."""

    hold: tuple[str, ...] = ()
    """Constraints, as 'squared_norm(bound=4.0)', or 'small: squared_norm(bound=4.0)' to name it."""
    dual: str = 'sgd(0.01)'
    """The dual line: an optimiser, fed with minus the violations, moves the multipliers."""
    penalty: float | str = 0.0
    """Of the augmented Lagrangian: a number, or text for a schedule, as 'growing(start=1.0)'."""
    order: Order = 'alternating'
    """Who moves when: multipliers first, both at once, parameters first, or both twice."""
    every: int = 1
    """Primal steps to a dual step."""
    tolerance: float = 0.01
    """How far above its bound, or from it, a value may be and count as held."""


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, by which update and for how long."""

    update: str = 'mean() | adamw(learning_rate=1e-3)'
    """The update line: algorithms and optax transformations in the order in which they work."""
    model: Transformer | ConvNet | Perceptron = field(default_factory=Transformer)
    data: Text | Digits | Table | FashionMNIST | Census = field(default_factory=Text)
    mesh: Mesh = field(default_factory=Mesh)
    batch: int = 64
    """Examples a step, of all workers together."""
    steps: int = 500
    """Steps to train for."""
    seed: int = 0
    """Of the initial parameters and of the order of the data."""
    accumulate: int = 1
    """Parts in which each worker takes its share of a batch; the result is the same."""
    precision: Literal['float32', 'bfloat16'] = 'float32'
    """What the model computes in; parameters stay float32."""
    guard: bool = True
    """Leave out steps whose gradient is not finite."""
    constraints: ConstraintSettings = field(default_factory=ConstraintSettings)
    log_every: int = 10
    """Steps between two records of the training loss."""
    evaluate_every: int = 100
    """Steps between two evaluations on held-out data."""
    save_every: int = 100
    """Steps between two checkpoints."""
    keep: int = 3
    """Checkpoints that are kept, the newest."""

    def __post_init__(self) -> None:
        for name in ('batch', 'steps', 'accumulate', 'log_every', 'evaluate_every', 'save_every', 'keep'):
            if getattr(self, name) < 1:
                raise ExperimentError(f'{name}={getattr(self, name)} must be 1 or more')
        for kind in KINDS:
            if getattr(self.mesh, kind, 1) < 1:
                raise ExperimentError(f'mesh.{kind}={getattr(self.mesh, kind)} must be 1 or more')
        if self.constraints.every < 1:
            raise ExperimentError(f'constraints.every={self.constraints.every} must be 1 or more')
        if not self.constraints.tolerance >= 0:
            raise ExperimentError(f'constraints.tolerance={self.constraints.tolerance} must be 0 or more')
        if self.seed < 0:
            raise ExperimentError(f'seed={self.seed} must be 0 or more')
        if self.mesh.simulate and len(self.mesh.axes) > 1:
            raise ExperimentError(
                f'simulated workers share one device: mesh.{self.mesh.axes[1].name} must be 1 with --simulate'
            )


FREE = ('steps', 'mesh', 'log_every', 'evaluate_every', 'save_every', 'keep', 'constraints.tolerance')
"""Fields in which a run may differ from the one whose checkpoint it goes on from."""


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON data; what is one of several kinds says which under `kind`.

    >>> to_json(Experiment(steps=7))['mesh']
    {'kind': 'Mesh', 'workers': 8, 'model': 1, 'emulate': False, 'simulate': False}
    """
    return _encode(experiment)


def from_json(data: dict[str, Any]) -> Experiment:
    """The experiment that `to_json` wrote.

    Raises:
        ExperimentError: a field is unknown or of the wrong type; its text names the field.

    >>> from_json(to_json(Experiment(steps=7))) == Experiment(steps=7)
    True
    """
    return _decode(Experiment, data, 'experiment')


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


def differences(ours: Experiment, theirs: Experiment) -> list[str]:
    """The fields in which two experiments train differently, one text each, `FREE` ones left out.

    >>> differences(Experiment(seed=1, steps=5), Experiment(seed=2))
    ['seed: 1 here, 2 there']
    """
    here, there = flat(ours), flat(theirs)
    names = [name for name in {**here, **there} if name not in FREE and name.split('.')[0] not in FREE]
    return [
        f'{name}: {here.get(name, "nothing")} here, {there.get(name, "nothing")} there'
        for name in names
        if here.get(name) != there.get(name)
    ]


def load(path: Path) -> Experiment:
    """The experiment of a config: a Python file with a function `experiment()`, or a JSON file.

    Raises:
        ExperimentError: there is no such file, or it gives no experiment.
        ScriptError: the Python file cannot be run.

    >>> load(Path('nowhere.py'))
    Traceback (most recent call last):
    jaxdist.training.experiment.ExperimentError: there is no config 'nowhere.py'
    """
    if path.suffix == '.json':
        return from_json(_read_json(path))
    return _checked(path, 'experiment() must return', _call(path, 'experiment'))


def sweep(path: Path) -> Iterator[Experiment]:
    """The experiments of a config's sweep, the generator `sweep()` in its file.

    Raises:
        ExperimentError: the file has none, or yields something else.
        ScriptError: the Python file cannot be run.

    >>> next(sweep(Path('nowhere.py')))
    Traceback (most recent call last):
    jaxdist.training.experiment.ExperimentError: there is no config 'nowhere.py'
    """
    for made in _call(path, 'sweep', list):
        yield _checked(path, 'sweep() must yield', made)


def _call(path: Path, name: str, use: Callable[[Any], Any] = lambda made: made) -> Any:
    """What a function of a config returns, after `use`."""
    if not path.is_file():
        raise ExperimentError(f'there is no config {str(path)!r}')
    make = getattr(load_script(path), name, None)
    if not callable(make):
        raise ExperimentError(f'{path} has no function {name}()')
    try:
        return use(make())
    except Exception as error:  # whatever goes wrong in a user's file, its author wants to know where
        raise ExperimentError(blame(path, error)) from error


def _checked(path: Path, promise: str, made: Any) -> Experiment:
    if not isinstance(made, Experiment):
        raise ExperimentError(f'{path}: {promise} jaxdist.training.experiment.Experiment, not {type(made).__name__}')
    return made


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExperimentError(f'there is no config {str(path)!r}')
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ExperimentError(f'{path} is not JSON: {error}') from None
    if not isinstance(data, dict):
        raise ExperimentError(f'{path} holds {type(data).__name__}, not an experiment')
    return data


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {'kind': type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    return value


def _decode(hint: Any, value: Any, where: str) -> Any:
    """The value of type `hint` that `_encode` wrote."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _decode(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], entry, f'{where}[{i}]') for i, entry in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    options = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    kinds: dict[str, Any] = {o.__name__: o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)}
    if kinds and isinstance(value, dict):
        return _decode_dataclass(kinds, value, where)
    if type(value) is int and float in options:
        return float(value)
    if type(value) in options and not kinds:
        return value
    raise ExperimentError(f'{where}: {value!r} is not {_named(options)}')


def _named(options: tuple[Any, ...]) -> str:
    """Types as an error names them."""
    each = [typing.get_args(o) if typing.get_origin(o) is Literal else (getattr(o, '__name__', o),) for o in options]
    return ' or '.join('null' if name == 'NoneType' else str(name) for names in each for name in names)


FORMER_KINDS = {'Constraints': 'ConstraintSettings'}
"""Former names of kinds, as in experiments that were saved with them."""


def _decode_dataclass(kinds: dict[str, Any], value: dict[str, Any], where: str) -> Any:
    kind = value.get('kind', next(iter(kinds)) if len(kinds) == 1 else None)
    kind = FORMER_KINDS.get(str(kind), kind)
    if kind not in kinds:
        raise ExperimentError(f'{where}: kind {kind!r} is none of {", ".join(kinds)}')
    hints = typing.get_type_hints(kinds[kind], include_extras=True)
    unknown = set(value) - set(hints) - {'kind'}
    if unknown:
        raise ExperimentError(f'{where}: {kind} has no field {", ".join(sorted(unknown))}; it has {", ".join(hints)}')
    fields = {name: _decode(hints[name], v, f'{where}.{name}') for name, v in value.items() if name != 'kind'}
    try:
        return kinds[kind](**fields)
    except TypeError as error:  # one without a default is missing
        raise ExperimentError(f'{where}: {error}') from None
