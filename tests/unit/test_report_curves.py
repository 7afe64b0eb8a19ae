"""Curves of a comparison: means over seeds, at most eight colours, and labels that stay inside the picture."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixtures import overlapping, run, texts_outside

from jaxdist import report
from jaxdist.report.canvas import COLOURS, FAINT
from jaxdist.report.line_ends import spread

pytestmark = pytest.mark.slow

NAN = math.nan
LONG = "diloco(every={}, outer=sgd(0.7, momentum=0.9, nesterov=True), codec=top_k(k=41), exchange='gather')"


def end_texts(drawing):
    return [text for text in drawing.texts if text.get_text() != drawing.get_suptitle()]


def end_labels(drawing):
    return [text.get_text().replace('\n', ' ') for text in end_texts(drawing)]


def coloured(axes):
    return [curve for curve in axes.lines if curve.get_color() != FAINT]


def test_curves_are_means_over_seeds_against_bytes_and_steps(tmp_path):
    runs = {'exact': [run([5.0, 3.0]), run([6.0, 4.0])], 'unstable': [run([5.0, 2.0], sent=50), run([5.0, NAN])]}
    runs['diverged'] = [run([5.0, NAN])]
    drawing = report.curves_plot(runs, tmp_path / 'curves.png')
    sent, steps = drawing.axes
    assert [curve.get_xydata().tolist() for curve in steps.lines] == [[[0, 5.5], [10, 3.5]], [[0, 5], [10, 2]]]
    band = steps.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band} == {(0, 5), (0, 6), (10, 3), (10, 4)}
    assert sent.lines[0].get_xydata()[1].tolist() == [1000, 3.5], 'bytes of an evaluation come from training'
    assert end_labels(drawing) == ['exact', 'unstable (1 of 2 diverged)']
    assert drawing.get_suptitle() == 'not drawn: diverged (1 of 1 diverged)'


def test_equal_bytes_have_no_panel(tmp_path):
    runs = {'exact': [run([5.0, 3.0])], 'other': [run([5.0, 2.0])]}
    assert [axes.get_xlabel() for axes in report.curves_plot(runs, tmp_path / 'curves.svg').axes] == ['step']


def test_a_variant_that_sends_nothing_is_named_above_the_panel_of_bytes(tmp_path):
    runs = {'local': [run([5.0, 3.0], sent=0)], 'exact': [run([5.0, 3.0])]}
    drawing = report.curves_plot(runs, tmp_path / 'curves.svg')
    assert [len(axes.lines) for axes in drawing.axes] == [1, 2]
    assert drawing.get_suptitle() == 'nothing sent or recorded: local'
    assert len(report.curves_plot({'local': runs['local']}, tmp_path / 'curves.svg').axes) == 1


def test_the_baseline_and_the_seven_best_have_colours_and_the_others_are_grey(tmp_path):
    final = [9.0, *np.random.default_rng(0).permutation(18) / 10 + 2]
    runs = {f'variant {i}': [run([9.5, loss])] for i, loss in enumerate(final)}
    drawing = report.curves_plot(runs, tmp_path / 'curves.png')
    chosen = coloured(drawing.axes[0])
    best = {0, *np.argsort(final)[:7]}
    assert {int(label.split()[1]) for label in end_labels(drawing)} == best
    assert [curve.get_ydata()[-1] for curve in chosen] == [final[i] for i in sorted(best)]
    assert [curve.get_color() for curve in chosen] == list(COLOURS)
    assert len({curve.get_marker() for curve in chosen}) == len(chosen) == 8
    assert len(drawing.axes[0].lines) == 19
    assert drawing.get_suptitle() == 'grey: 11 more variants, which end between 2.7 and 3.7'


def test_a_wild_curve_does_not_flatten_the_others(tmp_path):
    runs = {'exact': [run([3.5, 2.0])], 'wild': [run([3.5, 900.0])], 'worse': [run([3.5, 2.5])]}
    drawing = report.curves_plot(runs, tmp_path / 'curves.png', ('entropy', 3.0))
    assert drawing.axes[0].get_ylim()[1] < 4
    assert drawing.get_suptitle() == 'wild: loss 900, off the scale'
    assert end_labels(drawing) == ['exact', 'worse']


def test_of_a_metric_that_should_be_high_the_highest_have_colours(tmp_path):
    auc = [0.1, *np.arange(9) / 10]
    runs = {
        f'variant {i}': [[{'step': s, 'held_out': {'auc': x, 'loss': 2.0}} for s in (1, 2)]] for i, x in enumerate(auc)
    }
    drawing = report.curves_plot(runs, tmp_path / 'curves.png', None, 'auc', 'higher')
    assert {int(label.split()[1]) for label in end_labels(drawing)} == {0, *range(3, 10)}
    assert drawing.axes[0].get_ylabel() == 'held-out auc (higher is better)'


@pytest.mark.parametrize('suffix', ['png', 'svg'])
@pytest.mark.parametrize('count', [1, 3, 19])
def test_labels_stay_inside_the_picture_and_do_not_overlap(tmp_path, count, suffix):
    # All curves end within a hundredth of each other, where labels would overlap.
    runs = {LONG.format(i): [run([5.0, 2 + i / 2000], sent=100 + 900 * i)] for i in range(count)}
    drawing = report.curves_plot(runs, tmp_path / f'curves.{suffix}')
    assert texts_outside(drawing) == []
    assert not overlapping(drawing.texts)
    beside = [text.get_window_extent().x0 for text in end_texts(drawing)]
    assert min(beside) > max(axes.get_window_extent().x1 for axes in drawing.axes)
    assert sum(axes.get_window_extent().width for axes in drawing.axes) > 0.5 * drawing.bbox.width


def test_a_label_has_the_colour_and_the_marker_of_its_curve(tmp_path):
    runs = {'a': [run([5.0, 3.0])], 'b': [run([5.0, 2.0])]}
    drawing = report.curves_plot(runs, tmp_path / 'curves.png')
    keys = [artist for artist in drawing.artists if artist.get_marker() != 'None']
    height = {text.get_text(): text.get_position()[1] for text in drawing.texts}
    for name, curve in zip('ab', drawing.axes[0].lines, strict=True):
        (key,) = [key for key in keys if key.get_ydata()[0] == pytest.approx(height[name])]
        assert (key.get_color(), key.get_marker()) == (curve.get_color(), curve.get_marker())


@pytest.mark.parametrize(
    'runs, message',
    [
        ({}, 'no curve'),
        ({'a': []}, "'a' has a run without evaluations"),
        ({'a': [[{'step': 1, 'loss': 1.0}]]}, "'a' has a run without evaluations"),
        ({'a': [run([3.0, 2.0]), run([3.0, 2.0, 1.0])]}, "'a' were evaluated at different steps"),
        ({'a': [run([3.0])], 'b': [run([2.0])]}, 'no run has two or more evaluations: there is no curve'),
        ({'a': [run([3.0, NAN])]}, 'no curve'),
    ],
)
def test_runs_without_a_curve_are_refused(tmp_path, runs, message):
    with pytest.raises(ValueError, match=message):
        report.curves_plot(runs, tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()


BOXES = st.lists(st.tuples(st.floats(0, 100), st.floats(0.5, 9)), min_size=1, max_size=9)


@given(BOXES)
def test_boxes_are_spread_without_overlaps_inside_the_space(boxes):
    wanted, heights = np.array(boxes).T
    centres = spread(wanted, heights, 0.0, 100.0)
    ends = sorted(zip(centres - heights / 2, centres + heights / 2, strict=True))
    assert all(low >= before - 1e-6 for (_, before), (low, _) in pairwise(ends))
    assert ends[0][0] >= -1e-6
    assert ends[-1][1] <= 100 + 1e-6
    inside = all((wanted >= heights / 2) & (wanted <= 100 - heights / 2))
    pairs = combinations(zip(wanted, heights, strict=True), 2)
    if inside and all(abs(one - other) >= (high + low) / 2 for (one, high), (other, low) in pairs):
        np.testing.assert_allclose(centres, wanted, atol=1e-6)


def test_overlapping_boxes_move_as_little_as_possible():
    # By hand: three boxes of height 2 at 5, 5 and 5.5 touch, around their mean of 31/6.
    np.testing.assert_allclose(spread(np.array([5, 5, 5.5]), np.full(3, 2.0), 0, 20), np.array([-2, 0, 2]) + 31 / 6)
