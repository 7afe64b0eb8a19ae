"""A run or a comparison in a folder that a stranger made writes nothing outside of it."""

import os
from pathlib import Path

import pytest
from run_fixtures import SMALL, Jaxdist, finish, small

from jaxdist.core import files
from jaxdist.core.errors import FileError
from jaxdist.report.canvas import figure, save
from jaxdist.training.checkpoint import CheckpointError
from jaxdist.training.compare import Variant, compare
from jaxdist.training.comparison_report import draw_report
from jaxdist.training.run_folder import FILES, Log
from jaxdist.training.search_space import read_field
from jaxdist.training.tuning import Trial, tune


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's."""
    (tmp_path / 'target').write_text('mine')
    return tmp_path / 'target'


@pytest.mark.parametrize('name', [*FILES, 'run.json.new', 'code/own.py', 'code/sub/own.py'])
def test_a_link_where_a_run_writes_is_refused_by_name(tmp_path: Path, target: Path, name: str) -> None:
    path = tmp_path / 'run' / name
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    with pytest.raises(FileError, match=f'run/{name} is a symbolic link'):
        Log(tmp_path / 'run', begin=0)
    assert target.read_text() == 'mine'


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'run.json')
    with pytest.raises(FileError, match=r'run\.json is no regular file'):
        Log(tmp_path, begin=0)


def test_a_run_refuses_before_it_trains(tmp_path: Path, target: Path) -> None:
    (tmp_path / 'loss.png').symlink_to(target)
    with pytest.raises(FileError, match=r'loss\.png is a symbolic link'):
        finish(SMALL, tmp_path)
    assert target.read_text() == 'mine'


@pytest.mark.parametrize('name', ['checkpoints', 'lock'])
def test_links_are_one_line_on_the_command_line(jaxdist: Jaxdist, target: Path, name: str) -> None:
    Path('here').mkdir()
    Path('here', name).symlink_to(target)
    code, _, err = jaxdist('train', 'small.py', '--run', 'here')
    assert (code, err.startswith('error: ') and f'here/{name} is a symbolic link' in err) == (1, True), err
    assert target.read_text() == 'mine'


def test_the_best_state_is_not_saved_through_a_link(tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'best').symlink_to(tmp_path / 'elsewhere')
    hold = type(SMALL.constraints)(hold=('squared_norm(bound=1e4)',))
    with pytest.raises(CheckpointError, match='best is a symbolic link'):
        finish(small('mean() | sgd(0.1)', constraints=hold), tmp_path / 'run')
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_a_plot_does_not_replace_the_target_of_a_link(tmp_path: Path, target: Path) -> None:
    (tmp_path / 'plot.png').symlink_to(target)
    with pytest.raises(FileError, match=r'plot\.png is a symbolic link'):
        save(figure(4, 3), tmp_path / 'plot.png')
    assert target.read_text() == 'mine'


@pytest.mark.parametrize('name', ['table.md', 'table.tex', 'table.csv', 'runs.csv', 'index.html'])
def test_a_report_does_not_replace_the_target_of_a_link(tmp_path: Path, target: Path, name: str) -> None:
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).symlink_to(target)
    row = {'name': 'a', 'update': 'a()', 'seed': 0, 'held_out': None, 'sent': 8, 'memory': 9, 'seconds': 1.0}
    with pytest.raises(FileError, match=f'out/{name} is a symbolic link'):
        draw_report([row], {}, 'A', {'command': 'x', 'baseline': {'entropy': 3.0}}, tmp_path / 'out')
    assert target.read_text() == 'mine'


@pytest.mark.parametrize('name', ['runs', 'trials'])
def test_a_comparison_has_its_runs_below_its_folder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).symlink_to(tmp_path / 'elsewhere')
    variants = [Variant('a', SMALL)]
    if name == 'runs':
        events = compare(variants, 1, tmp_path / 'out')
    else:
        monkeypatch.setattr('jaxdist.training.tuning._runs', lambda *_: iter(()))
        monkeypatch.setattr('jaxdist.training.tuning._trial', lambda *_: Trial({}, 1.0))
        events = tune(variants, [read_field('batch=int(16, 32)')], 1, 1, tmp_path / 'out')
    with pytest.raises(FileError, match=f'out/{name} is a symbolic link'):
        list(events)
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / 'real').mkdir()
    (tmp_path / 'latest').symlink_to(tmp_path / 'real')
    files.refuse_link(tmp_path / 'latest' / 'runs' / 'a', below=tmp_path / 'latest')
    Log(tmp_path / 'latest', begin=0)
    files.write(tmp_path / 'latest' / 'a', 'text')
    assert (tmp_path / 'real' / 'a').read_text() == 'text'


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match='nowhere/a'):
        files.write(tmp_path / 'nowhere' / 'a', 'text')
