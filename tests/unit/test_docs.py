"""The code in the documentation is tested and runs."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import launch
from run_fixtures import Jaxdist, finish, losses, saved, train_until
from sklearn import linear_model
from subprogram import PROGRAM

import jaxdist
from jaxdist import line, means
from jaxdist.core import registry
from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.evaluation import collected, evaluator, metrics_of
from jaxdist.training.experiment import load
from jaxdist.training.step import shared_params

DOCS = Path(__file__).parents[2] / 'docs'


def blocks(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    'page, file',
    [('your_own_algorithm.md', 'trimmed_mean.py'), ('codecs.md', 'mu_law.py'), ('your_model.md', 'own_net.py')],
)
def test_the_worked_example_on_the_page_is_the_file(page: str, file: str) -> None:
    assert blocks(page)[0] == (DOCS / 'examples' / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize('file, laws', [('trimmed_mean.py', 24), ('mu_law.py', 9)])
def test_the_worked_example_satisfies_its_laws(tmp_path: Path, file: str, laws: int) -> None:
    process = launch(PROGRAM, 'laws', str(DOCS / 'examples' / file), cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert out.count('holds') == laws
    assert 'broken' not in out


def test_the_pages_name_every_codec() -> None:
    page = (DOCS / 'codecs.md').read_text()
    assert [name for name in registry.codecs() if f'{name}(' not in page] == []


def test_the_worked_example_trains_in_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    space: dict[str, object] = {}
    exec(blocks('your_own_algorithm.md')[0], space)
    rng = np.random.default_rng(0)
    truth = np.array([1.0, -2.0, 3.0])
    x = rng.normal(size=(64, 3)).astype(np.float32)
    space['batch'] = {'x': x, 'y': (x @ truth).astype(np.float32)}
    code = blocks('your_own_algorithm.md')[1]
    exec(code + '\nfor _ in range(100): state, metrics = program.step(state, batch)', space)
    np.testing.assert_allclose(space['state'].params, truth, atol=1e-3)  # type: ignore[attr-defined]


def test_the_worked_example_of_a_line_search_fits_a_regression() -> None:
    space: dict[str, Any] = {}
    exec(blocks('update_line.md')[0], space)
    np.testing.assert_allclose(space['state'].params, [1.0, -2.0, 3.0], atol=1e-4)


@pytest.mark.slow
def test_the_page_on_models_of_ones_own_runs() -> None:
    """A script, a `TrainState` loop that fits a regression, and a model with one more metric."""
    script: dict[str, Any] = {}
    loop: dict[str, Any] = {}
    metric: dict[str, Any] = {}
    exec(blocks('your_model.md')[3], script)
    assert means(script['metrics'])['loss'] < 0.5
    assert {row.dtype for row in script['ledger'].rows} == {'uint8', 'float32'}
    exec(blocks('your_model.md')[4], loop)
    np.testing.assert_allclose(loop['state'].params['kernel'][:, 0], [1, -2, 3], atol=0.02)
    exec(blocks('your_model.md')[1], metric)
    model = metric['with_macro_f1'](script['model'], 2)
    out = evaluator(model)(shared_params(script['state'], script['program'].layout), weighted(script['draw']()))
    assert 0.5 < metrics_of(collected([(out, weighted(script['draw']()))]), model.metrics)['macro_f1'] <= 1


def test_the_iterator_of_the_page_on_models_of_ones_own_repeats() -> None:
    space: dict[str, Any] = {}
    exec(blocks('your_model.md')[2], space)
    first, again = (space['data'].batch(0, 130, 16, 4)['x'] for _ in range(2))
    assert first.shape == (16, 2)
    np.testing.assert_array_equal(first, again)


@pytest.mark.slow
def test_the_models_of_the_pages_on_many_devices_are_alike_under_every_layout() -> None:
    parts: dict[str, Any] = {}
    net: dict[str, Any] = {}
    law: dict[str, Any] = {}
    exec(blocks('many_devices.md')[1], parts)
    batch = {'x': np.random.default_rng(0).normal(size=(8, 4)), 'y': np.ones(8)}
    layouts = [{'workers': 1, 'stage': 8}, {'workers': 1, 'stage': 2, 'fsdp': 4}]
    results = jaxdist.same_under(parts['model'], layouts, batch, microbatches=2)
    exec(blocks('many_devices.md')[3], net)
    tokens = {'tokens': np.random.default_rng(0).integers(0, 256, (8, 129))}
    results += jaxdist.same_under(net['model'], [{'workers': 2, 'fsdp': 2, 'context': 2}], tokens)
    exec(blocks('parallelism.md')[0], law)
    assert [result.problem for result in (*results, *law['results'])] == [''] * 5


def test_the_layer_of_experts_of_the_page_runs() -> None:
    page: dict[str, Any] = {}
    exec(blocks('many_devices.md')[2], page)
    rng = np.random.default_rng(0)
    shapes = {'router': (4, 3), 'up': (3, 4, 8), 'down': (3, 8, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    y, balance, dropped = page['layer'](params, rng.normal(size=(2, 6, 4)).astype(np.float32))
    assert y.shape == (2, 6, 4)
    assert balance > 0 <= dropped


def weighted(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, 'weight': np.ones(len(batch['y']), np.float32)}


def test_every_line_of_the_page_on_models_of_ones_own_can_be_built() -> None:
    page = (DOCS / 'your_model.md').read_text().replace('\\|', '¦')
    rows = [row.split('|')[2] for row in re.findall(r'^\|.*\|$', page, re.MULTILINE)]
    texts = [code.replace('¦', '|') for row in rows for code in re.findall('`(.*?)`', row) if '(' in code]
    lines = [text for text in texts if line.calls.find(text.partition('(')[0])]
    assert len(lines) > 12
    for text in lines:
        line.build(text)


@pytest.mark.slow
def test_the_config_of_the_page_trains(jaxdist: Jaxdist) -> None:
    options = ['--run', 'runs/a', '--model.width', '16', '--update', 'adamw(1e-2) | average(every=10)', '--steps', '60']
    file = str(DOCS / 'examples' / 'own_net.py')
    code, out, err = jaxdist('train', file, *options)
    assert code == 0, err
    assert 'held-out: accuracy 0.' in out
    assert Path('runs/a/code/own_net.py').exists()
    assert 'model state' in jaxdist('plan', 'runs/a', '--script', file).out


@pytest.mark.slow
@pytest.mark.parametrize('update', ['mean(codec=int8(), feedback=True) | adamw(1e-2)', 'sgd(0.1) | average(every=3)'])
def test_a_run_with_running_statistics_resumes_bit_for_bit(update: str, tmp_path: Path) -> None:
    own = load(DOCS / 'examples' / 'own_net.py')
    changes = {'update': update, 'steps': 7, 'batch': 32, 'log_every': 1, 'evaluate_every': 7, 'save_every': 4}
    experiment = dataclasses.replace(own, **changes, model=type(own.model)(width=8))
    finish(experiment, tmp_path / 'whole')
    train_until(4, experiment, tmp_path / 'parts')
    finish(experiment, tmp_path / 'parts')
    (step, whole), (other, parts) = (saved(experiment, tmp_path / name) for name in ('whole', 'parts'))
    assert step == other == 7
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path / 'whole') == losses(tmp_path / 'parts')


def in_first_column(page: str) -> list[str]:
    """The code in the first column of a page's tables."""
    rows = re.findall(r'^\| (`.*?`) \| ', (DOCS / page).read_text().replace('\\|', '¦'), re.MULTILINE)
    return [code.replace('¦', '|') for row in rows for code in re.findall('`(.*?)`', row)]


