"""Reports of runs and comparisons: tables, plots and an HTML page, from plain dicts of numbers."""

from jaxdist.report.constraints import constraints_plot
from jaxdist.report.curves import curves_plot, loss_plot
from jaxdist.report.frontier import frontier_plot
from jaxdist.report.page import page
from jaxdist.report.summary import Interval, Summary, best, interval, summarise
from jaxdist.report.tables import cells, markdown_table, notes
from jaxdist.report.text import bytes_text, seconds_text

__all__ = [
    'Interval',
    'Summary',
    'best',
    'bytes_text',
    'cells',
    'constraints_plot',
    'curves_plot',
    'frontier_plot',
    'interval',
    'loss_plot',
    'markdown_table',
    'notes',
    'page',
    'seconds_text',
    'summarise',
]
