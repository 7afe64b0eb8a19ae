"""Local SGD: local training with periodic averaging of the parameters (Stich 2019, arXiv 1805.09767)."""

from typing import Any, NamedTuple

import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.registry import algorithm


class AverageState(NamedTuple):
    """The parameters of the last round.

    Attributes:
        anchor: with a codec, the parameters of the last round, replicated; else ().
    """

    anchor: optax.Params


@algorithm(
    paper='Stich 2019, Local SGD, arXiv 1805.09767',
    examples={
        'average(every=4)': (
            laws.synchronises(4),
            laws.alike_equals_one(),
            laws.conserves_mean(),
            laws.sends(bytes_sent(), every=4),
        ),
        'average(every=1)': (laws.synchronises(1), laws.equals('mean()'), laws.sends(bytes_sent())),
        'average(every=piecewise_constant_schedule(1, {4: 3}))': (laws.synchronises_at((1, 2, 3, 4, 7, 10)),),
        'average(every=2, codec=int8(), feedback=True)': (
            laws.synchronises(2),
            laws.synchronises_near(2, 1.2 / 127),
            laws.conserves_mean(lambda state: state.compression.residual),
            laws.sends(bytes_sent(int8()), every=2),
        ),
    },
    syncs='parameters',
)
def average(
    every: periodic.Every,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on, and every `every` steps moves all workers to the mean of their parameters.

    It stands last in the line, after the optimiser, whose state stays local. Nothing is communicated between rounds. In
    a round workers send their parameters; with a codec they send their displacement since the last round instead, so
    that the compression error shrinks with the steps. Workers count equally. A worker whose step the guard rejects does
    not move by itself, and takes part in a round with its present parameters.

    On another number of workers all start from the mean of the workers' parameters; the anchor stays as it is.

    Args:
        every: local steps from one round to the next (H), or a schedule of them. With 1 this is `mean()` before `sgd`,
            with or without momentum, but not before an optimiser whose updates are not linear in the gradients, such as
            `adam`: its moments stay local. So `piecewise_constant_schedule(1, {1000: 16})` is post-local SGD (Lin et
            al. 2020, arXiv 1808.07217) for `sgd`; `post_local` is it for any optimiser.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, feedback or an exchange is given without a codec, or `update` is given no
            parameters.

    >>> import jax, jax.numpy as jnp
    >>> update = optax.chain(optax.sgd(1.0), average(every=1))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """

    def message(local: periodic.Local, state: AverageState) -> optax.Params:
        return periodic.send_parameters(local, state.anchor)

    def receive(local: periodic.Local, state: AverageState, mean: Any) -> tuple[optax.Updates, AverageState]:
        updates, anchor = periodic.receive_parameters(local, state.anchor, mean)
        return updates, AverageState(anchor)

    channel = Channel(axis, codec, feedback, exchange, seed)
    begin = lambda params: AverageState(params if codec is not None else ())  # noqa: E731
    return periodic.periodic('average', every, channel, begin, message, receive)
