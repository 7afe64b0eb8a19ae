"""The commands: their output, the files that they write, and their exit status."""

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from run_fixtures import CONFIG, Jaxdist, losses

from jaxdist.cli import main as cli
from jaxdist.training.experiment import load


@pytest.mark.slow
def test_a_run_in_a_pipe_is_plain_lines(jaxdist: Jaxdist) -> None:
    code, out, err = jaxdist('train', 'small.py')
    assert (code, err) == (0, '')
    assert '\x1b' not in out
    lines = out.splitlines()
    assert lines[0] == 'runs/small-1: mean() | sgd(0.1)'
    assert lines[1] == '4 workers on 4 devices; each sends 3.67 kB a step'
    assert lines[2].startswith('data: name digits, ')
    assert lines[3].startswith('step 2/4  loss ')
    assert lines[4].startswith('step 4/4  loss ')
    assert 'left' not in lines[4]
    assert lines[4].endswith('14.7 kB sent')
    assert lines[5].startswith('step 4  held-out: accuracy ')
    assert lines[5].endswith('(label histogram: 2.3087)')
    assert lines[6].endswith('in runs/small-1: metrics.jsonl, loss.png, checkpoints. Train longer with:')
    assert lines[7] == '  jaxdist train runs/small-1 --steps 8'
    assert len(lines) == 8
    assert sorted(losses(Path('runs/small-1'))) == [2, 4]


@pytest.mark.slow
def test_the_commands_that_a_run_prints_work(jaxdist: Jaxdist) -> None:
    jaxdist('train', 'small.py', '--steps', '2')
    facts = json.loads(Path('runs/small-1/run.json').read_text())
    assert jaxdist(*facts['resume'].split()[1:], '--steps', '3').code == 0
    assert max(losses(Path('runs/small-1'))) == 3
    assert load(Path('runs/small-1/experiment.json')).steps == 3
    again = jaxdist(*facts['repeat'].split()[1:])
    assert 'runs/small-2: ' in again.out
    assert losses(Path('runs/small-2')) == losses(Path('runs/small-1'))
    out = jaxdist('train', 'runs/small-2').out
    assert 'resuming from step 3' in out
    assert 'has already taken its 3 steps' in out
    assert json.loads(Path('runs/small-2/run.json').read_text())['commands'][-1] == 'jaxdist train runs/small-2'


@pytest.mark.slow
def test_options_change_the_experiment(jaxdist: Jaxdist) -> None:
    options = [
        '--run',
        'here',
        '--steps',
        '1',
        '--set',
        'sgd.learning_rate=0.5',
        '--model.hidden',
        '4',
        '4',
        '--no-guard',
    ]
    assert jaxdist('train', 'small.py', *options).code == 0
    experiment = load(Path('here/experiment.json'))
    assert (experiment.update, experiment.steps, experiment.guard) == ('mean() | sgd(0.5)', 1, False)
    assert experiment.model.hidden == (4, 4)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported(jaxdist: Jaxdist) -> None:
    jaxdist('train', 'small.py')
    Path('runs/small-1/checkpoints/4/manifest.json').write_text('{}')
    out = jaxdist('train', 'runs/small-1').out
    assert 'a damaged checkpoint was set aside as ' in out
    assert 'damaged-4-0: the manifest was altered' in out
    assert 'resuming from step 2' in out


def test_a_folder_with_another_experiment_is_refused(jaxdist: Jaxdist) -> None:
    jaxdist('train', 'small.py', '--steps', '1', '--run', 'here')
    code, _, err = jaxdist('train', 'small.py', '--seed', '3', '--run', 'here')
    assert code == 2
    assert 'here contains a run of another experiment; they differ in\n  seed: 3 given, 0 saved' in err


def test_a_nan_loss_ends_with_1_and_advice(jaxdist: Jaxdist) -> None:
    code, out, err = jaxdist('train', 'small.py', '--set', 'sgd.learning_rate=1e30', '--no-guard')
    assert code == 1
    assert 'step 2/4  loss nan' in out
    assert err.startswith('error: the loss is nan at step 2; it was never finite; the guard is off. ')
    assert 'Traceback' not in err


OWN = """
import optax
from jaxdist import laws
from jaxdist.core.registry import algorithm


@algorithm(paper='none', examples={{'twice()': (laws.sends_nothing(),)}})
def twice():
    'Doubles.'
    return optax.scale({factor})
"""


