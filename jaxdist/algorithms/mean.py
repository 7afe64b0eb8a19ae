"""Synchronous data parallelism: the mean over workers, exact or through a codec (error feedback: arXiv 1901.09847)."""

from typing import Any, NamedTuple

import optax

from jaxdist import laws
from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.protocol import check_local
from jaxdist.core.registry import algorithm


class MeanState(NamedTuple):
    """The state of the compressed mean; empty without a codec."""

    compression: CompressionState


def _residual(state: MeanState) -> Any:
    """The residual of error feedback, [W, ...] for each parameter, for laws."""
    return state.compression.residual


@algorithm(
    paper='Synchronous SGD; error feedback: Karimireddy et al. 2019, arXiv 1901.09847',
    examples={
        'mean()': (laws.agrees(), laws.exact_mean(), laws.sends(bytes_sent())),
        'mean(codec=int8())': (laws.agrees(), laws.near_mean(1 / 127), laws.sends(bytes_sent(int8()))),
        'mean(codec=int8(), feedback=True)': (
            laws.agrees(),
            laws.conserves_feedback(_residual),
            laws.sends(bytes_sent(int8())),
        ),
        "mean(codec=int8(), exchange='gather')": (
            laws.agrees(),
            laws.near_mean(0.5 / 127),
            laws.sends(bytes_sent(int8(), 'gather')),
        ),
        "mean(codec=int8(rounding='stochastic'))": (laws.agrees(), laws.unbiased(), laws.fresh_keys()),
        "mean(codec=int8(rounding='stochastic'), feedback=True)": (
            laws.conserves_feedback(_residual),
            laws.independent_noise(_residual),
            laws.fresh_keys(),
        ),
    },
    syncs='updates',
)
def mean(
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each worker's updates by their mean over workers, replicated (synchronous data parallelism).

    It stands before the optimiser in most lines; the optimiser's state is then replicated too. The mean is communicated
    at every step. The guard rejects a step for all workers together, and the state then stays as it was. On another
    number of workers each residual becomes the mean of the workers' residuals.

    Args:
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: feedback or an exchange is given without a codec, or there is no such exchange.

    >>> import jax, jax.numpy as jnp
    >>> update = optax.chain(mean(), optax.sgd(1.0))
    >>> run = lambda g: update.update(g, update.init(g))[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """
    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> MeanState:
        return MeanState(compressed.init(params, channel))

    def update(
        updates: optax.Updates, state: MeanState, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, MeanState]:
        del params
        check_local('mean', updates, axis, stateful=bool(feedback))
        updates, compression = compressed.mean(updates, state.compression, channel)
        return updates, MeanState(compression)

    return optax.GradientTransformationExtraArgs(init, update)
