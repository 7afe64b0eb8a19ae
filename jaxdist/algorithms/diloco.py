"""DiLoCo: local training with an outer optimiser on pseudo-gradients (Douillard et al. 2023, arXiv 2311.08105)."""

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


def _held_back(state: periodic.PeriodicState[DilocoState]) -> optax.Updates:
    """Compression error still held back, in the sign of the parameters' displacement."""
    # Pseudo-gradients are sent, which have the opposite sign.
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
    """Passes local updates on; every `every` steps an outer optimiser moves the anchor, from which all workers go on.

    The outer gradient is the mean over workers of the pseudo-gradients `anchor - params`. It stands last in the line,
    after the inner optimiser, whose state stays local. Nothing is communicated between rounds; in a round workers send
    their pseudo-gradients. A worker whose step the guard rejects does not move by itself, and takes part in a round
    with its present parameters.

    Published variants: SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706) is `outer=sgd(1.0)` with a sparse codec and
    `feedback=0.95`, error feedback that decays; MuLoCo (Therien et al. 2025, arXiv 2505.23725) has `contrib.muon(...)`
    before this transformation, `codec=int2()` and `feedback=True`.

    On another number of workers the anchor and the outer state stay as they are, and all workers start from the mean of
    the workers' parameters.

    Args:
        every: local steps from one round to the next (the paper's H, 500), or a schedule of them.
        outer: the outer optimiser, any of optax; the paper's is `sgd(0.7, momentum=0.9, nesterov=True)`.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `outer` is not an optimiser, feedback or an exchange is given without a codec,
            or `update` is given no parameters.

    >>> update = optax.chain(optax.sgd(1.0), diloco(every=1, outer=optax.sgd(0.5)))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-1.5, -1.5, -1.5], dtype=float32)
    """
    outer = check_optimizer('diloco', outer)

    def message(local: periodic.Local, state: DilocoState) -> optax.Updates:
        return periodic.displacement(local.moved, state.anchor, axis)  # the pseudo-gradient

    def receive(local: periodic.Local, state: DilocoState, mean: Any) -> tuple[optax.Updates, DilocoState]:
        step, outer_state = outer.update(mean, state.outer, state.anchor)
        anchor = optax.apply_updates(state.anchor, step)
        return local.to(anchor), DilocoState(anchor, outer_state)

    channel = Channel(axis, codec, feedback, exchange, seed)
    begin = lambda params: DilocoState(params, outer.init(params))  # noqa: E731
    return periodic.periodic('diloco', every, channel, begin, message, receive)
