"""FedADMM: local training on augmented Lagrangians, with a multiplier per worker (Gong, Li and Freris 2022, arXiv
2204.03529).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.codecs._compressed_mean import Channel, Feedback, bytes_sent
from jaxdist.codecs._exchange import ExchangeName
from jaxdist.codecs.codec import AnyCodec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class FedAdmmState(NamedTuple):
    """The primal and dual variables of the consensus problem.

    Attributes:
        anchor: z, the parameters of the last round, replicated (the paper's theta).
        dual: this worker's multiplier of x = z, divided by rho (the paper's y / rho).
        known: with a codec, this worker's x + dual of the last round, from which its next message is taken; else ().
        inner: the state of this worker's optimiser.
    """

    anchor: optax.Params
    dual: optax.Params
    known: optax.Params
    inner: optax.OptState


def _admm_updates(gradients: np.ndarray, start: np.ndarray, every: int, rho: float, rate: float) -> np.ndarray:
    """The same with plain SGD in plain NumPy, for a law: gradients [T, W, ...] to updates [T, W, ...]."""
    x, z, updates = np.repeat(start[None], gradients.shape[1], 0), start, []
    y = np.zeros_like(x)
    for t, gradient in enumerate(gradients, 1):
        new = x - rate * (gradient + y + rho * (x - z))
        if t % every == 0:
            y = y + rho * (new - z)
            z = (new + y / rho).mean(0)
            new = np.repeat(z[None], len(x), 0)
        updates.append(new - x)
        x = new
    return np.stack(updates)


@algorithm(
    paper='Gong, Li and Freris 2022, FedADMM, arXiv 2204.03529',
    examples={
        'fed_admm(every=4, optimizer=sgd(0.1), rho=0.5)': (
            laws.matches_reference(lambda grads, start: _admm_updates(grads, start, every=4, rho=0.5, rate=0.1)),
            laws.alike_equals_one(),
            laws.sends(bytes_sent(), every=4),
        ),
        'fed_admm(every=1, optimizer=sgd(0.2), rho=0.1)': (
            laws.matches_reference(lambda grads, start: _admm_updates(grads, start, every=1, rho=0.1, rate=0.2)),
            laws.synchronises(1),
            laws.sends(bytes_sent()),
        ),
        'fed_admm(every=2, optimizer=sgd(0.1, momentum=0.9), codec=int8(), feedback=True)': (
            laws.sends(bytes_sent(int8()), every=2),
        ),
    },
    syncs='parameters',
)
def fed_admm(
    every: periodic.Every,
    optimizer: optax.GradientTransformation,
    rho: float = 0.01,
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    exchange: ExchangeName | None = None,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Local steps on each worker's augmented Lagrangian; every `every` steps the multipliers and z are updated.

    It takes gradients and has the optimiser inside, which steps along gradient + y_i + rho (x_i - z), the gradient of
    worker i's augmented Lagrangian; it is the whole line, or its last transformation. In a round y_i <- y_i + rho (x_i
    - z), then z <- mean of x_i + y_i / rho, and all workers go on from z. The multipliers come to compensate for the
    differences between the workers' gradients, so workers with unlike data converge to the minimum of the mean loss,
    where `average` converges to a point beside it. Nothing is communicated between rounds; in a round each worker sends
    one message of the size of the model. A worker whose step the guard rejects does not move by itself, and takes part
    in a round with its present parameters.

    Three papers use this name. This is the algorithm of Gong, Li and Freris with full participation: the server's step
    is then 1, and the mean of the messages, each the change of x_i + y_i / rho, is the change of z. Local training
    starts from z, as in their code. Their code also takes z for the old x_i in the message; here it is x_i, since
    otherwise the multipliers do not sum to 0 at convergence. The optimiser's state continues from round to round, while
    theirs is reset; for plain SGD there is no difference. Zhou and Li (2022, arXiv 2204.10607) have the same round with
    a local solver that stops at a tolerance, and a rho per worker; Wang, Marella and Anderson (2022, arXiv 2203.15104)
    add a regulariser, whose proximal operator is applied to the mean. All three update y before z, while consensus ADMM
    updates z before y (`jaxdist.constraints.solvers.consensus_admm`): the multipliers sum to 0 at convergence only.

    On another number of workers the anchor stays as it is, all workers start from the mean of the workers' parameters,
    and every multiplier becomes the mean of the multipliers, from which they converge again.

    Args:
        every: local steps from one round to the next, or a schedule of them.
        optimizer: the local optimiser, any of optax; the papers' is `sgd`.
        rho: the coefficient of the quadratic penalty on x_i - z, above 0; 0.01 in their code.
        codec, feedback, exchange, seed: how the mean over workers is compressed; see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` is below 1, `optimizer` is not an optimiser, `rho` is not above 0, feedback or an exchange
            is given without a codec, or `update` is given no parameters.

    >>> update = fed_admm(every=1, optimizer=optax.sgd(1.0), rho=0.5)
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.jit(jax.vmap(run, axis_name='workers'))(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-6., -6., -6.], dtype=float32)
    """
    optimizer = check_optimizer('fed_admm', optimizer, 'optimizer')
    if not 0 < rho < float('inf'):
        raise InputError(f'fed_admm: rho={rho} must be more than 0, and finite')

    def begin(params: optax.Params) -> FedAdmmState:
        dual = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis)
        known = collectives.pvary(params, axis) if codec is not None else ()
        # A step that one worker rejects does not count in its optimiser: even a step count differs between workers.
        return FedAdmmState(params, dual, known, collectives.pvary(optimizer.init(params), axis))

    def local_step(
        grads: optax.Updates, state: FedAdmmState, params: optax.Params, *, rejected: Any, step: Any, **extra: Any
    ) -> tuple[optax.Updates, FedAdmmState]:
        del step
        # The dual is stored divided by rho, so both terms have the factor rho.
        pull = jax.tree.map(lambda x, z, u: x - z + u, params, state.anchor, state.dual)
        grads = jax.tree.map(lambda g, d: (g + rho * d).astype(g.dtype), grads, pull)
        moves, inner = optimizer.update(grads, state.inner, params, **extra)
        # The guard leaves this state to the algorithm: a rejected step must not count.
        inner = jax.tree.map(lambda n, o: jnp.where(rejected, o, n), inner, state.inner)
        return moves, state._replace(inner=collectives.pvary(inner, axis))

    def ascend(local: periodic.Local, state: FedAdmmState) -> tuple[optax.Params, optax.Params]:
        """The dual after this round, and x + dual."""
        dual = jax.tree.map(lambda u, x, z: u + x - z, state.dual, local.moved, state.anchor)
        return dual, optax.tree.add(local.moved, dual)

    def message(local: periodic.Local, state: FedAdmmState) -> optax.Updates:
        # The mean of `known` over workers is z, so both messages have the same mean. Those from `known` become small as
        # the run converges, which a codec needs; those from z need no second copy of the parameters.
        return periodic.displacement(state.anchor if codec is None else state.known, ascend(local, state)[1], axis)

    def receive(local: periodic.Local, state: FedAdmmState, mean: Any) -> tuple[optax.Updates, FedAdmmState]:
        dual, known = ascend(local, state)
        anchor = optax.apply_updates(state.anchor, mean)
        return local.to(anchor), FedAdmmState(anchor, dual, () if codec is None else known, state.inner)

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('fed_admm', every, channel, begin, message, receive, local_step)
