"""The command line: its help, and its error messages."""

import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from run_fixtures import CONFIG, Jaxdist

from jaxdist.cli import main as cli
from jaxdist.cli.options import train_command


def test_without_a_command_the_commands_are_listed(jaxdist: Jaxdist) -> None:
    ended = jaxdist()
    assert ended == jaxdist('--help')
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines() if line.startswith('  ')] == list(cli.COMMANDS)


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help_is_complete_and_readable(jaxdist: Jaxdist, command: str) -> None:
    code, out, _ = jaxdist(command, '--help')
    assert code == 0
    assert out.startswith(f'usage: jaxdist {command}')
    assert 'True,False' not in out
    assert max(map(len, out.splitlines())) <= 100
    options = {
        'init': [],
        'train': ['--update', '--set', '--run', '--dry-run', '--mesh.workers', '--emulate', '--cluster.coordinator'],
        'learners': [
            '--update',
            '--set',
            '--run',
            '--learners',
            '--processes',
            '--quorum',
            '--replay',
            '--ray.address',
        ],
        'plan': ['--update', '--set', '--json', '--mesh.workers', '--steps', '--cluster.auto', '--search', '--gantt'],
        'compare': [
            '--update',
            '--seeds',
            '--out',
            '--title',
            '--target',
            '--clock.compute',
            '--on',
            '--slurm.partition',
        ],
        'tune': ['--update', '--over', '--trials', '--trial-seeds', '--jobs', '--seeds', '--out'],
        'laws': ['--workers', '--seed'],
        'algorithms': ['--workers', '--config'],
        'codecs': ['--workers', '--config'],
        'graphs': ['--workers'],
        'rules': [],
        'constraints': [],
    }
    if command in ('train', 'learners', 'plan', 'compare', 'tune', 'algorithms', 'codecs'):  # they take a config
        options[command].append('--script')
    for option in options[command]:
        assert f' {option}' in out
    lines = [line.strip('│ ') for line in out.splitlines()]
    helps = [line for line in lines if re.match('--[a-z]', line)]
    assert len(helps) >= len(options[command])
    for option in helps:  # its help is on the same line or on the next one
        after = lines[lines.index(option) + 1]
        assert '  ' in option or (after and not after.startswith('-')), option


def test_help_of_a_config_shows_its_values(jaxdist: Jaxdist) -> None:
    out = jaxdist('train', 'small.py', '--help').out
    assert 'usage: jaxdist train small.py' in out
    assert '(default: 16)' in out
    assert '--model.hidden' in out
    assert '--model.width' not in out


