"""Synchronous data parallelism: the mean over workers, exact or through a codec (error feedback: arXiv 1901.09847)."""

from typing import Any, NamedTuple

import optax

from jaxdist import laws
from jaxdist.core import collectives
from jaxdist.codecs._compressed_mean import Channel, Feedback, Memory, average, bytes_sent, remember
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.int8 import int8
from jaxdist.core.registry import algorithm


class MeanState(NamedTuple):
    """What the codec remembers, if there is one."""

    memory: Memory


def held(state: MeanState) -> Any:
    """The residuals of a state of `mean`, [W, ...] each, for laws of error feedback.

    >>> held(MeanState(Memory(residual=1.0, estimate=(), warm=(), key=())))
    1.0
    """
    return state.memory.residual


@algorithm(
    paper='Synchronous SGD; error feedback: Karimireddy et al. 2019, arXiv 1901.09847',
    examples={
        'mean()': (laws.agrees(), laws.exact_mean(), laws.sends(bytes_sent())),
        'mean(codec=int8())': (laws.agrees(), laws.near_mean(1 / 127), laws.sends(bytes_sent(int8()))),
        'mean(codec=int8(), feedback=True)': (laws.agrees(), laws.loses_nothing(held), laws.sends(bytes_sent(int8()))),
        "mean(codec=int8(), exchange='gather')": (
            laws.agrees(),
            laws.near_mean(0.5 / 127),
            laws.sends(bytes_sent(int8(), 'gather')),
        ),
        "mean(codec=int8(rounding='stochastic'))": (laws.agrees(), laws.unbiased(), laws.draws_anew()),
        "mean(codec=int8(rounding='stochastic'), feedback=True)": (
            laws.loses_nothing(held),
            laws.own_noise(held),
            laws.draws_anew(),
        ),
    },
    meets='updates',
)
def mean(
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each worker's updates by their mean over workers, which all then share.

    Args:
        codec: how updates are sent, or None for float32 as they are.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        exchange: how messages travel: `two_phases`, `gather`, or None for the one that sends least.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        ValueError: feedback or an exchange without a codec, an exchange that does not exist.

    >>> import jax, jax.numpy as jnp
    >>> update = optax.chain(mean(), optax.sgd(1.0))
    >>> run = lambda g: update.update(g, update.init(g))[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """

    channel = Channel(axis, codec, feedback, exchange, seed)

    def init(params: optax.Params) -> MeanState:
        return MeanState(remember(params, channel))

    def update(
        updates: optax.Updates, state: MeanState, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, MeanState]:
        del params
        updates, memory = average(updates, state.memory, channel)
        return updates, MeanState(memory)

    return optax.GradientTransformationExtraArgs(init, update)
