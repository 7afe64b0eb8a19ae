"""Elastic averaging SGD: workers are tied to a centre by springs (Zhang, Choromanska and LeCun 2015, arXiv
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


def _springs(puts: np.ndarray, start: np.ndarray, every: int, beta: float) -> np.ndarray:
    """The same in a plain loop, for a law: from [T, W, ...], what each worker moves by."""
    x, centre, moves = np.repeat(start[None], puts.shape[1], 0), start, []
    for t, put in enumerate(puts, 1):
        stretch = (t % every == 0) * (x - centre)
        moves.append(put - beta / len(x) * stretch)
        x, centre = x + moves[-1], centre + beta / len(x) * stretch.sum(0)
    return np.stack(moves)


@algorithm(
    paper='Zhang, Choromanska and LeCun 2015, EASGD, arXiv 1412.6651',
    examples={
        'easgd(every=1)': (laws.conserves_sum(lambda state: state.own.centre), laws.sends(bytes_sent())),
        'easgd(every=4, beta=0.5)': (
            laws.conserves_sum(lambda state: state.own.centre),
            laws.matches_reference(lambda puts, start: _springs(puts, start, every=4, beta=0.5)),
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
    """Leaves each worker its own updates, and every `every` steps pulls workers and centre towards each other.

    With a = beta / W, worker i moves by -a (x_i - centre) besides, and the centre by a times the sum of all x_i -
    centre, with x_i as they were before the step: what one gains the other loses. That exchange depends on nothing
    that the step computes, and can run beside it. The optimiser before this link may be any (with momentum it is the
    paper's EAMSGD). A worker that the step's guard has made `idle` does not move by itself; its spring pulls it all
    the same.

    A run evaluates the mean of the workers, which the centre follows. On another number of workers it goes on from the
    centre as it is, with all workers at the mean of where they were.

    Args:
        every: local steps from one round to the next (the paper's tau), or a schedule of them.
        beta: how far the centre moves to the mean of the workers, 0.9 in the paper.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, `beta` not above 0 and at most 1, feedback or an exchange without a codec, or no
            parameters given to `update`.

    >>> import jax.numpy as jnp
    >>> update = easgd(every=1, beta=0.5)
    >>> def run(p):
    ...     moved, state = update.update(jnp.zeros(()), update.init(jnp.zeros(())), p)
    ...     return p + moved, state.own.centre
    >>> jax.vmap(run, axis_name='workers')(jnp.array([4.0, 8.0]))
    (Array([3., 6.], dtype=float32), Array([3., 3.], dtype=float32))
    """
    if not 0 < beta <= 1:
        raise InputError(f'easgd: beta={beta} must be more than 0, and at most 1')

    def message(local: periodic.Local, state: EasgdState) -> Any:
        return periodic.displacement(state.centre, local.params, axis)  # as before the local step

    def receive(local: periodic.Local, state: EasgdState, mean: Any) -> tuple[Any, EasgdState]:
        rate = beta / collectives.axis_size(axis)
        pull = lambda u, d: (u - rate * d).astype(u.dtype)  # noqa: E731
        updates = jax.tree.map(pull, local.updates, message(local, state))
        step = jax.tree.map(lambda d: beta * d, mean)
        return updates, EasgdState(optax.apply_updates(state.centre, step))

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('easgd', every, channel, EasgdState, message, receive)
