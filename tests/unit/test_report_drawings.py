"""Plots show all their numbers, or a text names those left out; the page is self-contained."""

import base64
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import legend, line, run, texts_outside

from jaxdist import report
from jaxdist.report.canvas import smooth
from jaxdist.report.gantt import gantt_plot

pytestmark = pytest.mark.slow

NAN = math.nan


# One run


def test_the_loss_plot_shows_every_number(tmp_path):
    records = run([5.0, 3.0, 2.5, 2.25])
    records[5]['loss'] = NAN
    drawing = report.loss_plot(records, tmp_path / 'loss.png', ('entropy', 4.5))
    raw, smoothed, held_out, baseline, missing = drawing.axes[0].lines
    expected = [NAN if step == 6 else 4 - 0.01 * step for step in range(1, 31)]
    np.testing.assert_allclose(raw.get_ydata(), expected)
    # The moving average of a straight line is the line, except at the two values next to the gap.
    np.testing.assert_allclose(smoothed.get_ydata(), expected, rtol=0, atol=0.0051)
    np.testing.assert_array_equal(held_out.get_xydata(), [[0, 5.0], [10, 3.0], [20, 2.5], [30, 2.25]])
    assert set(baseline.get_ydata()) == {4.5}
    assert list(missing.get_xdata()) == [6]
    assert legend(drawing)[1:] == [
        'held-out (last: 2.250)',
        'entropy: 4.500',
        'not finite: 1, first at step 6',
    ]
    assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')


def test_a_metric_has_a_panel(tmp_path):
    records = run([5.0, 3.0])
    for record in records[-2:]:
        record['held_out']['auc'] = 1 / record['held_out']['loss']
    drawing = report.loss_plot(records, tmp_path / 'loss.png', metrics={'auc': 'higher'})
    assert drawing.axes[1].lines[0].get_xydata().tolist() == [[0, 0.2], [10, 1 / 3]]
    assert (drawing.axes[1].get_ylabel(), drawing.axes[1].get_xlabel()) == ('auc\n(higher is better)', 'step')
    assert texts_outside(drawing) == []


def test_the_upper_axis_reads_bytes_at_steps(tmp_path):
    records = [{'step': step, 'loss': 1.0, 'sent': sent} for step, sent in ((10, 0), (20, 1e6), (30, 5e6))]
    axes, above = report.loss_plot(records, tmp_path / 'loss.svg').axes
    at = dict(zip((text.get_text() for text in above.get_xticklabels()), above.get_xticks(), strict=True))
    assert above.get_xlim() == axes.get_xlim()
    assert (at['1 MB'], at['3 MB'], at['5 MB']) == (20, 25, 30)


@pytest.mark.parametrize('sent', [{}, {'sent': 0}])
def test_without_bytes_there_is_no_upper_axis(tmp_path, sent):
    assert len(report.loss_plot([{'step': 1, 'loss': 1.0} | sent], tmp_path / 'loss.svg').axes) == 1


def test_after_a_resume_the_later_record_of_a_step_counts(tmp_path):
    records = [{'step': step, 'loss': loss} for step, loss in ((2, 9.0), (3, 8.0), (1, 7.0), (2, 6.0), (3, 5.0))]
    drawing = report.loss_plot(records, tmp_path / 'loss.svg')
    assert drawing.axes[0].lines[0].get_xydata().tolist() == [[1, 7.0], [2, 6.0], [3, 5.0]]


