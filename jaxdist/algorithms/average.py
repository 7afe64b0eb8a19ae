"""Local SGD: workers train alone and average their parameters now and then (Stich 2019, arXiv 1805.09767)."""

from typing import Any, NamedTuple

import jax
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
    """Leaves each worker its own updates, and every `every` steps moves all to the mean of their parameters.

    It belongs after the optimiser. Between two meetings nothing crosses the worker axis. With a codec, what is sent
    is how far each worker has come since the last meeting, not the parameters themselves, so that the error of the
    codec shrinks with the steps. The optimiser's own state stays each worker's. Workers count equally. A worker that
    the step's guard has made `idle` does not move by itself, and meets the others where it stands.

    On another number of workers a run goes on with all workers at the mean of where they were; the anchor stays.

    Args:
        every: local steps from one round to the next (H), or a schedule of them. Post-local SGD (Lin et al. 2020,
            arXiv 1808.07217), which trains alone from step 1000 on, has `piecewise_constant_schedule(1, {1000: 16})`.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, feedback or an exchange without a codec, or no parameters given to `update`.

    >>> import jax, jax.numpy as jnp
    >>> update = optax.chain(optax.sgd(1.0), average(every=1))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-3., -3., -3.], dtype=float32)
    """

    # What is sent exactly are the parameters; what is sent through a codec, their displacement since the last round.
    def message(local: periodic.Local, state: AverageState) -> Any:
        return local.moved if codec is None else periodic.displacement(state.anchor, local.moved, axis)

    def receive(local: periodic.Local, state: AverageState, mean: Any) -> tuple[Any, AverageState]:
        if codec is None:
            return local.to(mean), state
        anchor = jax.tree.map(lambda a, m: (a + m).astype(a.dtype), state.anchor, mean)
        return local.to(anchor), AverageState(anchor)

    channel = Channel(axis, codec, feedback, exchange, seed)
    begin = lambda params: AverageState(params if codec is not None else ())  # noqa: E731
    return periodic.periodic('average', every, channel, begin, message, receive)
