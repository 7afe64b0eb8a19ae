"""Checkpoints that are written beside the training, checked on loading, and never lost in silence.

Orbax writes and reads the arrays. It keeps no checksum of their data and casts a wrong dtype without a word,
so a manifest beside them names every leaf with shape, dtype and digest, and every file with its sha256.
A folder holds `<step>/arrays/`, `<step>/manifest.json`, and what was found damaged as `damaged-<step>-<n>/`.
"""

from jaxdist.checkpoint.digests import digest
from jaxdist.checkpoint.errors import CheckpointError, InUseError, MismatchError
from jaxdist.checkpoint.locking import lock
from jaxdist.checkpoint.store import Checkpoints, Restored

__all__ = ['CheckpointError', 'Checkpoints', 'InUseError', 'MismatchError', 'Restored', 'digest', 'lock']