@given(st.lists(st.floats(-9, 9) | st.just(NAN), min_size=1, max_size=30), st.sampled_from([1, 3, 5, 9]))
@settings(deadline=None)
def test_smoothing_is_the_mean_of_a_symmetric_window(values, window):
    expected = []
    for at, value in enumerate(values):
        reach = min(window // 2, at, len(values) - 1 - at)
        near = [near for near in values[at - reach : at + reach + 1] if not math.isnan(near)]
        expected.append(NAN if math.isnan(value) else sum(near) / len(near))
    np.testing.assert_allclose(smooth(np.array(values), window), expected, atol=1e-12)


@pytest.mark.parametrize(
    'records, message',
    [
        ([], 'no records'),
        ([{'loss': 1.0}], r"records\[0\] lacks 'step'; it has: loss"),
        ([{'step': 1, 'lr': 1.0}], "neither 'loss' nor 'held_out'; it has: step, lr"),
        ([{'step': 1, 'held_out': {'accuracy': 1.0}}], r"records\[0\]\['held_out'\] lacks 'loss'"),
        ([{'step': 1, 'loss': '2'}], "'loss' should be a number, not '2'"),
        ([{'step': 1, 'loss': 1, 'sent': 9}, {'step': 2, 'loss': 1, 'sent': 8}], 'falls after step 1'),
    ],
)
def test_wrong_records_are_refused_with_their_place(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        report.loss_plot(records, tmp_path / 'loss.png')


# Constraints


def test_the_plot_of_constraints_has_every_value_and_readable_names(tmp_path):
    names = [f'the squared norm of tensor number {k}' for k in range(11)]
    records = [
        {
            'step': step,
            'constraints': {name: {'value': 1 / (step + k), 'multiplier': k} for k, name in enumerate(names)},
        }
        for step in (1, 2, 3)
    ]
    records.append({'step': 3, 'judged': {'training': dict.fromkeys(names, 0.5)}})
    drawing = report.constraints_plot(records, tmp_path / 'constraints.png', 0.01)
    above, below = drawing.axes
    assert above.lines[0].get_xydata().tolist() == [[1, 1], [2, 1 / 2], [3, 1 / 3]]
    assert above.lines[1].get_xydata().tolist() == [[3, 0.5]]
    assert below.lines[10].get_ydata().tolist() == [10, 10, 10]
    assert legend(drawing) == names
    styles = [(curve.get_color(), curve.get_linestyle()) for curve in below.lines[:11]]
    assert len(set(styles)) == 11
    assert texts_outside(drawing) == []


# All plots


def test_texts_of_one_runs_plot_stay_inside_the_picture(tmp_path):
    baseline = (
        'the best constant prediction of a data set with a name that is much longer than a line of a legend',
        4.5,
    )
    assert texts_outside(report.loss_plot(run([5.0, 3.0, NAN]), tmp_path / 'loss.png', baseline)) == []


def test_the_same_numbers_make_the_same_picture(tmp_path):
    for name in ('a.png', 'b.png'):
        report.frontier_plot([line('a', 1e6, 2.0), line('b', 2e6, 1.9)], tmp_path / name)
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf, not as 'loss\.gif'"):
        report.loss_plot(run([1.0]), tmp_path / 'loss.gif')


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r"pip install 'jaxdist\[plot\]'"):
        report.loss_plot(run([1.0]), tmp_path / 'loss.png')


def test_plots_touch_no_global_state(tmp_path):
    program = (
        'import sys, pathlib, jaxdist.report as report\n'
        'assert "matplotlib" not in sys.modules\n'
        f'report.loss_plot([{{"step": 1, "loss": 1.0}}], pathlib.Path({str(tmp_path / "loss.png")!r}))\n'
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-W', 'error', '-c', program], check=True)


# The page


class Page(HTMLParser):
    """The resources and the text of a page; fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.text, self.open, self.alternatives = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'data', 'action')]
        self.alternatives += [value for name, value in attrs if name == 'alt']
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_self_contained_and_complete(tmp_path):
    image = tmp_path / 'loss.png'
    report.loss_plot(run([5.0, 3.0]), image)
    lines = [line('exact', 4e6, 2.0), line('<int8>', 1e6, 1.9, difference=report.Interval(-0.1, 0.05, 3))]
    details = {
        'command': 'jaxdist compare a.py --update "a | b"',
        'experiment': {'steps': 5, 'name': '<script>'},
    }
    picture = report.Picture(image, 'Loss "x"', 'Curves of < 2 losses')
    path = report.page('A <b> & B', ['1 < 2'], {'Table <1>': lines}, [picture], details, tmp_path / 'a.html')
    html = path.read_text(encoding='utf-8')
    page = Page(html)
    assert len(page.fetched) == 1
    kind, data = page.fetched[0].split(',')
    assert (kind, base64.b64decode(data)) == ('data:image/png;base64', image.read_bytes())
    assert {'A <b> & B', '1 < 2', 'Table <1>', '<int8>', '<int8>()', details['command']} <= set(page.text)
    assert details['experiment'] in [json.loads(text) for text in page.text if text.startswith('{')]
    assert (page.alternatives, 'Loss "x"' in page.text) == (['Curves of < 2 losses'], True)
    assert 'url(' not in html
    assert '@import' not in html
    assert html.count('class=best') == 1


@pytest.mark.parametrize(
    'images, details, message',
    [
        ([], {}, "details need a 'command'"),
        ([], {'command': 'x', 'experiment': {1, 2}}, r"details\['experiment'\] is not JSON"),
        (['plot.tiff'], {'command': 'x'}, "not 'plot.tiff'"),
    ],
)
def test_an_incomplete_page_is_refused(tmp_path, images, details, message):
    images = [report.Picture(tmp_path / name, 'A caption.', 'An alternative.') for name in images]
    with pytest.raises(ValueError, match=message):
        report.page('A', [], {}, images, details, tmp_path / 'a.html')
    assert not (tmp_path / 'a.html').exists()


def test_of_many_workers_a_gantt_picture_has_the_first_and_the_last(tmp_path):
    drawing = gantt_plot(np.zeros((1, 40)), np.ones((1, 40)), tmp_path / 'gantt.svg')
    rows = [int(text.get_text()) for text in drawing.axes[0].get_yticklabels()]
    assert rows == [*range(16), *range(24, 40)]
