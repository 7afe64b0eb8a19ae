"""Comparisons: names of variants, resuming, and the report."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest
from run_fixtures import SMALL, small

from jaxdist.report import Summary
from jaxdist.training.compare import Variant, compare, run_folder, variants
from jaxdist.training.comparison_report import rows, write_report
from jaxdist.training.experiment import ExperimentError

LINES = ('mean() | sgd(0.1)', 'mean(codec=int8()) | sgd(0.1)')
SHORT = {'simulate': True, 'steps': 2}


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    'update',
    ['mean() | sgd(0.1)', 'mean()|sgd(0.1)', 'mean(codec=None) | sgd(0.1)'],
)
def test_equal_variants_are_refused_however_they_are_spelled(update: str) -> None:
    with pytest.raises(ExperimentError, match='would be compared with itself; for more seeds use --seeds'):
        variants([small('sgd(0.2) | average(2)'), SMALL, dataclasses.replace(small(update), seed=3)])


def test_labels_of_ones_own_replace_those_that_are_not_empty() -> None:
    experiments = [small(line) for line in (*LINES, 'mean() | sgd(0.2)')]
    names = [name for name, _ in variants(experiments, ['SGD', '', 'SGD, 0.2'])]
    assert names == ['SGD', 'mean(codec=int8()) | sgd(0.1)', 'SGD, 0.2']
    with pytest.raises(ExperimentError, match="two variants have the label 'a': each needs another one"):
        variants(experiments, ['a', 'b', 'a'])


def test_a_comparison_needs_a_variant() -> None:
    with pytest.raises(ExperimentError, match='nothing to compare'):
        variants([])


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Variant], Path, list[tuple[str, int, str]]]:
    """Two lines with two seeds each, stopped in the second run and resumed: variants, folder, and events since then."""
    folder = tmp_path_factory.mktemp('compare')
    compared = variants([small(line, **SHORT) for line in LINES])
    events: list[str] = []
    for name, _, event in compare(compared, 2, folder, stop=lambda: 'mean(codec=int8()) ready' in events):
        events.append(f'{name} {event.kind}')
    assert len(rows(compared, 2, folder)) == 1
    return compared, folder, [(name, seed, event.kind) for name, seed, event in compare(compared, 2, folder)]


def test_only_missing_runs_are_run_again(finished: tuple[list[Variant], Path, list[tuple[str, int, str]]]) -> None:
    compared, folder, events = finished
    assert list(dict.fromkeys((name, seed) for name, seed, _ in events)) == [
        ('mean(codec=int8())', 0),
        ('mean()', 1),
        ('mean(codec=int8())', 1),
    ]
    # The second run was stopped after its first step, so one step remains.
    assert [kind for name, seed, kind in events if (name, seed) == ('mean(codec=int8())', 0)].count('trained') == 1
    assert list(compare(compared, 2, folder)) == []
    assert [(row['name'], row['seed']) for row in rows(compared, 2, folder)] == [
        (name, seed) for name in ('mean()', 'mean(codec=int8())') for seed in (0, 1)
    ]


def test_rows_have_quality_and_costs(finished: tuple[list[Variant], Path, list[tuple[str, int, str]]]) -> None:
    compared, folder, _ = finished
    exact, coded = (row for row in rows(compared, 2, folder) if row['seed'] == 0)
    # Two steps. Exact: a vote and 610 float32, in a ring of 4. Int8: a vote, and twice to 3 others 153 codes in one
    # block of 256 with its scale, padded to 512.
    assert exact['sent'] == 2 * (2 * (4 + 4 * 610) * 3 // 4)
    assert coded['sent'] == 2 * (2 * 4 * 3 // 4 + 2 * 3 * 512)
    assert exact['memory'] == 4 * 610
    assert coded['held_out'] == pytest.approx(exact['held_out'], rel=0.02)


def test_variants_have_the_same_initial_weights_and_data(
    finished: tuple[list[Variant], Path, list[tuple[str, int, str]]],
) -> None:
    compared, folder, _ = finished
    first = [json.loads((run_folder(folder, e) / 'metrics.jsonl').read_text().splitlines()[0]) for _, e in compared]
    assert first[0]['loss'] == pytest.approx(first[1]['loss'], rel=1e-6)


def report(compared: list[Variant], seeds: int, folder: Path) -> tuple[list[Summary], str]:
    summaries = write_report(compared, seeds, folder, 'Two lines', 'jaxdist compare two.py')
    return summaries, (folder / 'index.html').read_text()


def test_the_report_is_self_contained(finished: tuple[list[Variant], Path, list[tuple[str, int, str]]]) -> None:
    compared, folder, _ = finished
    summaries, page = report(compared, 2, folder)
    assert [summary.runs for summary in summaries] == [2, 2]
    assert len((folder / 'rows.jsonl').read_text().splitlines()) == 4
    assert (folder / 'table.md').read_text().count('\n| mean(') == 2
    # One evaluation a run has no curve.
    names = ['frontier-accuracy.png', 'frontier.png', 'ranking-accuracy.png', 'ranking.png']
    assert sorted(path.name for path in folder.glob('*.png')) == names
    assert page.count('data:image/png;base64,') == 4
    assert 'alt="Dot plot of the final held-out loss of 2 variants' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert 'jaxdist compare two.py' in page
    assert page.count('Student t') == 1


def test_tables_and_pictures_have_further_formats(
    finished: tuple[list[Variant], Path, list[tuple[str, int, str]]],
) -> None:
    compared, folder, _ = finished
    write_report(compared, 2, folder, 'Two lines', 'jaxdist compare two.py', ['pdf', 'svg'])
    assert (folder / 'frontier-accuracy.pdf').read_bytes().startswith(b'%PDF')
    assert (folder / 'ranking.svg').read_text().startswith('<?xml')
    runs = list(csv.DictReader((folder / 'runs.csv').read_text().splitlines()))
    expected = rows(compared, 2, folder)
    assert [float(run['loss']) for run in runs] == [row['held_out'] for row in expected]
    assert [float(run['accuracy']) for run in runs] == [row['metrics']['accuracy'] for row in expected]
    first, _ = csv.DictReader((folder / 'table.csv').read_text().splitlines())
    assert float(first['loss']) == pytest.approx((expected[0]['held_out'] + expected[1]['held_out']) / 2)
    assert (folder / 'table.tex').read_text().count(r' \\') == 3
    write_report(compared, 2, folder, 'Two lines', 'jaxdist compare two.py')
    assert not [path for path in folder.iterdir() if path.suffix in ('.pdf', '.svg')]


def test_a_variant_that_cannot_be_trained_is_refused_before_any_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='would come out different on each worker'):
        list(compare(variants([small('mean() | sgd(0.1)', **SHORT), small('sgd(0.1)', **SHORT)]), 1, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_a_run_that_has_ended(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r'no run in .* has ended yet'):
        report(variants([SMALL]), 1, tmp_path)


def test_a_diverged_variant_is_reported_and_does_not_stop_the_others(tmp_path: Path) -> None:
    compared = variants([small(f'mean() | sgd({rate})', **SHORT) for rate in ('1e38', '0.1')])
    events = [(name, event.kind) for name, _, event in compare(compared, 1, tmp_path)]
    assert ('sgd(1e+38)', 'diverged') in events
    assert events[-1] == ('sgd(0.1)', 'done')
    summaries, page = report(compared, 1, tmp_path)
    assert [summary.diverged for summary in summaries] == [1, 0]
    assert 'diverged' in page
    assert list(compare(compared, 1, tmp_path)) == []


def test_a_report_where_all_diverged_has_no_plots(tmp_path: Path) -> None:
    compared = variants([small('mean() | sgd(1e38)', **SHORT)])
    assert [event.kind for _, _, event in compare(compared, 1, tmp_path)][-1] == 'diverged'
    _, page = report(compared, 1, tmp_path)
    assert 'data:image' not in page
    assert not (tmp_path / 'frontier.png').exists()
