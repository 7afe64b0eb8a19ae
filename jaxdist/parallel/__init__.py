"""How the work of one worker is divided among its devices."""

from jaxdist.parallel.experts import Experts
from jaxdist.parallel.fsdp import Fsdp, FullySharded, fully_sharded
from jaxdist.parallel.pipeline import Pipeline, Pipelined
from jaxdist.parallel.quantised import Quantised
from jaxdist.parallel.regather import Regathered
from jaxdist.parallel.schedules import Schedule
from jaxdist.parallel.sequences import Sequences

__all__ = [
    'Experts',
    'Fsdp',
    'FullySharded',
    'Pipeline',
    'Pipelined',
    'Quantised',
    'Regathered',
    'Schedule',
    'Sequences',
    'fully_sharded',
]
