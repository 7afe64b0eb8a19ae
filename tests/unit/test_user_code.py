"""A user's own model and data in a config: on the command line, in a run's folder, and what is wrong with others."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from run_fixtures import SMALL, Jaxdist, finish, train_until

from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, ExperimentError, from_json, load, to_json
from jaxdist.training.plain_data import check_settings, decode
from jaxdist.training.user_code import ScriptError, find_class

NETS = '''
from dataclasses import dataclass

from jaxdist.models import Perceptron


@dataclass(frozen=True)
class Sizes:
    width: int = 8
    """Size of the hidden layer."""


@dataclass(frozen=True)
class OwnNet:
    """A net of my own."""

    sizes: Sizes = Sizes()
    names: dict[str, int] | None = None

    def build(self, task):
        return Perceptron(hidden=(self.sizes.width,)).build(task)
'''
CONFIG = '''
from dataclasses import dataclass, replace

import numpy as np
from own_nets import OwnNet, Sizes

from jaxdist.data import Digits
from jaxdist.training.experiment import Experiment, Mesh


@dataclass(frozen=True)
class Interleaved:
    """A division of my own."""

    shift: int = 0

    def parts(self, count, labels, workers):
        return tuple(np.roll(np.arange(count), self.shift)[worker::workers] for worker in range(workers))


@dataclass(frozen=True)
class OwnDigits(Digits):
    """Digits of my own."""

    scale: float = 2.0
    """Factor of the inputs."""

    def load(self):
        data = super().load()
        batch = lambda *where: (b := data.batch(*where)) | {'x': self.scale * b['x']}
        return data._replace(batch=batch)


def experiment():
    return Experiment(
        update='mean() | sgd(0.1)', model=OwnNet(Sizes(6), {'a': 1}), data=OwnDigits(scale=0.5, division=Interleaved()),
        mesh=Mesh(workers=4, simulate=True), batch=16, steps=4, log_every=2, evaluate_every=4, save_every=2,
    )


def sweep():
    yield experiment()
    yield replace(experiment(), update='sgd(0.1) | average(every=2)')
'''


@pytest.fixture
def own(jaxdist: Jaxdist, monkeypatch: pytest.MonkeyPatch) -> Jaxdist:
    """The program in a folder with the config and the file that it imports; what they import is forgotten."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr('jaxdist.training.user_code.ROOTS', [])
    monkeypatch.delitem(sys.modules, 'own_nets', raising=False)
    Path('mine').mkdir()
    Path('mine/own_nets.py').write_text(NETS)
    Path('mine/own.py').write_text(CONFIG)
    return jaxdist


@pytest.mark.slow
def test_a_run_is_resumed_repeated_and_planned_from_its_folder(own: Jaxdist) -> None:
    code, _, err = own(
        'train', 'mine/own.py', '--run', 'runs/a', '--model.sizes.width', '5', '--data.division.shift', '3'
    )
    assert code == 0, err
    saved = json.loads(Path('runs/a/experiment.json').read_text())
    assert saved['model'] == {
        'kind': 'OwnNet',
        'from': 'own_nets.py',
        'sizes': {'kind': 'Sizes', 'from': 'own_nets.py', 'width': 5},
        'names': {'a': 1},
    }
    assert (saved['data']['kind'], saved['data']['from'], saved['data']['scale']) == ('OwnDigits', 'own.py', 0.5)
    assert saved['data']['division'] == {'kind': 'Interleaved', 'from': 'own.py', 'shift': 3}
    assert sorted(path.name for path in Path('runs/a/code').iterdir()) == ['own.py', 'own_nets.py']
    facts = json.loads(Path('runs/a/run.json').read_text())
    assert facts['scripts'] == {'own.py': hashlib.sha256(CONFIG.encode()).hexdigest()}
    assert facts['modules'] == {'own_nets.py': hashlib.sha256(NETS.encode()).hexdigest()}
    for name in [name for name in sys.modules if name == 'own_nets' or name.startswith('script.own')]:
        del sys.modules[name]
    assert facts['resume'] == 'jaxdist train runs/a --script mine/own.py'
    code, out, err = own(*facts['resume'].split()[1:], '--steps', '6')
    assert (code, 'resuming from step 4' in out) == (0, True), err
    assert out.endswith('Train longer with:\n  jaxdist train runs/a --script mine/own.py --steps 12\n')
    assert Path(sys.modules['own_nets'].__file__ or '') == Path('mine/own_nets.py').resolve()
    code, _, err = own('plan', 'runs/a', '--script=mine/own.py')
    assert code == 0, err
    assert facts['repeat'] == 'jaxdist train runs/a/experiment.json --script mine/own.py'
    code, _, err = own(*facts['repeat'].split()[1:], '--run', 'runs/b')
    assert code == 0, err


def test_help_and_suggestions_are_of_its_fields(own: Jaxdist) -> None:
    out = own('train', 'mine/own.py', '--help').out
    assert 'A net of my own.' in out
    assert '--model.sizes.width INT' in out
    assert 'Factor of the inputs. (default: 0.5)' in out
    code, _, err = own('train', 'mine/own.py', '--model.sizes.widht', '3')
    assert (code, '--model.sizes.width' in err) == (2, True)


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_stopped(own: Jaxdist) -> None:
    code, _, err = own('compare', 'mine/own.py', '--out', 'out')
    assert code == 0, err
    result = next(Path('out/runs').glob('*/result.json'))
    result.unlink()
    code, out, err = own('compare', 'mine/own.py', '--out', 'out')
    assert code == 0, err
    assert 'resuming from step 4' in out
    assert result.exists()


