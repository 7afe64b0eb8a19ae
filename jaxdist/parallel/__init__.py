"""How the work of one worker is divided among its devices."""

from jaxdist.parallel.fsdp import FullySharded, fully_sharded

__all__ = ['FullySharded', 'fully_sharded']
