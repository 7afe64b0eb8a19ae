"""The plot of final losses: every variant in order, with names and values inside the picture."""

import numpy as np
import pytest
from report_fixtures import line, overlapping, score, texts_outside

from jaxdist import report

pytestmark = pytest.mark.slow


def ticks(axes):
    return [tick.get_text().replace('\n', ' ') for tick in axes.get_yticklabels()]


def test_variants_are_in_the_order_of_their_losses(tmp_path):
    losses = {'exact': 2.0, 'worse': 2.5, 'better': 1.5, 'wild': None}
    lines = [line(name, 1e6, loss, half=0.25) for name, loss in losses.items()]
    drawing = report.ranking_plot(lines, tmp_path / 'ranking.png', ('entropy', 2.75))
    axes = drawing.axes[0]
    assert ticks(axes) == ['better', 'exact', 'worse']
    heights = axes.get_yticks()
    assert heights[0] < heights[1] < heights[2]
    assert axes.yaxis_inverted()
    points = {tuple(point) for bars in axes.containers for point in bars[0].get_xydata()}
    assert points == set(zip((1.5, 2.0, 2.5), heights, strict=True))
    bars = [segment for bars in axes.containers for segment in bars[2][0].get_segments()]
    assert {tuple(np.diff(bar[:, 0]).round(9)) for bar in bars} == {(0.5,)}
    assert ticks(axes.child_axes[0]) == ['1.50 ± 0.25', '2.00 ± 0.25', '2.50 ± 0.25']
    assert drawing.get_suptitle() == 'wild: every run diverged'
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ['entropy: 2.750', 'baseline: exact']


def test_of_a_metric_that_should_be_high_the_highest_is_first(tmp_path):
    lines = [
        line(name, 1e6, 2.0)._replace(metrics={'loss': score(2.0), 'accuracy': score(x, 0.02, 'higher')})
        for name, x in {'low': 0.7, 'high': 0.9}.items()
    ]
    axes = report.ranking_plot(lines, tmp_path / 'ranking.png', ('entropy', 3.0), 'accuracy').axes[0]
    assert ticks(axes) == ['high', 'low']
    assert ticks(axes.child_axes[0]) == ['90.0 ± 2.0 %', '70.0 ± 2.0 %']
    assert 'accuracy at the end of the run (higher is better; mean' in axes.get_xlabel()


def test_a_variant_far_above_the_baseline_loss_is_a_note(tmp_path):
    lines = [line('a', 1e6, 2.0, half=None), line('b', 1e6, 40.0, diverged=1)]
    drawing = report.ranking_plot(lines, tmp_path / 'ranking.svg', ('entropy', 3.0))
    assert ticks(drawing.axes[0]) == ['a']
    assert drawing.get_suptitle() == 'b: 40, off the scale; entropy: 3.000, off the scale'


@pytest.mark.parametrize('count', [1, 5, 21])
def test_names_and_values_stay_inside_the_picture(tmp_path, count):
    names = [f'diloco(every={i}, outer=sgd(0.7, momentum=0.9), codec=top_k(k=41, block=4096))' for i in range(count)]
    lines = [line(name, 1e6, 2 + i / 100, half=None if i % 3 else 0.01) for i, name in enumerate(names)]
    lines += [line(f'a diverging variant called {i}', 1e6, 1e3 + i) for i in range(count)]
    drawing = report.ranking_plot(lines, tmp_path / 'ranking.png', ('entropy', 3.0))
    assert ticks(drawing.axes[0]) == names
    assert texts_outside(drawing) == []
    assert not overlapping(drawing.axes[0].get_yticklabels())


def test_there_is_no_plot_without_a_loss(tmp_path):
    with pytest.raises(ValueError, match='every run diverged'):
        report.ranking_plot([line('wild', 1e6, None)], tmp_path / 'ranking.png')
