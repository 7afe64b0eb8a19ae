"""The plot of quality against bytes shows every variant, or a note names those that it leaves out."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import labels, legend, line, score, texts_outside

from jaxdist import report

pytestmark = pytest.mark.slow


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1e5, 1e6, 1e7]), st.sampled_from([1.0, 2.0, 3.0])),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=10, deadline=None)
def test_the_front_has_the_points_that_no_other_dominates(tmp_path_factory, points):
    lines = [line(f'{index}', sent, loss) for index, (sent, loss) in enumerate(points)]
    drawing = report.frontier_plot(lines, tmp_path_factory.getbasetemp() / 'frontier.svg')
    dominated = {(x, y) for x, y in points if any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)}
    assert front(drawing) == pytest.approx(sorted(y for x, y in points if (x, y) not in dominated))


def front(drawing):
    """The heights of the points that are filled."""
    shown = next(bars for bars in drawing.axes[0].containers if bars.get_label() == 'Pareto front')
    return sorted(shown[0].get_ydata())


def test_the_front_is_decided_by_paired_intervals(tmp_path):
    """`noisy` has a lower mean for fewer bytes than `exact`, by chance; `sure` is lower at each seed alike."""
    exact = line('exact', 2e6, 2.0)._replace(metrics={'loss': report.Score({0: 1.0, 1: 2.0, 2: 3.0})})
    noisy = line('noisy', 1e6, 2.0)._replace(metrics={'loss': report.Score({0: 2.5, 1: 1.5, 2: 1.4})})
    sure = line('sure', 1e6, 2.0)._replace(metrics={'loss': report.Score({0: 0.9, 1: 1.9, 2: 2.9})})
    assert front(report.frontier_plot([exact, noisy], tmp_path / 'f.svg')) == pytest.approx([1.8, 2.0])
    assert front(report.frontier_plot([exact, sure], tmp_path / 'f.svg')) == pytest.approx([1.9])


def test_of_a_metric_that_should_be_high_the_highest_are_the_front(tmp_path):
    low, high = (
        line(name, 1e6, 2.0)._replace(metrics={'loss': score(2.0), 'auc': score(x, 0.01, 'higher')})
        for name, x in {'low': 0.7, 'high': 0.8}.items()
    )
    drawing = report.frontier_plot([low, high, line('without', 1e6, 1.0)], tmp_path / 'f.svg', ('entropy', 3.0), 'auc')
    assert front(drawing) == pytest.approx([0.8])
    assert drawing.axes[0].get_ylabel() == 'held-out auc (higher is better; mean, 95 % interval)'
    assert drawing.get_suptitle() == 'without: no auc'
    with pytest.raises(ValueError, match="none has the metric 'f1'"):
        report.frontier_plot([low], tmp_path / 'f.svg', metric='f1')


def test_labels_cover_neither_each_other_nor_the_marks(tmp_path):
    sent = [10.0 ** (6 + i // 3) * 1.1 ** (i % 3) for i in range(9)]
    lines = [line(f'a line called {i}', sent[i], 2 + 0.0005 * (i % 3), half=0.004) for i in range(9)]
    drawing = report.frontier_plot(lines, tmp_path / 'frontier.png')
    drawing.draw_without_rendering()
    axes, texts = drawing.axes[0], labels(drawing)
    boxes = [text.get_window_extent() for text in texts.values()]
    assert set(texts) == {each.name for each in lines}
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    heights = np.linspace(-0.004, 0.004, 101)
    bars = [(each.sent, each.held_out.mean + height) for each in lines for height in heights]
    assert not any(box.contains(*point) for box in boxes for point in axes.transData.transform(bars))
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_many_points_are_numbered_and_a_note_names_those_off_the_scale(tmp_path):
    lines = [line(f'a line called {i}', 10.0 ** (6 + i / 5), 2 - 0.01 * i) for i in range(12)]
    lines.append(line('a diverging one', 1e5, 40.0))
    drawing = report.frontier_plot(lines, tmp_path / 'frontier.svg', ('entropy', 3.0))
    assert list(labels(drawing)) == [str(i) for i in range(1, 13)]
    names = [text.get_text() for text in drawing.legends[1].get_texts()]
    assert names == [each.name for each in lines[:12]]
    assert drawing.get_suptitle().startswith('a diverging one: 40, off the scale; entropy: 3.000')
    assert drawing.axes[0].get_ylim()[1] < 4


def test_error_bars_are_the_intervals(tmp_path):
    drawing = report.frontier_plot([line('a', 1e6, 2.0, half=0.25)], tmp_path / 'frontier.svg')
    (bar,) = drawing.axes[0].collections[0].get_segments()
    np.testing.assert_allclose(bar, [[1e6, 1.75], [1e6, 2.25]])


def test_zero_bytes_have_a_separate_place(tmp_path):
    axes = report.frontier_plot([line('a', 0, 3.0), line('b', 1e6, 2.0)], tmp_path / 'frontier.svg').axes[0]
    zero = axes.get_xticks()[0]
    assert axes.get_xticklabels()[0].get_text() == '0 B'
    assert axes.containers[0][0].get_xdata().tolist() == [zero, 1e6]
    assert axes.get_xlim()[0] < zero < axes.get_xticks()[1] <= 1e6


def test_a_note_names_what_is_not_drawn(tmp_path):
    lines = [line('a', 1e6, 2.0, diverged=1), line('wild', 1e6, None, diverged=3)]
    far = report.frontier_plot(lines, tmp_path / 'frontier.svg', ('entropy', 4.5))
    assert far.get_suptitle() == 'wild: every run diverged; entropy: 4.500, off the scale'
    assert list(labels(far)) == ['a (1 of 3 diverged)']
    assert 'entropy: 2.200' in legend(report.frontier_plot(lines, tmp_path / 'f.svg', ('entropy', 2.2)))
    with pytest.raises(ValueError, match='every run diverged'):
        report.frontier_plot(lines[1:], tmp_path / 'frontier.svg')


def test_labels_that_cannot_be_placed_become_numbers(tmp_path):
    names = [f"diloco(every={i}, outer=sgd(0.7, momentum=0.9), codec=top_k(k=41), exchange='gather')" for i in range(9)]
    # Nine points on almost the same spot.
    lines = [line(name, 1e6 * (1 + i / 1e3), 2 + i / 1e4, half=0.5) for i, name in enumerate(names)]
    lines += [line('far away', 1e9, 2.5)]
    drawing = report.frontier_plot(lines, tmp_path / 'frontier.png')
    assert set(labels(drawing)) == {str(i) for i in range(1, 11)}
    listed = [text.get_text().replace('\n', ' ') for text in drawing.legends[1].get_texts()]
    assert listed == [*names, 'far away']
    assert texts_outside(drawing) == []