@pytest.mark.slow
def test_a_user_defined_algorithm(jaxdist: Jaxdist) -> None:
    own = OWN.format(factor=2.0) + CONFIG.replace('| sgd(0.1)', '| twice() | sgd(0.05)')
    Path('own.py').write_text(own)
    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        jaxdist('train', 'small.py')
        assert jaxdist('train', 'own.py', '--steps', '2').code == 0
    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # as in a new process, where it is not registered
        assert jaxdist('train', 'runs/own-1', '--steps', '4', '--script', 'own.py').code == 0
    missing = 'runs/own-1 needs own.py, and nothing in a folder is run by itself'
    assert missing in jaxdist('train', 'runs/own-1').err
    assert list(losses(Path('runs/own-1')).values()) == pytest.approx(list(losses(Path('runs/small-1')).values()))


BROKEN = """
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxdist import laws
from jaxdist.core import collectives
from jaxdist.core.registry import algorithm


@algorithm(paper='none', examples={'summed()': (laws.agrees(), laws.exact_mean())}, syncs='updates')
def summed(axis=collectives.AXIS):
    'Sums where it should average.'
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: collectives.psum(u, axis), updates))
"""


def test_laws_of_a_file(jaxdist: Jaxdist) -> None:
    Path('good.py').write_text(OWN.format(factor=2.0))
    Path('bad.py').write_text(BROKEN)
    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        code, out, _ = jaxdist('laws', 'good.py', '--workers', '2')
        assert code == 0
        assert out.splitlines()[0] == 'twice()'
        assert 'broken' not in out
        assert '  holds   sends nothing' in out
        code, out, _ = jaxdist('laws', 'bad.py', '--workers', '2')
    assert code == 1
    assert '  holds   workers agree bit for bit' in out
    assert '  holds   declares syncs=' in out
    assert '  broken  exact mean: ' in out
    assert '  holds   exact mean, 1 worker' in out
    assert out.splitlines()[-1] == '1 law is broken'


@pytest.mark.slow
def test_laws_of_a_name_and_of_a_file_of_jaxdist(jaxdist: Jaxdist) -> None:
    code, out, _ = jaxdist('laws', 'delay', '--workers', '2')
    assert code == 0
    assert '  holds   delays by 3' in out
    file = str(Path(cli.__file__).parents[1] / 'algorithms' / 'delay.py')
    assert jaxdist('laws', file, '--workers', '2') == (0, out, '')


def test_listings_have_parameters_and_claims(jaxdist: Jaxdist) -> None:
    code, out, _ = jaxdist('algorithms')
    assert code == 0
    assert '  mean(codec=None, feedback=False, exchange=None, seed=0)' in out
    assert 'claims: delays by 3, sends nothing' in out
    assert 'average(every, ' in out
    code, out, _ = jaxdist('codecs')
    assert code == 0
    assert "  int8(block=256, rounding='nearest')" in out
    assert 'bytes,' not in out


@pytest.mark.slow
def test_listings_have_measured_bytes(jaxdist: Jaxdist) -> None:
    code, out, _ = jaxdist('codecs', 'int8', 'power_sgd', '--workers', '8')
    assert code == 0
    text = ' '.join(out.split())
    assert 'mean(codec=int8()), 8 workers, 1,000,000 parameters: 1,784,832 bytes, 3.92 times less' in text
    assert 'by all_gather of uint8 + all_to_all of uint8' in text
    assert 'mean(codec=power_sgd(rank=1)), 8 workers, 1,000,000 parameters: 14,000 bytes' in text
    assert 'by all_reduce of float32' in text
    text = ' '.join(jaxdist('algorithms', '--workers', '2', '--config', 'small.py').out.split())
    assert 'delay(steps=3), 2 workers' in text
    assert 'nothing is sent' in text
    assert re.search(r'average\(every=4\), 2 workers, (\d+) parameters: \1 bytes, 4 times less', text)


@pytest.mark.slow
def test_compare_runs_lines_and_resumes(jaxdist: Jaxdist) -> None:
    words = ['compare', 'small.py', '--update', 'mean() | sgd(0.1)', '--update', 'mean() | sgd(1e38)', '--steps', '2']
    code, out, _ = jaxdist(*words)
    assert code == 0
    assert 'sgd(0.1), seed 0' in out
    assert 'diverged: the loss is nan at step 2' in out or 'diverged: the held-out loss is nan at step 2' in out
    files = 'index.html, table.md, table.tex, table.csv, runs.csv, rows.jsonl, ranking.png, ranking-accuracy.png'
    assert f'in runs/compare-small: {files}' in out.splitlines()
    assert '\x1b' not in out
    again = jaxdist(*words)
    assert again.code == 0
    assert 'step' not in again.out
    assert [line for line in again.out.splitlines() if line.startswith('│')] == [
        line for line in out.splitlines() if line.startswith('│')
    ]


