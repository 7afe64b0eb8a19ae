"""Post-local SGD: synchronous data parallelism at first, local training from some step on (Lin et al. 2020, arXiv
1808.07217).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.conditional import when
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class PostLocalState(NamedTuple):
    """The optimiser's state, and what the two means need.

    Attributes:
        inner: the state of this worker's optimiser; the same on all workers up to step `start`.
        gradients: the state of the gradients' compressed mean.
        anchor: with a codec, the parameters at step `start`, and later those of the last round; else ().
    """

    inner: optax.OptState
    gradients: CompressionState
    anchor: optax.Params


def _adam_loop(gradients: np.ndarray, start: np.ndarray, switch: int, every: int) -> np.ndarray:
    """The same with Adam of rate 0.1 in plain NumPy, for a law: gradients [T, W, ...] to updates [T, W, ...]."""
    x = np.repeat(start[None], gradients.shape[1], 0)
    mu, nu, updates = np.zeros_like(x), np.zeros_like(x), []
    for t, local in enumerate(gradients, 1):
        g = np.broadcast_to(local.mean(0), local.shape) if t <= switch else local
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
        new = x - 0.1 * mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        if t > switch and (t - switch) % every == 0:
            new = np.broadcast_to(new.mean(0), new.shape)
        updates.append(new - x)
        x = new
    return np.stack(updates)


@algorithm(
    paper="Lin et al. 2020, Don't use large mini-batches, use local SGD, arXiv 1808.07217",
    examples={
        'post_local(optimizer=adam(0.1), start=5, every=3)': (
            laws.matches_reference(lambda gradients, start: _adam_loop(gradients, start, switch=5, every=3)),
            laws.alike_equals_one(),
        ),
        # Over the 16 steps that the law counts, gradients are averaged at 8, and parameters at every other of the rest.
        'post_local(optimizer=identity(), start=8, every=2)': (
            laws.synchronises_at((1, 2, 3, 4, 5, 6, 7, 8, 10, 12)),
            laws.conserves_mean(),
            laws.sends_parts((bytes_sent(), 2), (bytes_sent(), 4)),
        ),
        'post_local(optimizer=adam(0.1), start=100, every=4)': (laws.equals('mean() | adam(0.1)'),),
        'post_local(optimizer=adam(0.1), start=0, every=4)': (laws.equals('adam(0.1) | average(every=4)'),),
        'post_local(optimizer=identity(), start=8, every=2, codec=int8(), feedback=True)': (
            laws.synchronises_at((1, 2, 3, 4, 5, 6, 7, 8, 10, 12)),
            laws.sends_parts((bytes_sent(int8()), 2), (bytes_sent(int8()), 4)),
        ),
    },
    syncs='parameters',
)
def post_local(
    optimizer: optax.GradientTransformation,
    start: int,
    every: int,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients for `start` steps; then workers train locally and average parameters every `every` steps.

    It takes gradients and has the optimiser inside, since the mean stands before it at first and after it later; it is
    the whole line, or its last transformation. Up to step `start` it equals `mean() | optimizer`, and from there
    `optimizer | average(every)` with the state that the optimiser has by then; its first round is `every` steps after
    `start`. (PyTorch's PeriodicModelAverager has its first one step after `start`.) Between rounds nothing is
    communicated. Workers count equally in both phases.

    `optimizer | average(every=piecewise_constant_schedule(1, {start: every}))` averages parameters in both phases. That
    is the same for `sgd`, with or without momentum, and differs for optimisers whose updates are not linear in the
    gradients, such as `adam`.

    Up to step `start` a step that the guard rejects on one worker is rejected by all: they vote (4 bytes). From there a
    worker whose step is rejected takes no local step, and takes part in rounds with its present values. On another
    number of workers all start from the mean of the workers' parameters, and of their optimisers' states.

    Args:
        optimizer: the optimiser, any of optax, or a chain.
        start: steps of synchronous data parallelism before local training.
        every: local steps from one round to the next (H), from step `start` on.
        codec, feedback, exchange, seed: how both means are compressed; see `Channel`. Gradients and parameters have
            separate residuals. As in `average`, workers send displacements instead of parameters.
        axis: the worker axis.

    Raises:
        InputError: `optimizer` is not an optimiser, `start` is not a whole number, 0 or more, `every` is not one, 1 or
            more, feedback or an exchange is given without a codec, or `update` is given no parameters.

    >>> update = post_local(optax.sgd(1.0), start=1, every=2)
    >>> def run(p, g):
    ...     first, state = update.update(g, update.init(p), p)
    ...     second, _ = update.update(g, state, p + first)
    ...     return p + first, p + first + second
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(2), jnp.array([1.0, 3.0]))
    (Array([-2., -2.], dtype=float32), Array([-3., -5.], dtype=float32))
    """
    inner = check_optimizer('post_local', optimizer, 'optimizer')
    _check(start, every)
    channel = Channel(axis, codec, feedback, exchange, seed)
    # The two means round with independent noise.
    gradient_channel = channel._replace(seed=seed + 1)

    def begin(params: optax.Params) -> PostLocalState:
        anchor = collectives.pvary(params, axis) if codec is not None else ()
        state = collectives.pvary(inner.init(params), axis)
        return PostLocalState(state, compressed.init(params, gradient_channel), anchor)

    def local_step(
        grads: optax.Updates, state: PostLocalState, params: optax.Params, *, rejected: Any, step: Any, **extra: Any
    ) -> tuple[optax.Updates, PostLocalState]:
        guarded = rejected is not False

        def average(before: tuple[optax.Updates, CompressionState, Any]) -> tuple[optax.Updates, CompressionState, Any]:
            grads, old, rejected = before
            mean, compression = compressed.mean(grads, old, gradient_channel)
            # A worker that alone rejected the common gradient would diverge.
            vote = guarded and collectives.pmax(rejected.astype(jnp.int32), axis) > 0
            kept = jax.tree.map(lambda new, old: jnp.where(vote, old, new), compression, old)
            return collectives.pvary(mean, axis), kept, collectives.pvary(jnp.asarray(vote), axis)

        given = (collectives.pvary(grads, axis), state.gradients, collectives.pvary(jnp.asarray(rejected), axis))
        grads, compression, skips = when(step < start, average, given)
        skips = guarded and skips
        moves, after = inner.update(grads, state.inner, params, **extra)
        after = collectives.pvary(jax.tree.map(lambda n, o: jnp.where(skips, o, n), after, state.inner), axis)
        anchor = state.anchor
        if codec is not None:
            # The step after the last mean of gradients begins with parameters that all workers have in common.
            anchor = when(step == start, lambda _: collectives.pvary(params, axis), state.anchor)
        return periodic.mask_rejected(moves, skips), PostLocalState(after, compression, anchor)

    def message(local: periodic.Local, state: PostLocalState) -> optax.Params:
        return periodic.send_parameters(local, state.anchor)

    def receive(local: periodic.Local, state: PostLocalState, mean: Any) -> tuple[optax.Updates, PostLocalState]:
        updates, anchor = periodic.receive_parameters(local, state.anchor, mean)
        return updates, state._replace(anchor=anchor)

    def period(step: jax.Array) -> jax.Array:
        """Steps to the next round; before the first one they are counted from step 0."""
        return jnp.where(step < start + every, start + every, every)

    return periodic.periodic('post_local', period, channel, begin, message, receive, local_step)


def _check(start: Any, every: Any) -> None:
    """Checks the numbers of steps."""
    if callable(every):
        raise InputError('post_local: every is a schedule, and must be a number; `start` has the first phase')
    periodic.check_every('post_local', every)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise InputError(f'post_local: start={start!r} must be a whole number, 0 or more: steps before local training')
