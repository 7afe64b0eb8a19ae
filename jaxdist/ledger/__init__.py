"""Bytes sent and held, read from the traced and the compiled program: measured, never declared.

`traced` reads what a program asks for, `compiled` what it became, `shares` how often each conditional part
runs, `held` what lies on a device; `measure` puts all of it in one `Ledger`.
"""

from jaxdist.ledger.ledger import Ledger, Row, held, per_step
from jaxdist.ledger.frequency import Shares, shares
from jaxdist.ledger.collective import Branch, Entry, Totals, totals
from jaxdist.ledger.traced import traced
from jaxdist.ledger.measure import measure, traced_step
from jaxdist.ledger.compiled import compiled

__all__ = [
    'Branch',
    'Entry',
    'Ledger',
    'Row',
    'Shares',
    'Totals',
    'compiled',
    'held',
    'measure',
    'per_step',
    'shares',
    'totals',
    'traced',
    'traced_step',
]