MISTAKES: list[tuple[str, list[str]]] = [
    ('trian small.py', ["no command 'trian'; did you mean train?"]),
    ('fly', ["no command 'fly'. There are init, train, learners, plan, compare, tune, laws, algorithms"]),
    ('train', ['which config? As in: jaxdist train configs/quickstart.py']),
    ('train --steps 3 small.py', ['which config?', 'options come after it']),
    ('train nowhere.py', ["there is no config 'nowhere.py'"]),
    ('train small.py --script own.py', ['--script goes with the folder of a run: small.py imports what it needs']),
    ('train .', ['the folder . contains no run: there is no experiment.json in it']),
    ('train small.py --stpes 5', ['Unrecognized options: --stpes', '--steps']),
    ('train small.py --steps many', ["--steps: invalid literal for int() with base 10: 'many'"]),
    ('train small.py --precision half', ["invalid choice 'half'", 'float32']),
    ('train small.py --mesh.workers', ["Missing value for argument '--mesh.workers'"]),
    ('train small.py --steps 0', ['steps=0 must be 1 or more']),
    ('train small.py --spike 1 --rewinds 3', ['spike=1.0 must be above 1, or 0 to ignore spikes of the loss']),
    ('train small.py --update meen()|sgd(0.1)', ["'meen' is neither registered nor in optax: did you mean 'mean'?"]),
    ('train small.py --update mean(codecs=int8())|sgd(0.1)', ["did you mean 'codec'?", '^^^']),
    ('train small.py --update sgd(0.1)', ['would come out different on each worker', 'Put mean() before']),
    ('train small.py --set foo.x=1', ["the line has no call 'foo' (its calls are mean, sgd)"]),
    ('train small.py --set sgd.learning_rat=1', ['learning_rat', "did you mean 'learning_rate'?"]),
    ('train small.py --batch 15', ['a batch of 15 examples cannot be divided among 4 workers', '12 or 16']),
    ('train small.py --virtual-shards 6', ['virtual_shards=6 must be a power of two, such as 8']),
    ('train small.py --mesh.workers 16', ['needs 16 devices, and there are 8', '--emulate', '--simulate']),
    ('train small.py --simulate --mesh.model 2', ['mesh.model must be 1 with --simulate']),
    (
        'train small.py --cluster.processes 2',
        ['--cluster.coordinator, --cluster.processes and --cluster.process go to'],
    ),
    (
        'train small.py --cluster.processes 2 --cluster.process 2 --cluster.coordinator a:1',
        ['--cluster.process 2 must be from 0 to 1'],
    ),
    (
        'train small.py --emulate --mesh.workers 3 --cluster.processes 2 --cluster.process 0 --cluster.coordinator a:1',
        ['3 emulated devices cannot be divided among 2 processes'],
    ),
    (
        'train small.py --simulate --cluster.processes 2 --cluster.process 0 --cluster.coordinator a:1',
        ['simulated workers run in one process'],
    ),
    (
        'train small.py --cluster.processes 2 --cluster.process 0 --cluster.coordinator a',
        ['--cluster.coordinator a must be host:port'],
    ),
    ('plan small.py --gantt gantt.svg', ['--gantt draws simulated time: give a clock, as in --clock.compute']),
    ('plan small.py --simulate --clock.compute constant(mean=1) --gantt a.gif', ['.png, .svg or .pdf, not as']),
    ('plan small.py --simulate --clock.compute constant(mean=1) --gantt no/a.svg', ['--gantt no/a.svg: No such file']),
    ('train small.py --clock.slow 3', ['the clock has no compute time: give one']),
    ('train small.py --clock.compute constant(mean=0)', ['constant: mean=0 must be a number above 0']),
    ('train small.py --clock.compute constnt(mean=1)', ["'constnt'", 'constant']),
    ('train small.py --clock.compute measured(path="no.csv")', ["measured: there is no file 'no.csv'"]),
    ('train small.py --clock.compute constant(mean=1) --clock.slow 1 2 3 4 5', ['has factors of 5 workers']),
    (
        'compare small.py --update sgd(0.1) --target loss=2',
        ['--target loss=2: the time to it is simulated'],
    ),
    (
        'compare small.py --update sgd(0.1) --clock.compute constant(mean=1) --target loss',
        ["'loss' is no target: write a metric"],
    ),
    ('plan small.py --update mean(', ["'(' was never closed"]),
    ('plan small.py --search --machine v4', ["there is no machine 'v4', nor a file of that name; there are v5e, v5p"]),
    ('plan small.py --search --machine cpu --devices 0', ['devices=0 must be 1 or more']),
    (
        'plan small.py --search --machine cpu --devices 7',
        ['no layout has 7 devices: workers x fsdp x expert must divide the batch of 16', 'a power of two'],
    ),
    ('plan small.py --search --machine cpu --line meen()|sgd(0.1)', ["'meen' is neither registered nor in optax"]),
    ('plan small.py --search --machine cpu --keep-workers --devices 6', ['no layout has 6 devices and 4 workers']),
    ('plan small.py --search', ['a search needs a --machine, such as v5e or h100']),
    ('plan small.py --keep-workers', ['--keep-workers is an option of the search for a layout: give --search as well']),
    ('compare small.py', ['small.py has no function sweep()']),
    ('compare small.py --update mean()|sgd(1) --update mean()|sgd(1)', ['would be compared with itself']),
    ('compare small.py --update mean()|sgd(1) --seeds 0', ['seeds=0 must be 1 or more']),
    ('compare small.py --update mean()|sgd(1) --on dask', ["invalid choice 'dask'", "'here', 'ray', 'slurm'"]),
    ('compare small.py --update mean()|sgd(1) --on ray --ray.adress a:1', ['--ray.adress, a:1', '--ray.address']),
    ('compare small.py --update mean()|sgd(1) --on ray --ray.address a', ["'a' is no address of a Ray cluster"]),
    (
        'compare small.py --update mean()|sgd(1) --on ray --ray.address 127.0.0.1:1',
        ['nothing listens at 127.0.0.1:1, the address of the Ray cluster'],
    ),
    (
        'compare small.py --update mean()|sgd(1) --on slurm --slurm.option mem',
        ['--slurm.option mem: give NAME=VALUE, such as account=mine'],
    ),
    ('laws maen', ["no algorithm or codec 'maen'; did you mean 'mean'?"]),
    ('laws zzz', ["no algorithm or codec 'zzz'; there are bf16"]),
    ('laws small.py', ['small.py registers nothing: put @algorithm(...)']),
    ('laws nowhere.py', ["there is no file 'nowhere.py'"]),
    ('laws --workers 0', ['0 emulated devices cannot be divided']),
    ('algorithms all', ["there is no algorithm 'all'; there are accumulate, average, choco, dc_asgd, delay"]),
    ('codecs int9', ["there is no codec 'int9'; did you mean 'int8'?"]),
    ('codecs int8 --workers 0', ['--workers 0 must be 1 or more']),
    ('codecs --config small.py', ['give both']),
    ('codecs --workers 2 --config nowhere.py', ["there is no config 'nowhere.py'"]),
]


