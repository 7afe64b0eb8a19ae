"""What tests of codecs share: the registered ones, and a loss whose gradient is what the batch says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import line
from jaxdist.core import registry
from jaxdist.codecs.codec import Codec
from jaxdist.codecs._exchange import EXCHANGES

CODECS = [next(iter(entry.examples)) for entry in registry.codecs().values()]
"""The first example of every registered codec."""

QUICK = ('int4()', 'power_sgd(rank=1)')
"""Those that the quick run tries where all are tried otherwise."""


def feeds_back(codec: str) -> bool:
    """Whether a codec's errors may be fed back."""
    made = line.build_codec(codec)
    return not isinstance(made, Codec) or made.contracts


def travels_by(codec: str, workers: int = 4) -> list[str | None]:
    """The exchanges that a codec takes, and None for the one that sends least."""
    made = line.build_codec(codec)
    if not isinstance(made, Codec):
        return [None]
    able = [name for name, exchange in EXCHANGES.items() if exchange.takes(made)]
    fits = [name for name in able if name != 'all_reduce' or codec != 'int4()' or workers < 8]
    return [*fits, None]


def told_loss(params: Any, batch: Any, key: jax.Array) -> Any:
    """A loss whose gradient is the mean over a worker's rows of the batch, which has an array for each parameter."""
    del key
    terms = jax.tree.map(lambda p, x: jnp.vdot(p, x.sum(0)), params, dict(batch))
    return {'loss': sum(jax.tree.leaves(terms))}, jnp.float32(next(iter(batch.values())).shape[0])


def told_gradients(steps: int, workers: int, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> list[Any]:
    """For each step a batch of one row a worker."""
    rng = np.random.default_rng(seed)
    return [{k: rng.normal(size=(workers, *s)).astype(np.float32) for k, s in shapes.items()} for _ in range(steps)]
