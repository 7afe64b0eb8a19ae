"""Bytes sent and bytes in memory, read from the traced and the compiled program: measured, never declared.

`traced` and `compiled` list the collectives of a program, `frequencies` computes how often each conditional branch
runs, `memory_bytes` what a device stores. `measure`, of the compiled program on a mesh, and `cost`, of the traced one,
also with simulated workers, return all of it as one `Ledger`.
"""

from jaxdist.ledger.collective import Branch, Collective, Totals, totals
from jaxdist.ledger.compiled import compiled
from jaxdist.ledger.cost import cost, placed_batch
from jaxdist.ledger.each_step import Sending, each_step
from jaxdist.ledger.frequency import Frequencies, frequencies
from jaxdist.ledger.ledger import Ledger, Row, memory_bytes, per_step
from jaxdist.ledger.measure import measure, traced_step
from jaxdist.ledger.traced import traced

__all__ = [
    'Branch',
    'Collective',
    'Frequencies',
    'Ledger',
    'Row',
    'Sending',
    'Totals',
    'compiled',
    'cost',
    'each_step',
    'frequencies',
    'measure',
    'memory_bytes',
    'per_step',
    'placed_batch',
    'totals',
    'traced',
    'traced_step',
]
