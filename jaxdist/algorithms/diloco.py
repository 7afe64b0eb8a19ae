"""DiLoCo: workers train alone, and an outer optimiser steps along what came of it (Douillard et al. 2023, arXiv
2311.08105).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int4 import int4
from jaxdist.core import collectives
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class DilocoState(NamedTuple):
    """The outer optimisation; replicated.

    Attributes:
        anchor: the parameters of the last round.
        outer: the outer optimiser's state.
    """

    anchor: optax.Params
    outer: optax.OptState


def _held_back(state: periodic.PeriodicState[DilocoState]) -> Any:
    """The compression error still held back, in the sign of the parameters' displacement: pseudo-gradients are sent."""
    return jax.tree.map(jnp.negative, state.compression.residual)


NESTEROV = 'sgd(0.7, momentum=0.9, nesterov=True)'


@algorithm(
    paper='Douillard et al. 2023, DiLoCo, arXiv 2311.08105',
    examples={
        f'diloco(every=4, outer={NESTEROV})': (
            laws.synchronises(4),
            laws.alike_equals_one(),
            laws.sends(bytes_sent(), every=4),
        ),
        f'diloco(every=1, outer={NESTEROV})': (laws.equals(f'mean() | scale(-1.0) | {NESTEROV}'),),
        'diloco(every=3, outer=sgd(1.0))': (laws.equals('average(every=3)'), laws.conserves_mean()),
        'diloco(every=2, outer=sgd(1.0), codec=int4(), feedback=True)': (
            laws.conserves_mean(_held_back),
            laws.sends(bytes_sent(int4()), every=2),
        ),
    },
    syncs='parameters',
)
def diloco(
    every: periodic.Every,
    outer: optax.GradientTransformation,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Leaves each worker its own updates; every `every` steps an outer optimiser steps from where they last met.

    What it is given for a gradient is the mean of the ways back, from where each worker has come to that anchor. All
    workers go on from the new anchor; the inner optimiser's state, before this link, stays each worker's own. Between
    two meetings nothing crosses the worker axis. A worker that the step's guard has made `idle` does not move by
    itself, and meets the others where it stands.

    Lines of the field: SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706) is `outer=sgd(1.0)` with a sparse codec and
    `feedback=0.95`, which forgets; MuLoCo (Therien et al. 2025, arXiv 2505.23725) has `contrib.muon(...)` before this
    link, `codec=int2()` and `feedback=True`.

    On another number of workers a run goes on from the anchor and the outer state as they are, with all workers at the
    mean of where they were.

    Args:
        every: local steps from one round to the next (the paper's H, 500), or a schedule of them.
        outer: any optax optimiser; the paper's is `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, `outer` is no optimiser, feedback or an exchange without a codec, or no parameters
            given to `update`.

    >>> update = optax.chain(optax.sgd(1.0), diloco(every=1, outer=optax.sgd(0.5)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-1.5, -1.5, -1.5], dtype=float32)
    """
    outer = check_optimizer('diloco', outer)

    def message(local: periodic.Local, state: DilocoState) -> Any:
        return periodic.displacement(local.moved, state.anchor, axis)  # the pseudo-gradient

    def receive(local: periodic.Local, state: DilocoState, mean: Any) -> tuple[Any, DilocoState]:
        step, outer_state = outer.update(mean, state.outer, state.anchor)
        anchor = optax.apply_updates(state.anchor, step)
        return local.to(anchor), DilocoState(anchor, outer_state)

    channel = Channel(axis, codec, feedback, exchange, seed)
    begin = lambda params: DilocoState(params, outer.init(params))  # noqa: E731
    return periodic.periodic('diloco', every, channel, begin, message, receive)