SWEEP = (
    CONFIG
    + """

def sweep():
    import dataclasses
    for steps in (2, 3):
        yield dataclasses.replace(experiment(), steps=steps)
"""
)


@pytest.mark.slow
def test_options_change_every_experiment_of_a_sweep(jaxdist: Jaxdist) -> None:
    Path('small.py').write_text(SWEEP)
    assert jaxdist('compare', 'small.py', '--seed', '5', '--out', 'out', '--title', 'Steps & more').code == 0
    experiments = sorted((load(path) for path in Path('out').glob('runs/*/experiment.json')), key=lambda e: e.steps)
    line = 'mean() | sgd(0.1)'
    assert [(e.steps, e.seed, e.update) for e in experiments] == [(2, 5, line), (3, 5, line)]
    assert 'Steps &amp; more' in Path('out/index.html').read_text()
    code, _, err = jaxdist('compare', 'small.py', '--steps', '4')
    assert code == 2
    assert 'would be compared with itself' in err


def plan(jaxdist: Jaxdist, update: str, *words: str) -> Any:
    code, out, _ = jaxdist('plan', 'small.py', '--json', '--update', update, *words)
    assert code == 0
    return json.loads(out)


RING = 2 * 3 * 4 * 610 // 4
"""Bytes that one of four workers sends for the float32 mean of 610 parameters."""
CODED = 2 * 3 * 512
"""The same with int8: twice to three others, 153 codes in one block of 256 and its scale, padded to 512."""
VOTE = 2 * 3 * 4 // 4


@pytest.mark.parametrize(
    'update, sent, optimiser',
    [
        ('mean() | sgd(0.1)', RING + VOTE, 0),
        ('mean(codec=int8(), feedback=True) | sgd(0.1)', CODED + VOTE, 4 * 610 + 8),
        ('mean() | delay(steps=2) | sgd(0.1)', RING + VOTE, 2 * 4 * 610 + 4),
        ('sgd(0.1) | average(every=2)', RING // 2, 8),
    ],
)
def test_a_plan_equals_the_formula_in_whole_bytes(jaxdist: Jaxdist, update: str, sent: int, optimiser: int) -> None:
    cost = plan(jaxdist, update)
    assert cost['sent_per_step'] == {'workers': sent}
    memory = cost['memory']
    assert (memory['parameters'], memory['optimiser'], memory['batch']) == (4 * 610, optimiser, 4 * (4 * 64 + 4))
    assert all(type(size) is int for size in memory.values())
    assert cost['parameters'] == 610


def test_a_simulated_plan_has_the_bytes_of_a_mesh(jaxdist: Jaxdist) -> None:
    cost = plan(jaxdist, 'mean() | sgd(0.1)', '--simulate')
    assert cost['sent_per_step'] == {'workers': RING + VOTE}
    assert cost['simulated'] is True


def test_a_dry_run_shows_the_plan_and_trains_nothing(jaxdist: Jaxdist) -> None:
    dry = jaxdist('train', 'small.py', '--dry-run')
    assert dry == jaxdist('plan', 'small.py')
    assert dry.code == 0
    assert 'update      mean(codec=None, feedback=False, exchange=None, seed=0) | sgd(0.1)' in dry.out
    assert 'devices     4 workers on 4 devices' in dry.out
    assert '3,666' in dry.out
    assert 'in 4 steps each worker sends 14.7 kB to other workers' in dry.out
    assert not Path('runs').exists()


@pytest.mark.slow
def test_variants_have_labels_of_ones_own(jaxdist: Jaxdist) -> None:
    words = ['compare', 'small.py', '--steps', '2', '--update', 'mean() | sgd(0.1)', '--update', 'mean() | sgd(0.2)']
    assert jaxdist(*words, '--label', 'slow, 0.1', '--label', 'fast').code == 0
    assert '| slow, 0.1 |' in Path('runs/compare-small/table.md').read_text()
    error = jaxdist(*words, '--label', 'slow').err
    assert 'there are 1 --label for 2 --update: give one label for each update line' in error
    Path('small.py').write_text(SWEEP.replace('yield dataclasses', "yield f'{steps} steps', dataclasses"))
    assert jaxdist('compare', 'small.py', '--out', 'out').code == 0
    assert '| 3 steps |' in Path('out/table.md').read_text()
