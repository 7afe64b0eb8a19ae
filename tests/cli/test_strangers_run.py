"""A run's folder runs no code: the commands refuse what a stranger's folder would have them run or import."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import CONFIG, SMALL, Jaxdist, finish

from jaxdist.training.experiment import Experiment, ExperimentError, from_json, load, to_json
from jaxdist.training.run_code import Commands, run_code
from jaxdist.training.run_folder import code_of
from jaxdist.training.user_code import ScriptError, script_options

EVIL = "from pathlib import Path\nPath('ran').touch()\n"
NETS = """
from dataclasses import dataclass

from jaxdist.models import Perceptron


@dataclass(frozen=True)
class OwnNet:
    width: int = 8

    def build(self, task):
        return Perceptron(hidden=(self.width,)).build(task)
"""
OWN = CONFIG.replace('Perceptron(hidden=(8,))', 'OwnNet()').replace(
    'from jaxdist.models import Perceptron', 'from dataclasses import dataclass\n\nfrom own_nets import OtherNet\n'
)
OWN += """

@dataclass(frozen=True)
class OwnNet(OtherNet):
    pass
"""


@pytest.fixture
def forgetful(jaxdist: Jaxdist, monkeypatch: pytest.MonkeyPatch) -> Jaxdist:
    """The program, which forgets what it imported."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr('jaxdist.training.user_code.ROOTS', [])
    monkeypatch.setattr('jaxdist.training.user_code.GIVEN', {})
    monkeypatch.delitem(sys.modules, 'own_nets', raising=False)
    return jaxdist


def folder_of(experiment: dict[str, Any], facts: dict[str, Any], **files: str) -> Path:
    """A run's folder as a stranger makes it."""
    folder = Path('runs/theirs')
    (folder / 'code').mkdir(parents=True)
    (folder / 'experiment.json').write_text(json.dumps(experiment))
    (folder / 'run.json').write_text(json.dumps(facts))
    for name, text in files.items():
        (folder / 'code' / f'{name}.py').write_text(text)
    return folder


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


COMMANDS = [
    'train runs/theirs',
    'train runs/theirs --dry-run',
    'train runs/theirs --help',
    'train runs/theirs/experiment.json',
    'plan runs/theirs',
    'compare runs/theirs --update mean()|sgd(0.1)',
    'tune runs/theirs --update mean()|sgd(0.1) --over sgd.learning_rate=log(0.01,0.1)',
    'codecs int8 --workers 2 --config runs/theirs',
]


@pytest.mark.parametrize('words', COMMANDS)
@pytest.mark.parametrize('facts', [{'scripts': {'evil.py': digest(EVIL)}}, {'scripts': ['evil.py']}], ids=['', 'old'])
def test_nothing_in_a_folder_is_run(forgetful: Jaxdist, words: str, facts: dict[str, Any]) -> None:
    folder_of(to_json(SMALL), facts, evil=EVIL)
    code, _, err = forgetful(*words.split(' '))
    assert (code, Path('ran').exists()) == (2, False)
    assert 'needs evil.py, and nothing in a folder is run by itself' in err
    again = ' '.join(words.split(' ')[: 6 if 'config' in words else 2])
    assert f'\n  jaxdist {again} --script evil.py\n' in err
    if words == 'train runs/theirs':
        assert '\n  jaxdist train evil.py --run runs/theirs\n' in err


def test_the_copy_in_the_folder_is_not_run_even_if_it_is_named(forgetful: Jaxdist, tmp_path: Path) -> None:
    folder = folder_of(to_json(SMALL), {'scripts': {'evil.py': digest(EVIL)}}, evil=EVIL)
    Path('evil.py').symlink_to(folder / 'code' / 'evil.py')
    for name in ('runs/theirs/code/evil.py', f'{tmp_path}/runs/theirs/code/evil.py', 'evil.py'):
        code, _, err = forgetful('train', str(folder), '--script', name)
        assert (code, Path('ran').exists()) == (2, False)
        assert f"{name} lies in the run's folder, from which nothing is run" in err


def test_a_changed_file_is_refused_with_both_digests(forgetful: Jaxdist) -> None:
    folder = folder_of(to_json(SMALL), {'scripts': {'evil.py': digest('pass')}})
    Path('evil.py').write_text(EVIL)
    code, _, err = forgetful('train', str(folder), '--script', 'evil.py')
    assert (code, Path('ran').exists()) == (2, False)
    assert f'sha256: it was {digest("pass")[:12]} and is {digest(EVIL)[:12]}' in err
    assert '\n  jaxdist train evil.py --run runs/theirs\n' in err


