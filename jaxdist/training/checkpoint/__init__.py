"""Checkpoints: saved in the background, verified on loading, damaged ones set aside.

Orbax writes and reads the arrays. It stores no checksum of their data and casts a wrong dtype silently, so a manifest
beside them lists the shape, dtype and digest of every leaf, and the sha256 of every file. A folder contains
`<step>/arrays/`, `<step>/manifest.json`, and damaged checkpoints as `damaged-<step>-<n>/`.
"""

from jaxdist.training.checkpoint.digests import digest
from jaxdist.training.checkpoint.errors import CheckpointError, InUseError, MismatchError
from jaxdist.training.checkpoint.locking import lock
from jaxdist.training.checkpoint.store import Checkpoints, Restored

__all__ = ['CheckpointError', 'Checkpoints', 'InUseError', 'MismatchError', 'Restored', 'digest', 'lock']
