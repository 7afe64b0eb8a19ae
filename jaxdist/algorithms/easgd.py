"""Elastic averaging SGD: an elastic force between each worker and a centre (Zhang, Choromanska and LeCun 2015, arXiv
1412.6651).
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.registry import algorithm


class EasgdState(NamedTuple):
    """The centre variable; replicated."""

    centre: optax.Params


def _elastic_updates(local_updates: np.ndarray, start: np.ndarray, every: int, beta: float) -> np.ndarray:
    """The same in plain NumPy, for a law: local updates [T, W, ...] to updates [T, W, ...]."""
    x, centre, updates = np.repeat(start[None], local_updates.shape[1], 0), start, []
    for t, local in enumerate(local_updates, 1):
        difference = (t % every == 0) * (x - centre)
        updates.append(local - beta / len(x) * difference)
        x, centre = x + updates[-1], centre + beta / len(x) * difference.sum(0)
    return np.stack(updates)


@algorithm(
    paper='Zhang, Choromanska and LeCun 2015, EASGD, arXiv 1412.6651',
    examples={
        'easgd(every=1)': (laws.conserves_sum(lambda state: state.own.centre), laws.sends(bytes_sent())),
        'easgd(every=4, beta=0.5)': (
            laws.conserves_sum(lambda state: state.own.centre),
            laws.matches_reference(lambda updates, start: _elastic_updates(updates, start, every=4, beta=0.5)),
            laws.sends(bytes_sent(), every=4),
        ),
    },
    syncs='parameters',
)
def easgd(
    every: periodic.Every,
    beta: float = 0.9,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Passes local updates on, and every `every` steps moves workers and centre towards each other.

    With a = beta / W, worker i also moves by -a (x_i - centre), and the centre by a times the sum of all x_i - centre,
    which conserves the sum of workers and centre. It stands last in the line, after any optimiser (momentum gives the
    paper's EAMSGD). Nothing is communicated between rounds; in a round workers send x_i - centre with x_i as it was
    before the step, so the mean can overlap with the step's computation. A worker whose step the guard rejects does not
    move by itself; the elastic force still acts on it.

    A run evaluates the mean of the workers, which the centre follows. On another number of workers the centre stays as
    it is, and all workers start from the mean of the workers' parameters.

    Args:
        every: local steps from one round to the next (the paper's tau), or a schedule of them.
        beta: the part of its distance to the mean of the workers that the centre moves in a round; 0.9 in the paper.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `beta` is not in (0, 1], feedback or an exchange is given without a codec, or
            `update` is given no parameters.

    >>> import jax.numpy as jnp
    >>> update = easgd(every=1, beta=0.5)
    >>> def run(p):
    ...     moved, state = update.update(jnp.zeros(()), update.init(jnp.zeros(())), p)
    ...     return p + moved, state.own.centre
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.array([4.0, 8.0]))
    (Array([3., 6.], dtype=float32), Array([3., 3.], dtype=float32))
    """
    if not 0 < beta <= 1:
        raise InputError(f'easgd: beta={beta} must be more than 0, and at most 1')

    def message(local: periodic.Local, state: EasgdState) -> optax.Params:
        return periodic.displacement(state.centre, local.params, axis)  # before the local step, as in the paper

    def receive(local: periodic.Local, state: EasgdState, mean: Any) -> tuple[optax.Updates, EasgdState]:
        rate = beta / collectives.axis_size(axis)
        pull = lambda u, d: (u - rate * d).astype(u.dtype)  # noqa: E731
        updates = jax.tree.map(pull, local.updates, message(local, state))
        step = jax.tree.map(lambda d: beta * d, mean)  # a times the sum is beta times the mean
        return updates, EasgdState(optax.apply_updates(state.centre, step))

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('easgd', every, channel, EasgdState, message, receive)
