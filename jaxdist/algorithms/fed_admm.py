"""FedADMM: workers train alone on augmented Lagrangians, each with a multiplier of its own (Gong, Li and Freris 2022,
arXiv 2204.03529).
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
        known: with a codec, this worker's x + dual of the last round, as the mean has it; else ().
        inner: this worker's optimiser state.
    """

    anchor: optax.Params
    dual: optax.Params
    known: Any
    inner: optax.OptState


def _rounds(puts: np.ndarray, start: np.ndarray, every: int, rho: float, rate: float) -> np.ndarray:
    """The same with plain descent in a plain loop, for a law: from [T, W, ...], what each worker moves by."""
    x, z, moves = np.repeat(start[None], puts.shape[1], 0), start, []
    y = np.zeros_like(x)
    for t, gradient in enumerate(puts, 1):
        there = x - rate * (gradient + y + rho * (x - z))
        if t % every == 0:
            y = y + rho * (there - z)
            z = (there + y / rho).mean(0)
            there = np.repeat(z[None], len(x), 0)
        moves.append(there - x)
        x = there
    return np.stack(moves)


@algorithm(
    paper='Gong, Li and Freris 2022, FedADMM, arXiv 2204.03529',
    examples={
        'fed_admm(every=4, optimizer=sgd(0.1), rho=0.5)': (
            laws.matches_reference(lambda puts, start: _rounds(puts, start, every=4, rho=0.5, rate=0.1)),
            laws.alike_equals_one(),
            laws.sends(bytes_sent(), every=4),
        ),
        'fed_admm(every=1, optimizer=sgd(0.2), rho=0.1)': (
            laws.matches_reference(lambda puts, start: _rounds(puts, start, every=1, rho=0.1, rate=0.2)),
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
    """Takes gradients, and adds to each worker's what its own multiplier y_i says before an optimiser steps with it.

    What goes in are gradients: the optimiser is inside, and is given gradient + y_i + rho (x_i - z), that of worker i's
    augmented Lagrangian. Every `every` steps y_i <- y_i + rho (x_i - z), then z <- mean of x_i + y_i / rho, and all go
    on from z. As the multipliers come to stand for how the workers' gradients differ, workers with unlike data agree on
    the minimum of all, where `average` stops beside it. Between two meetings nothing crosses the worker axis; at a
    meeting, one model does. A worker that the step's guard has made `idle` does not move by itself.

    Three papers have the name. This is Gong, Li and Freris's with everybody taking part in every round: their server's
    step is 1 then, and what a worker sends, the change of x_i + y_i / rho, adds up to the mean of these. Local training
    starts from z, as in their code. That takes z for the old x_i in the message too; here it is x_i, since else the
    multipliers do not cancel at rest. The optimiser's state goes on from round to round, where theirs starts afresh; of
    plain descent that is the same. Zhou and Li (2022, arXiv 2204.10607) have the same round with a local
    solver that stops by a tolerance of its own, and a rho for each worker; Wang, Marella and Anderson (2022, arXiv
    2203.15104) with a regulariser, whose proximal operator makes z of the mean. All move y before z, where consensus
    ADMM moves z before y (`jaxdist.constraints.solvers.consensus_admm`): the multipliers sum to 0 at rest, not on the way.

    On another number of workers a run goes on from the anchor as it is, with all workers at the mean of where they
    were, and all multipliers at their mean, to be found anew.

    Args:
        every: local steps from one round to the next, or a schedule of them.
        optimizer: any optax optimiser; the papers' is `sgd`.
        rho: how strongly workers are pulled to z, above 0; 0.01 in their code.
        codec, feedback, exchange, seed: the compressed mean, see `Channel`.
        axis: the worker axis.

    Raises:
        InputError: `every` below 1, `optimizer` is none, rho that is not above 0, feedback or an exchange without a
            codec, or no parameters given to `update`.

    >>> update = fed_admm(every=1, optimizer=optax.sgd(1.0), rho=0.5)
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers')(jnp.zeros(3), jnp.array([1.0, 2.0, 6.0]))
    Array([-6., -6., -6.], dtype=float32)
    """
    optimizer = check_optimizer('fed_admm', optimizer, 'optimizer')
    if not 0 < rho < float('inf'):
        raise InputError(f'fed_admm: rho={rho} must be more than 0, and finite')

    def begin(params: optax.Params) -> FedAdmmState:
        dual = collectives.pvary(jax.tree.map(jnp.zeros_like, params), axis)
        known = collectives.pvary(params, axis) if codec is not None else ()
        return FedAdmmState(params, dual, known, optimizer.init(params))

    def local_step(
        grads: optax.Updates, state: FedAdmmState, params: Any, *, rejected: Any, step: Any, **extra: Any
    ) -> tuple[optax.Updates, FedAdmmState]:
        del step
        pull = jax.tree.map(lambda x, z, u: x - z + u, params, state.anchor, state.dual)
        grads = jax.tree.map(lambda g, d: (g + rho * d).astype(g.dtype), grads, pull)
        moves, inner = optimizer.update(grads, state.inner, params, **extra)
        # The guard leaves this state to the algorithm: a rejected step must not count.
        return moves, state._replace(inner=jax.tree.map(lambda n, o: jnp.where(rejected, o, n), inner, state.inner))

    def ascend(local: periodic.Local, state: FedAdmmState) -> tuple[Any, Any]:
        """The dual after the round, and x + dual."""
        dual = jax.tree.map(lambda u, x, z: u + x - z, state.dual, local.moved, state.anchor)
        return dual, optax.tree.add(local.moved, dual)

    def message(local: periodic.Local, state: FedAdmmState) -> Any:
        # The mean of `known` over workers is z.
        return periodic.displacement(state.anchor if codec is None else state.known, ascend(local, state)[1], axis)

    def receive(local: periodic.Local, state: FedAdmmState, mean: Any) -> tuple[Any, FedAdmmState]:
        dual, here = ascend(local, state)
        anchor = optax.apply_updates(state.anchor, mean)
        return local.to(anchor), FedAdmmState(anchor, dual, () if codec is None else here, state.inner)

    channel = Channel(axis, codec, feedback, exchange, seed)
    return periodic.periodic('fed_admm', every, channel, begin, message, receive, local_step)
