"""The update line, such as `mean(codec=int8()) | adamw(1e-3)`: building, overriding keywords, writing out defaults."""

from jaxdist.line.arriving import split_rule
from jaxdist.line.build import (
    arguments_of,
    build,
    build_codec,
    build_compute_time,
    build_constraint,
    build_dual,
    build_value,
    check_constraint,
    split_first,
    split_last,
)
from jaxdist.line.field_names import settings_for
from jaxdist.line.order import check_fits
from jaxdist.line.overlap import overlap
from jaxdist.line.reader import LineError
from jaxdist.line.rewrite import constant, override, spell
from jaxdist.line.shorten import shorten

__all__ = [
    'LineError',
    'arguments_of',
    'build',
    'build_codec',
    'build_compute_time',
    'build_constraint',
    'build_dual',
    'build_value',
    'check_constraint',
    'check_fits',
    'constant',
    'overlap',
    'override',
    'settings_for',
    'shorten',
    'spell',
    'split_first',
    'split_last',
    'split_rule',
]
