"""Checkpoints that are written beside the training, checked on loading, and never lost in silence.

Orbax writes and reads the arrays. It keeps no checksum of their data and casts a wrong dtype without a word,
so a manifest beside them names every leaf with shape, dtype and digest, and every file with its sha256.
A folder holds `<step>/arrays/`, `<step>/manifest.json`, and what was found damaged as `damaged-<step>-<n>/`.
"""

from jaxdist.training.checkpoint.digests import digest
from jaxdist.training.checkpoint.errors import CheckpointError, InUseError, MismatchError
from jaxdist.training.checkpoint.locking import lock
from jaxdist.training.checkpoint.store import Checkpoints, Restored

__all__ = ['CheckpointError', 'Checkpoints', 'InUseError', 'MismatchError', 'Restored', 'digest', 'lock']
