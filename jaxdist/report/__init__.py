"""Reports of runs and comparisons: tables, plots and an HTML page, from plain dicts of numbers."""

from jaxdist.report.canvas import differ, save
from jaxdist.report.constraints import constraints_plot
from jaxdist.report.curves import curves_plot, has_curve
from jaxdist.report.exports import csv_runs, csv_table, csv_text, latex_table
from jaxdist.report.frontier import frontier_plot
from jaxdist.report.layouts import LayoutPoint, layout_plot
from jaxdist.report.loss import loss_plot
from jaxdist.report.page import Picture, page
from jaxdist.report.ranking import ranking_plot
from jaxdist.report.summary import Interval, Score, Summary, best, interval, summarise
from jaxdist.report.tables import ARROWS, cells, markdown_table, notes
from jaxdist.report.target import Target, read_target, seconds_to
from jaxdist.report.text import bytes_text, seconds_text

__all__ = [
    'ARROWS',
    'Interval',
    'LayoutPoint',
    'Picture',
    'Score',
    'Summary',
    'Target',
    'best',
    'bytes_text',
    'cells',
    'constraints_plot',
    'csv_runs',
    'csv_table',
    'csv_text',
    'curves_plot',
    'differ',
    'frontier_plot',
    'has_curve',
    'interval',
    'latex_table',
    'layout_plot',
    'loss_plot',
    'markdown_table',
    'notes',
    'page',
    'ranking_plot',
    'read_target',
    'save',
    'seconds_text',
    'seconds_to',
    'summarise',
]
