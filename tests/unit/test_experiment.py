"""Experiments as JSON and as config files: they round-trip, and errors name the field or the line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdist.clock.link import Link
from jaxdist.clock.settings import Clock
from jaxdist.data import ByLabel, Digits, Dirichlet, Even, FashionMNIST, Sizes, Table, Text
from jaxdist.models import ConvNet, Perceptron, Transformer
from jaxdist.training.experiment import (
    FREE,
    Experiment,
    ExperimentError,
    Mesh,
    differences,
    flat,
    from_json,
    load,
    sweep,
    to_json,
)
from jaxdist.training.user_code import ScriptError

SIZES = st.integers(1, 10**6)
FRACTIONS = st.floats(0, 1)
PATHS = st.none() | st.text()
DIVISIONS = st.one_of(
    st.just(Even()),
    st.builds(ByLabel, SIZES),
    st.builds(Dirichlet, FRACTIONS, SIZES),
    st.builds(Sizes, st.lists(FRACTIONS | SIZES).map(tuple)),
)
MODELS = st.one_of(
    st.builds(Transformer, SIZES, SIZES, SIZES, SIZES, SIZES),
    st.builds(ConvNet, st.lists(SIZES).map(tuple), SIZES),
    st.builds(Perceptron, st.lists(SIZES).map(tuple)),
)
DATA = st.one_of(
    st.builds(Text, path=PATHS, context=SIZES, held_out=FRACTIONS, division=DIVISIONS),
    st.builds(Digits, FRACTIONS, DIVISIONS),
    st.builds(Table, name=st.sampled_from(['diabetes', 'wine']), held_out=FRACTIONS, division=DIVISIONS),
    st.builds(FashionMNIST, PATHS, DIVISIONS),
)
LINKS = st.builds(Link, FRACTIONS, st.floats(0, 1e12), *[FRACTIONS] * 5)
MESHES = st.builds(Mesh, SIZES, SIZES, SIZES, SIZES, SIZES, SIZES, st.booleans()) | st.builds(
    Mesh, workers=SIZES, simulate=st.just(True)
)
EXPERIMENTS = st.builds(
    Experiment,
    update=st.text(),
    model=MODELS,
    data=DATA,
    mesh=MESHES,
    steps=SIZES,
    seed=st.integers(0, 9),
    precision=st.sampled_from(['float32', 'bfloat16']),
    guard=st.booleans(),
    virtual_shards=st.sampled_from([0, 8]),
    spike=st.just(0.0) | st.floats(1, 99, exclude_min=True),
    rewinds=SIZES,
    clock=st.just(Clock()) | st.builds(Clock, st.text(), st.lists(FRACTIONS).map(tuple), LINKS, st.integers(0, 9)),
)


@given(EXPERIMENTS)
def test_every_experiment_round_trips_through_json(experiment: Experiment) -> None:
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@given(EXPERIMENTS, EXPERIMENTS)
def test_differences_are_those_in_fields_that_may_not_change(one: Experiment, other: Experiment) -> None:
    assert differences(one, one) == []
    free = {name: getattr(Experiment(), name) for name in FREE if '.' not in name}
    same = dataclasses.replace(one, **free) == dataclasses.replace(other, **free)
    assert (differences(one, other) == []) == same


def test_differences_name_fields_of_models_of_two_kinds() -> None:
    one, other = Experiment(model=Perceptron(hidden=(4,))), Experiment(model=Perceptron(hidden=(4, 8)))
    assert differences(one, other) == ['model.hidden: [4] given, [4, 8] saved']
    assert differences(Experiment(), one) == [
        'model.kind: Transformer given, Perceptron saved',
        'model.layers: 2 given, nothing saved',
        'model.width: 128 given, nothing saved',
        'model.heads: 4 given, nothing saved',
        'model.mlp: 4 given, nothing saved',
        'model.key_heads: 0 given, nothing saved',
        'model.stacked: False given, nothing saved',
        'model.chunks: 1 given, nothing saved',
        'model.spare: 0 given, nothing saved',
        'model.hidden: nothing given, [4] saved',
    ]


def changed(name: str, value: Any) -> dict[str, Any]:
    """The default experiment as JSON, with the field of this dotted name set."""
    data = to_json(Experiment(model=Perceptron()))
    *path, last = name.split('.')
    inner = data
    for part in path:
        inner = inner[part]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('steps', 'many', "experiment.steps: 'many' is not int"),
        ('steps', True, 'experiment.steps: True is not int'),
        ('steps', 1.5, 'experiment.steps: 1.5 is not int'),
        (
            'stpes',
            5,
            'experiment: Experiment has no field stpes; it has update, model, data, mesh, pipeline, fsdp, context',
        ),
        ('precision', 'float64', "experiment.precision: 'float64' is not float32 or bfloat16"),
        ('model', 'big', "model='big' must be a dataclass with a method build"),
        ('model.kind', 'Percepton', "experiment.model: jaxdist has no kind 'Percepton': did you mean Perceptron?"),
        ('model.hidden', [8, 'x'], "experiment.model.hidden[1]: 'x' is not int"),
        ('model.hidden', 8, 'experiment.model.hidden: 8 is not tuple'),
        ('data.path', 3, 'experiment.data.path: 3 is not str or null'),
        ('data.division', {'kind': 'Odd'}, "experiment.data.division: jaxdist has no kind 'Odd': .*Even"),
        ('data.division', {'kind': 'Sizes'}, 'experiment.data.division: .* missing .*sizes'),
        (
            'mesh.worker',
            3,
            'experiment.mesh: Mesh has no field worker; it has workers, stage, fsdp, context, expert, model',
        ),
        ('batch', 0, 'batch=0 must be 1 or more'),
        ('seed', -1, 'seed=-1 must be 0 or more'),
        ('spike', 0.5, 'spike=0.5 must be above 1, or 0 to ignore spikes of the loss'),
        ('rewinds', 0, 'rewinds=0 must be 1 or more'),
        ('mesh.workers', 0, 'mesh.workers=0 must be 1 or more'),
    ],
)
def test_json_errors_name_the_field(name: str, value: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=message.replace('[', r'\[').replace(']', r'\]').replace('?', r'\?')):
        from_json(changed(name, value))


def test_an_integer_is_accepted_for_a_float() -> None:
    experiment = from_json(changed('data.held_out', 0))
    assert isinstance(experiment.data, Text)
    assert type(experiment.data.held_out) is float


def test_flat_names_every_setting_once() -> None:
    names = list(flat(Experiment()))
    assert {'update', 'model.kind', 'model.width', 'data.division.kind', 'mesh.workers', 'steps'} <= set(names)
    assert len(names) == len(set(names))


def test_simulated_workers_have_no_model_axis() -> None:
    with pytest.raises(ExperimentError, match=r'mesh.model must be 1 with --simulate'):
        Experiment(mesh=Mesh(model=2, simulate=True))


HEAD = 'from jaxdist.training.experiment import Experiment\n'


def config(folder: Path, text: str, name: str = 'mine.py') -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_config_may_import_files_in_its_folder(tmp_path: Path) -> None:
    config(tmp_path, 'STEPS = 77', 'beside_the_config.py')
    path = config(tmp_path, HEAD + 'from beside_the_config import STEPS\nexperiment = lambda: Experiment(steps=STEPS)')
    assert load(path).steps == 77


def test_a_config_may_be_json(tmp_path: Path) -> None:
    assert load(config(tmp_path, json.dumps(to_json(Experiment(steps=9))), 'x.json')) == Experiment(steps=9)


@pytest.mark.parametrize(
    'text, message',
    [
        ('x = = 3\n', r'mine.py cannot be read:\n  File .*mine.py., line 1\n    x = = 3\n        \^\nSyntaxError'),
        ('import nowhere_at_all\n', r"mine.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ('\nx = 1 / 0\n', r'mine.py, line 2: ZeroDivisionError: division by zero\n    x = 1 / 0'),
        ('x = 1\n', r'mine.py has no function experiment\(\)'),
        ('def experiment():\n    return undefined_name\n', r'mine.py, line 2: NameError: .*undefined_name'),
        ('def experiment(): return 3\n', r'mine.py: experiment\(\) must return .*Experiment, not int'),
        (HEAD + 'def experiment():\n    return Experiment(batch=0)', r'mine.py, line 3: ExperimentError: batch=0 must'),
        (HEAD + 'def experiment():\n    return Experiment(stpes=5)', r'mine.py, line 3: TypeError: .*stpes'),
    ],
)
def test_the_error_of_a_wrong_config_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ExperimentError, ScriptError), match=message):
        load(config(tmp_path, text))


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('x.json', '{"steps": ', 'x.json is not JSON'),
        ('x.json', '[]', 'x.json contains a list, not an experiment'),
        ('x.toml', '', 'x.toml is not a Python file: its name must end in .py'),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises((ExperimentError, ScriptError), match=message):
        load(config(tmp_path, text, name))


def test_a_missing_config_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"there is no config 'nowhere.json'"):
        load(Path('nowhere.json'))


def test_a_sweep_yields_experiments(tmp_path: Path) -> None:
    path = config(tmp_path, HEAD + 'def sweep():\n    for n in (1, 2):\n        yield Experiment(steps=n)')
    assert list(sweep(path)) == [('', Experiment(steps=1)), ('', Experiment(steps=2))]


@pytest.mark.parametrize(
    'text, message',
    [
        ('def sweep():\n    yield 1\n    yield 2', r'sweep\(\) must yield .*Experiment, not int'),
        ('def sweep():\n    yield 1 / 0', r'mine.py, line 2: ZeroDivisionError'),
        ('x = 1', r'mine.py has no function sweep\(\)'),
    ],
)
def test_the_error_of_a_wrong_sweep_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        list(sweep(config(tmp_path, text)))


@pytest.mark.parametrize('path', sorted(Path(__file__).parents[2].glob('configs/*.py')), ids=lambda path: path.name)
def test_the_configs_of_this_project_load(path: Path) -> None:
    assert isinstance(load(path), Experiment)
