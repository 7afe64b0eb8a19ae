"""Numbers as text, summaries over seeds, and tables: against closed forms; wrong rows are refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import report
from jaxdist.report.text import UNITS, decimals

NAN, INFINITY = math.nan, math.inf


def row(name, seed, held_out, **others):
    costs = {'sent': 1000, 'memory': 2000, 'seconds': 10.0}
    return {'name': name, 'update': f'{name}()', 'seed': seed, 'held_out': held_out} | costs | others


def rows_of(**losses):
    return [row(name, seed, loss) for name, values in losses.items() for seed, loss in enumerate(values)]


# Numbers as text


@pytest.mark.parametrize(
    'n, text',
    [
        (0, '0 B'),
        (1, '1 B'),
        (999, '999 B'),
        (999.6, '1.00 kB'),
        (1000, '1.00 kB'),
        (9994, '9.99 kB'),
        (9996, '10.0 kB'),
        (99_960, '100 kB'),
        (999_499, '999 kB'),
        (999_500, '1.00 MB'),
        (1_234_567, '1.23 MB'),
        (10**12, '1.00 TB'),
        (10**22, '10000 EB'),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(n, text):
    assert report.bytes_text(n) == text


@given(st.integers(1000, 10**20))
@settings(deadline=None)
def test_bytes_read_back_to_half_a_percent(n):
    value, unit = report.bytes_text(n).split()
    assert float(value) * 1000 ** UNITS.index(unit) == pytest.approx(n, rel=0.00501)


@pytest.mark.parametrize(
    's, text',
    [
        (0, '0.00 ms'),
        (0.00321, '3.21 ms'),
        (0.9994, '999 ms'),
        (0.9996, '1.00 s'),
        (59.94, '59.9 s'),
        (59.96, '1 min 00 s'),
        (119.6, '2 min 00 s'),
        (3599.4, '59 min 59 s'),
        (3599.6, '1 h 00 min'),
        (86_369, '23 h 59 min'),
        (86_371, '1 d 00 h'),
        (200_000, '2 d 08 h'),
    ],
)
def test_seconds_carry_into_the_next_unit(s, text):
    assert report.seconds_text(s) == text


@pytest.mark.parametrize('bad', [-1, NAN, INFINITY])
@pytest.mark.parametrize('write', [report.bytes_text, report.seconds_text])
def test_costs_that_cannot_be_are_refused(write, bad):
    with pytest.raises(ValueError, match='finite and not negative'):
        write(bad)


@given(st.floats(1e-5, 90))
@settings(deadline=None)
def test_an_uncertainty_keeps_two_digits(half):
    assert float(f'{half:.{decimals(half)}f}') == pytest.approx(half, rel=0.051)


# Summaries


@pytest.mark.parametrize('values, quantile', [([1, 3], 12.706205), ([1, 2, 6], 4.302653), ([5] * 6, 2.570582)])
def test_intervals_are_students_t(values, quantile):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    interval = report.interval(values)
    assert interval.mean == pytest.approx(mean)
    assert interval.half == pytest.approx(quantile * spread / math.sqrt(len(values)), rel=1e-6)


def test_one_seed_has_no_interval():
    (summary,) = report.summarise(rows_of(exact=[2.0]))
    assert summary.held_out == (2.0, None, 1)
    assert summary.difference is None


def test_differences_are_paired_by_seed():
    exact, other = report.summarise(rows_of(exact=[2.0, 5.0, 9.0])[::-1] + rows_of(other=[2.5, 5.7, 9.6]))
    expected = report.interval([0.5, 0.7, 0.6])
    assert (exact.name, other.name, exact.difference) == ('exact', 'other', None)
    assert other.difference.mean == pytest.approx(expected.mean)
    assert other.difference.half == pytest.approx(expected.half)
    assert other.difference.half < other.held_out.half / 10, 'pairing removes the variation over seeds'


@pytest.mark.parametrize('loss', [NAN, INFINITY, None])
def test_a_diverged_run_is_counted_and_left_out(loss):
    rows = rows_of(exact=[2.0, 3.0, 4.0], other=[2.5, loss, 4.5])
    rows[4] |= {'sent': 10, 'seconds': 1.0}
    rows[5] |= {'sent': 3000, 'seconds': 30.0}
    other = report.summarise(rows)[1]
    assert (other.runs, other.diverged, other.held_out.n, other.held_out.mean) == (3, 1, 2, 3.5)
    assert (other.difference.mean, other.difference.n) == (0.5, 2)
    assert (other.sent, other.seconds) == (2000, 20.0), 'the costs of a run that ended early do not count'


def test_a_variant_of_diverged_runs_has_no_loss():
    rows = rows_of(first=[NAN, NAN], second=[2.0, 2.0])
    first, second = report.summarise(rows)
    assert (first.held_out, first.diverged, first.sent, second.difference) == (None, 2, 1000, None)
    text = report.markdown_table([first, second])
    assert 'diverged' in text.splitlines()[2]
    assert 'first: 2 of 2 runs diverged' in text


@pytest.mark.parametrize(
    'rows, message',
    [
        ([], 'no rows'),
        (
            [{key: value for key, value in row('a', 0, 2.0).items() if key != 'sent'}],
            r"rows\[0\] lacks 'sent'",
        ),
        ([row('a', 0, 'low')], r"rows\[0\]: 'held_out' should be a number, not 'low'"),
        ([row('a', 0, 2.0, seconds=NAN)], "'seconds' should be finite"),
        ([row('a', 0, 2.0, sent=-1)], 'cannot be negative'),
        ([row('a', 0, 2.0, metrics={'accuracy': 71})], "'accuracy' should be between 0 and 1"),
        ([row('a', 0, 2.0, metrics={'accuracy': 0.5}), row('a', 1, 2.0)], 'only 1 of 2 runs'),
        ([row('a', 0, 2.0), row('a', 0, 3.0)], r'rows\[1\]: seed 0 .* twice'),
        ([row('a', 0, 2.0), row('a', 1, 2.0) | {'update': 'b()'}], 'needs one unique name'),
        ([row('a', 0, 2.0), row('a', 1, 2.0) | {'name': 'b'}], 'needs one unique name'),
        ([row('', 0, 2.0)], "'name' should be one line of text"),
    ],
)
def test_wrong_rows_are_refused_with_their_place(rows, message):
    with pytest.raises(ValueError, match=message):
        report.summarise(rows)


# Tables


TABLE = r"""
| variant  | held-out loss |    minus exact |      sent per worker |   memory per device |   time | seeds |
| -------- | ------------: | -------------: | -------------------: | ------------------: | -----: | ----: |
| exact    |     3.0 ± 2.5 |              — |              4.00 MB |             2.00 kB | 10.0 s |     3 |
| **a\|b** | **2.9 ± 2.5** | -0.090 ± 0.025 | 1.00 kB, x4000 fewer | 3.00 kB, x1.50 more | 11.0 s |     3 |

