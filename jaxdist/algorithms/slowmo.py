"""SlowMo: a slow momentum over the rounds of local SGD (Wang et al. 2020, arXiv 1910.00643)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm


class SlowmoState(NamedTuple):
    """The slow momentum; replicated.

    Attributes:
        anchor: the parameters of the last round.
        momentum: the slow momentum u.
    """

    anchor: optax.Params
    momentum: optax.Updates


@algorithm(
    paper='Wang et al. 2020, SlowMo, arXiv 1910.00643',
    examples={
        'slowmo(every=4)': (laws.synchronises(4), laws.alike_equals_one(), laws.sends(bytes_sent(), every=4)),
        'slowmo(every=3, beta=0.0)': (laws.equals('average(every=3)'), laws.conserves_mean()),
        'slowmo(every=3, alpha=0.8, beta=0.6, learning_rate=0.1)': (
            laws.equals('diloco(every=3, outer=sgd(0.8, momentum=0.6))'),
        ),
    },
    syncs='parameters',
)
def slowmo(
    every: periodic.Every,
    alpha: float = 1.0,
    beta: float = 0.7,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on; every `every` steps a slow momentum moves the anchor, from which all workers go on.

    With gamma the fast learning rate, u <- beta u + (anchor - mean of the workers) / gamma, and all go on from anchor -
    alpha gamma u. It stands last in the line, after the base optimiser, whose buffers stay as they are (the paper's
    'maintain'). Nothing is communicated between rounds; in a round workers send their pseudo-gradients `anchor -
    params`. A worker whose step the guard rejects does not move by itself, and takes part in a round with its present
    parameters.

    On another number of workers the anchor and the slow momentum stay as they are, and all workers start from the mean
    of the workers' parameters.

    Args:
        every: local steps from one round to the next (the paper's tau), or a schedule of them.
        alpha: the slow learning rate.
        beta: the decay of the slow momentum; 0, with `alpha` 1, is local SGD.
        learning_rate: gamma, the learning rate of the optimiser before this transformation, or its schedule. A constant
            cancels out, a change does not: a schedule belongs here too.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `beta` is not in [0, 1), feedback or an exchange is given without a codec, or
            `update` is given no parameters.

    >>> update = optax.chain(optax.sgd(1.0), slowmo(every=1, alpha=0.5))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-1.5, -1.5, -1.5], dtype=float32)
    """
    if not 0 <= beta < 1:
        raise InputError(f'slowmo: beta={beta} must be 0 or more, and less than 1')

    def message(local: periodic.Local, state: SlowmoState) -> optax.Updates:
        return periodic.displacement(local.moved, state.anchor, axis)  # the pseudo-gradient

    def receive(local: periodic.Local, state: SlowmoState, mean: Any) -> tuple[optax.Updates, SlowmoState]:
        gamma = learning_rate(local.step) if callable(learning_rate) else learning_rate
        # Divided by gamma, the momentum does not change its meaning with a schedule of the learning rate.
        momentum = jax.tree.map(lambda u, d: (beta * u + d / gamma).astype(u.dtype), state.momentum, mean)
        anchor = optax.apply_updates(state.anchor, jax.tree.map(lambda u: -alpha * gamma * u, momentum))
        return local.to(anchor), SlowmoState(anchor, momentum)

    channel = Channel(axis, codec, feedback, exchange, seed)
    begin = lambda params: SlowmoState(params, jax.tree.map(jnp.zeros_like, params))  # noqa: E731
    return periodic.periodic('slowmo', every, channel, begin, message, receive)