@pytest.mark.parametrize('kind', ['modules', 'imports'])
def test_a_changed_import_is_refused_before_anything_runs(forgetful: Jaxdist, kind: str) -> None:
    folder = folder_of(to_json(SMALL), {'scripts': {'own.py': digest(EVIL)}, kind: {'own_nets.py': digest('pass')}})
    Path('own.py').write_text(EVIL)
    Path('own_nets.py').write_text(NETS)
    code, _, err = forgetful('train', str(folder), '--script', 'own.py')
    assert (code, Path('ran').exists()) == (2, False)
    assert 'own_nets.py is not known to be the file that the run began with' in err
    assert f'it was {digest("pass")[:12]} and is {digest(NETS)[:12]}' in err


def test_missing_and_other_files_are_named(forgetful: Jaxdist) -> None:
    facts = {'scripts': {'a.py': digest('1'), 'b.py': digest('2')}, 'modules': {'c.py': digest('3')}}
    folder = folder_of(to_json(SMALL), facts)
    Path('a.py').write_text('1')
    Path('b.py').write_text('2')
    Path('my models').mkdir()
    Path('my models/a.py').write_text('1')
    for words, problem in (
        ('--script a.py', 'needs b.py, and nothing'),
        ('--script a.py', 'jaxdist train runs/theirs --script a.py --script b.py'),
        ('--script gone.py', "there is no file 'gone.py', named by --script"),
        ('--script small.py', 'small.py is not among the code of runs/theirs, which needs a.py, b.py'),
        ('--script a.py --script b.py', 'c.py, which defines a part of the run, is missing in '),
    ):
        code, _, err = forgetful('train', str(folder), *words.split(' '))
        assert (code, problem in err) == (2, True), err
    err = forgetful('train', str(folder), '--script', 'my models/a.py').err
    assert "--script 'my models/a.py' --script b.py" in err


def test_a_module_that_the_script_does_not_import_is_not_imported(forgetful: Jaxdist) -> None:
    """The record may name any file beside the script."""
    facts = {'scripts': {'own.py': digest('pass')}, 'modules': {'evil.py': digest(EVIL)}}
    folder = folder_of(to_json(SMALL), facts)
    Path('own.py').write_text('pass')
    Path('evil.py').write_text(EVIL)
    code, _, err = forgetful('train', str(folder), '--script', 'own.py')
    assert (code, Path('ran').exists()) == (2, False)
    assert 'jaxdist train runs/theirs --script own.py --script evil.py' in err


@pytest.mark.parametrize(
    'facts',
    [
        {'scripts': {'../evil.py': ''}},
        {'scripts': {'/evil.py': ''}},
        {'modules': {'evil': ''}},
        {'scripts': 3},
        {'imports': {'evil.py': 1}},
        {'installed': 'os'},
    ],
)
def test_a_damaged_record_is_refused(forgetful: Jaxdist, facts: dict[str, Any]) -> None:
    folder = folder_of(to_json(SMALL), facts)
    code, _, err = forgetful('train', str(folder), '--dry-run')
    assert (code, 'run.json is damaged' in err) == (2, True)


def test_a_folder_without_code_goes_on_as_before(forgetful: Jaxdist) -> None:
    finish(SMALL, Path('runs/a'))
    assert json.loads(Path('runs/a/run.json').read_text())['resume'] == 'jaxdist train runs/a'
    assert forgetful('train', 'runs/a', '--help').code == 0
    code, _, err = forgetful('train', 'runs/a', '--script', 'small.py')
    assert (code, 'runs/a needs no code of yours: leave out --script small.py' in err) == (2, True)
    Path('else').mkdir()
    Path('else/e.json').write_text(Path('runs/a/experiment.json').read_text())
    assert forgetful('plan', 'else/e.json', '--help').code == 0
    assert 'else has none' in forgetful('plan', 'else/e.json', '--script', 'small.py').err


def changed(model: Any) -> dict[str, Any]:
    return {**to_json(Experiment()), 'model': model}


@pytest.mark.parametrize(
    'kind, source, problem',
    [
        ('Evil', 'evil', 'is defined in the module evil, which is not imported'),
        ('Evil', 'evil.py', 'no such file was run or imported'),
        ('Evil', '../evil.py', 'no such file was run or imported'),
        ('Popen', 'subprocess', "is no dataclass of settings of a user's"),
        ('np.ndarray', 'run_fixtures', "is no dataclass of settings of a user's"),
        ('Mode', 'pprint', 'there is no class Mode in pprint'),
        ('FrameSummary', 'traceback', "is no dataclass of settings of a user's"),
        ('load.__globals__', 'jaxdist.training.experiment', 'is no dataclass|no class'),
        ('Experiment', 'run_fixtures', "is no dataclass of settings of a user's"),
    ],
)
def test_json_reaches_only_dataclasses_of_imported_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for path in (tmp_path / 'evil.py', tmp_path.parent / 'evil.py'):
        path.write_text(EVIL)
    path = tmp_path / 'experiment.json'
    path.write_text(json.dumps(changed({'kind': kind, 'from': source})))
    with pytest.raises(ExperimentError, match=f'experiment.model: .*({problem})'):
        load(path)
    assert not Path('ran').exists()
    assert 'evil' not in sys.modules


