"""Summaries to draw, and what a drawing says."""

from jaxdist import report


def line(name, sent, loss, half=0.1, **others):
    interval = None if loss is None else report.Interval(loss, half, 3)
    return report.Summary(name, f'{name}()', 3, 0, interval, None, None, sent, 10.0, 1.0)._replace(**others)


def legend(drawing):
    return [text.get_text() for text in drawing.legends[0].get_texts()]


def labels(drawing):
    """The labels of points by name, without the lines that lead to them."""
    return {text.get_text(): text for text in drawing.axes[0].texts if text.get_text()}