@pytest.mark.slow
def test_code_that_has_changed_is_named_and_kept(own: Jaxdist) -> None:
    own('train', 'mine/own.py', '--run', 'runs/a')
    with Path('mine/own.py').open('a') as file:
        file.write('# a remark\n')
    code, out, _ = own('train', 'mine/own.py', '--run', 'runs/a', '--steps', '6')
    assert (code, 'own.py has changed since the run began' in out) == (0, True)
    assert Path('runs/a/code/own.py').read_text() == CONFIG + '# a remark\n'
    assert Path('runs/a/code/own.py.1').read_text() == CONFIG


@pytest.mark.slow
def test_another_process_in_another_folder_goes_on(own: Jaxdist, tmp_path: Path) -> None:
    """As on another machine, where there is the run's folder alone: its code is read, and moved out."""
    own('train', 'mine/own.py', '--run', 'runs/a')
    shutil.rmtree('mine')
    (tmp_path / 'else').mkdir()
    shutil.move('runs/a', tmp_path / 'else' / 'b')
    shutil.move(tmp_path / 'else' / 'b' / 'code', tmp_path / 'else' / 'c')
    words = ['train', 'b', '--script', 'c/own.py', '--steps', '6', '--compilation-cache', 'none']
    command = [sys.executable, '-m', 'jaxdist', *words]
    environment = {**os.environ, 'PYTHONWARNINGS': 'error'}
    ended = subprocess.run(command, cwd=tmp_path / 'else', capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert 'resuming from step 4' in ended.stdout
    assert 'step 6/6' in ended.stdout


@dataclasses.dataclass(frozen=True)
class Local(Perceptron):
    """A model that is defined in a module that no script imports."""

    extra: tuple[int, ...] = ()


def test_a_module_that_is_imported_is_named(tmp_path: Path) -> None:
    experiment = dataclasses.replace(SMALL, model=Local(hidden=(8,), extra=(1, 2)))
    assert from_json(to_json(experiment)) == experiment
    train_until(4, experiment, tmp_path)
    assert finish(experiment, tmp_path)[-1].kind == 'done'


@pytest.mark.parametrize(
    'hint, value, back',
    [
        (Any, [1, [2.0, None]], (1, (2.0, None))),
        (tuple[int, ...] | None, [1, 2], (1, 2)),
        (tuple[int, ...] | None, None, None),
        (dict[str, float] | None, {'a': 1}, {'a': 1}),
        (dict[str, Any], {'a': [1]}, {'a': (1,)}),
        (list[int], [1], [1]),
        (Sequence[int], [1], (1,)),
        (float | None, 1, 1.0),
        (Literal['a', 'b'] | None, 'b', 'b'),
    ],
)
def test_fields_of_many_types_are_read_back(hint: Any, value: Any, back: Any) -> None:
    result = decode(hint, value, 'x')
    assert (result, type(result)) == (back, type(back))


@pytest.mark.parametrize(
    'hint, value', [(dict[str, int], 3), (tuple[int, ...] | None, 'x'), (Literal['a'] | None, 'b'), (list[int], 'x')]
)
def test_a_field_of_another_type_is_named(hint: Any, value: Any) -> None:
    with pytest.raises(ExperimentError, match=r'x: .* is not'):
        decode(hint, value, 'x')


@pytest.mark.parametrize(
    'source, problem',
    [
        ('no_such_module', 'is defined in the module no_such_module, which is not imported'),
        ('no_such_file.py', 'is defined in no_such_file.py, and no such file was run or imported'),
        ('__main__', 'was defined in a notebook or at a prompt'),
        ('fractions', 'there is no class Own in fractions'),
    ],
)
def test_a_class_that_is_not_found_is_named(source: str, problem: str) -> None:
    with pytest.raises(ScriptError, match=problem):
        find_class('Own', source)
    data = to_json(Experiment())
    data['model'] = {'kind': 'Own', 'from': source}
    with pytest.raises(ExperimentError, match=f'experiment.model: .*{problem}'):
        from_json(data)


@dataclasses.dataclass(frozen=True)
class Active:
    act: Any = None

    def build(self, task: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Kind(Active):
    kind: str = 'a'


class NoDataclass:
    def build(self, task: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    'model, problem',
    [
        (Perceptron, r'model=Perceptron is a class: write Perceptron\(...\)'),
        (NoDataclass(), r'must be a dataclass with a method build\(task\) that returns a Model: put @dataclass'),
        (Digits(), r'must be a dataclass with a method build\(task\)'),
        (Active(abs), r'model.act=<built-in function abs> cannot be written to experiment.json'),
        (Active((1, {'a': {2}})), r'model.act\[1\].a=\{2\} cannot be written'),
        (Kind(), r"model has a field 'kind', the name under which experiment.json has the class: choose another"),
        (Active({'from': 3}), r"model.act has a field 'from'"),
    ],
)
def test_what_cannot_be_a_model_is_named(model: Any, problem: str) -> None:
    with pytest.raises(ExperimentError, match=problem):
        check_settings('model', model, 'build(task)', 'Model')
    with pytest.raises(ExperimentError, match=problem):
        Experiment(model=model)


def test_a_config_that_gives_a_class_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / 'a_class.py'
    path.write_text(
        'from jaxdist import Experiment\nfrom jaxdist.models import Perceptron\n\n\n'
        'def experiment():\n    return Experiment(model=Perceptron)\n'
    )
    with pytest.raises(ExperimentError, match=r'a_class.py, line 6: .*model=Perceptron is a class'):
        load(path)