- exact: `exact()`
- a\|b: `a|b()`

± is half a 95 % interval (Student t over seeds); sent, memory and time are medians.
"""


def test_the_markdown_table_as_a_whole():
    rows = [row('exact', seed, 2.0 + seed, sent=4_000_000) for seed in range(3)]
    rows += [row('a|b', seed, 1.9 + 1.01 * seed, memory=3000, seconds=11.0) for seed in range(3)]
    text = report.markdown_table(report.summarise(rows))
    assert text.startswith(TABLE[1:])
    assert text.count('\n') == TABLE.count('\n') + 1, 'two more notes follow'


def test_accuracy_is_a_percentage():
    rows = [row('exact', seed, 2.0, metrics={'accuracy': x}) for seed, x in enumerate((0.5, 0.52, 0.54))]
    header, [cells] = report.cells(report.summarise(rows))
    assert dict(zip(header, cells, strict=True))['accuracy'] == '52.0 ± 5.0 %'


@pytest.mark.parametrize(
    'other, bold',
    [
        ([1.9, 2.89, 3.91], True),
        ([1.9, 3.5, 3.3], False),
        ([2.1, 3.09, 4.11], False),
        ([1.9, NAN, 3.91], False),
        ([1.9], False),
    ],
)
def test_bold_needs_a_significantly_lower_loss(other, bold):
    summaries = report.summarise(rows_of(exact=[2.0, 3.0, 4.0], other=other))
    assert report.best(summaries) == (1 if bold else None)
    assert ('**other**' in report.markdown_table(summaries)) is bold
    assert any(note.startswith('Bold') for note in report.notes(summaries)) is bold


def test_the_baseline_is_never_bold():
    assert report.best(report.summarise(rows_of(exact=[2.0, 2.0], other=[3.0, 3.1]))) is None


def test_empty_columns_are_left_out():
    header, rows = report.cells(report.summarise(rows_of(exact=[2.0])))
    assert header == ['variant', 'held-out loss', 'sent per worker', 'memory per device', 'time', 'seeds']
    assert rows == [['exact', '2.000', '1.00 kB', '2.00 kB', '10.0 s', '1']]


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match='no summaries'):
        report.cells([])


# Metrics


def test_metrics_have_a_column_with_their_direction():
    rows = [row('exact', s, 2.0, metrics={'f1': x, 'nats': 3.0}, better={'f1': 'higher'}) for s, x in enumerate((1, 3))]
    rows += [
        row('b', s, 2.0, metrics={'f1': x, 'nats': 2.0}, better={'f1': 'higher'}) for s, x in enumerate((NAN, 2.0))
    ]
    summaries = report.summarise(rows)
    header, cells = report.cells(summaries)
    assert header[3:5] == ['f1 ↑', 'nats']
    assert [line[3:5] for line in cells] == [['2 ± 13', '3.000 ± 0.000'], ['2.000, 1 of 2 seeds', '2.000 ± 0.000']]
    assert '↑ higher is better.' in report.notes(summaries)
    assert summaries[1].metrics['f1'] == report.Score({1: 2.0}, 'higher')


def test_a_difference_is_paired_by_seed_or_that_of_means():
    one = report.Score({0: 1.0, 1: 5.0, 2: 3.0})
    assert one.minus(report.Score({2: 2.5, 1: 4.5})) == (0.5, 0.0, 2)
    assert one.minus(report.Score({7: 1.0})) == (2.0, None, 1)