@pytest.mark.parametrize('model', [{'from': 'x'}, {'kind': 3, 'from': 'x'}, {'kind': 'X', 'from': 3}])
def test_a_kind_and_its_place_are_texts(model: Any) -> None:
    with pytest.raises(ExperimentError, match=r'experiment\.model: a kind and its place must be texts'):
        from_json(changed(model))


def test_an_installed_module_is_imported_if_it_is_named(forgetful: Jaxdist, monkeypatch: pytest.MonkeyPatch) -> None:
    Path('site').mkdir()
    Path('site/own_nets.py').write_text(NETS)
    facts = {'installed': ['own_nets']}
    folder = folder_of({**to_json(SMALL), 'model': {'kind': 'OwnNet', 'from': 'own_nets', 'width': 3}}, facts)
    code, _, err = forgetful('plan', str(folder))
    assert (code, 'own_nets' in sys.modules) == (2, False)
    assert 'needs the installed module own_nets' in err
    assert 'jaxdist plan runs/theirs --script own_nets\n' in err
    monkeypatch.syspath_prepend('site')
    code, out, err = forgetful('plan', str(folder), '--script', 'own_nets', '--help')
    assert (code, '--model.width' in out) == (0, True), err


def test_a_module_that_lies_in_the_folder_is_not_imported(forgetful: Jaxdist, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `python -m jaxdist` in the folder, whose files come first there."""
    folder = folder_of(to_json(SMALL), {'installed': ['evil']}, evil=EVIL)
    monkeypatch.syspath_prepend(str(folder / 'code'))
    code, _, err = forgetful('plan', str(folder), '--script', 'evil')
    assert (code, Path('ran').exists()) == (2, False)
    assert "lies in the run's folder, from which nothing is run" in err


def test_the_options_name_scripts_as_they_were_given(forgetful: Jaxdist) -> None:
    Path('mine').mkdir()
    Path('mine/own_nets.py').write_text(NETS.replace('OwnNet', 'OtherNet'))
    Path('mine/own.py').write_text(OWN)
    code = code_of(load(Path('mine/../mine/own.py')))
    assert (list(code.scripts), list(code.modules), list(code.imports)) == (['own.py'], [], ['own_nets.py'])
    assert script_options(code) == ' --script mine/../mine/own.py'


def test_a_module_alone_is_named_and_imported(forgetful: Jaxdist) -> None:
    Path('mine').mkdir()
    Path('mine/own_nets.py').write_text(NETS)
    Path('mine/own.py').write_text(
        CONFIG.replace('from jaxdist.models import Perceptron', 'from own_nets import OwnNet').replace(
            'Perceptron(hidden=(8,))', 'OwnNet(3)'
        )
    )
    experiment = load(Path('mine/own.py'))
    finish(experiment, Path('runs/a'))
    facts = json.loads(Path('runs/a/run.json').read_text())
    assert (list(facts['scripts']), list(facts['modules'])) == ([], ['own_nets.py'])
    assert facts['resume'] == 'jaxdist train runs/a --script mine/own_nets.py'
    del sys.modules['own_nets']
    code, out, err = forgetful(*facts['resume'].split()[1:])
    assert (code, 'has already taken its 4 steps' in out) == (0, True), err


def test_a_file_of_the_same_name_is_not_imported_in_its_place(
    forgetful: Jaxdist, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(to_json(SMALL), {'modules': {'own_same.py': digest('1')}})
    for name, text in (('first', EVIL), ('mine', '1')):
        Path(name).mkdir()
        Path(name, 'own_same.py').write_text(text)
    monkeypatch.syspath_prepend('first')
    with pytest.raises(ScriptError, match=r'cannot be imported, for .*own_same\.py has the same name: rename it'):
        run_code(folder, ['mine/own_same.py'], Commands('', ''))
    assert not Path('ran').exists()


def test_a_script_that_fails_is_blamed(forgetful: Jaxdist) -> None:
    folder = folder_of(to_json(SMALL), {'modules': {'own_fails.py': digest('1 / 0')}})
    Path('own_fails.py').write_text('1 / 0')
    with pytest.raises(ScriptError, match='line 1: ZeroDivisionError'):
        run_code(folder, ['own_fails.py'], Commands('', ''))