@pytest.mark.parametrize('words, parts', MISTAKES, ids=lambda x: x if isinstance(x, str) else '')
def test_a_mistake_gives_a_short_message(jaxdist: Jaxdist, words: str, parts: list[str]) -> None:
    code, out, err = jaxdist(*words.split(' '))
    assert code == 2
    assert out == ''
    for part in parts:
        assert part in err
    assert 'Traceback' not in err
    assert len(err.splitlines()) <= 12
    assert not Path('runs').exists()


@pytest.mark.parametrize('engine, package, extra', [('ray', 'ray', 'ray'), ('slurm', 'submitit', 'slurm')])
def test_an_engine_that_is_not_installed(
    jaxdist: Jaxdist, monkeypatch: pytest.MonkeyPatch, engine: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    code, _, err = jaxdist('compare', 'small.py', '--update', 'mean() | sgd(0.1)', '--on', engine)
    assert (code, f"pip install 'jaxdist[{extra}]'" in err) == (2, True)
    assert not Path('runs').exists()


WRONG_MODEL = CONFIG.replace('model=Perceptron(hidden=(8,))', 'model=Transformer()').replace(
    'Perceptron', 'Transformer'
)


@pytest.mark.parametrize(
    'config, part',
    [
        (WRONG_MODEL, 'Transformer'),
        (CONFIG.replace('Digits()', "FashionMNIST(path='gone')").replace('Digits', 'FashionMNIST'), "in 'gone'"),
        (CONFIG.replace('Digits()', "Text(path='gone.txt')").replace('Digits', 'Text'), 'gone.txt'),
        (CONFIG.replace('batch=16', 'batch=16 ='), 'SyntaxError: '),
        (CONFIG.replace('batch=16', 'butch=16'), 'small.py, line 8: TypeError'),
    ],
)
def test_a_config_that_cannot_be_trained(jaxdist: Jaxdist, config: str, part: str) -> None:
    Path('small.py').write_text(config)
    code, _, err = jaxdist('train', 'small.py')
    assert code == 2
    assert part in err
    assert 'Traceback' not in err


def test_an_error_of_the_program_keeps_its_traceback(jaxdist: Jaxdist) -> None:
    broken = mock.patch('jaxdist.cli.train.shlex', mock.Mock(quote=int))
    with broken, pytest.raises(ValueError, match='invalid literal for int'):
        jaxdist('train', 'small.py')


def test_messages_name_the_command_that_runs_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / '.venv' / 'bin' / 'jaxdist'
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('JAXDIST_TRAIN', raising=False)
    monkeypatch.setattr(sys, 'argv', [str(program)])
    assert train_command() == '.venv/bin/jaxdist train'
    monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)
    assert train_command() == 'jaxdist train'
    monkeypatch.setenv('JAXDIST_TRAIN', './scripts/train')
    assert train_command() == './scripts/train'