def test_every_line_and_codec_of_the_tables_can_be_built() -> None:
    texts = [*in_first_column('update_line.md'), *in_first_column('codecs.md')]
    assert 'mean() | adamw(1e-3)' in texts
    assert 'top_k(k=41, block=4096)' in texts
    for text in texts:
        if '(' in text:
            known = text.partition('(')[0] in registry.codecs()
            (line.build_codec if known else line.build)(text.replace('...', 'int4()'))


def test_the_page_names_every_constraint_and_transformation_of_dual_lines() -> None:
    page = (DOCS / 'constraints.md').read_text()
    assert [name for name in {**registry.constraints(), **registry.duals()} if name not in page] == []


def test_the_ten_lines_on_constraints_reach_the_closed_form() -> None:
    space: dict[str, Any] = {}
    exec(blocks('constraints.md')[0], space)
    mean = np.arange(24.0).reshape(8, 3).mean(0) / 24  # the projection of the mean onto the plane
    np.testing.assert_allclose(space['state'].params, mean + (1 - mean.sum()) / 3, atol=1e-5)
    metrics = space['means'](space['metrics'])['constraints']['budget']
    assert metrics == pytest.approx({'value': 0, 'violation': 0, 'multiplier': 2 * (mean.sum() - 1) / 3}, abs=1e-5)


def test_the_user_defined_constraint_can_be_used_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    exec(blocks('constraints.md')[1], {})
    task = Digits().load().task
    constraint = line.build_constraint('calm: small_outputs(bound=0.5)', Perceptron(hidden=()).build(task))
    assert (constraint.over, constraint.bound) == ('mean', 0.5)


def test_every_transformation_of_the_tables_of_dual_lines_can_be_built() -> None:
    texts = [text for text in in_first_column('constraints.md') if '(' in text]
    assert 'scale_by_penalty() | sgd(1.0)' in texts
    for text in texts:
        (line.build if text.startswith('fed_admm') else line.build_dual)(text)


def test_the_lines_on_consensus_reach_the_lasso_of_all_rows() -> None:
    space: dict[str, Any] = {}
    exec(blocks('constraints.md')[2], space)
    data = space['data']
    x, y = (data[name].astype(float) for name in 'xy')
    expected = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-12).fit(x, y).coef_
    assert space['outcome'].converged
    np.testing.assert_allclose(space['outcome'].state.z, expected, atol=2e-3)
