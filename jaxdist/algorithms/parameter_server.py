"""A parameter server, synchronous and sharded: workers push gradients to the owners of parts and pull parameters back
(Li et al. 2014, Scaling Distributed Machine Learning with the Parameter Server).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import laws
from jaxdist.algorithms import _periodic as periodic
from jaxdist.algorithms._elementwise import check_elementwise
from jaxdist.codecs import _sharded as sharded
from jaxdist.codecs._compressed_mean import Feedback
from jaxdist.codecs._sharded import bytes_sent
from jaxdist.codecs.codec import Codec
from jaxdist.codecs.int8 import int8
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.optimizers import check_optimizer
from jaxdist.core.registry import algorithm


class ParameterServerState(NamedTuple):
    """What each worker serves.

    Attributes:
        step: steps taken, an int32 scalar.
        served: the parameters that this worker owns, [shards, k] of each.
        optimizer: the optimiser's state for them.
        residual: with feedback, what this worker's pushes left out, in the shape of the parameters; else ().
        key: what random rounding draws from.
    """

    step: jax.Array
    served: optax.Params
    optimizer: optax.OptState
    residual: optax.Updates
    key: Any

    @property
    def sharded_fields(self) -> tuple[str, ...]:
        """The fields of which each worker has a part, where others have a whole of their own."""
        return ('served', 'optimizer')


@algorithm(
    paper='Li et al. 2014, Parameter Server (OSDI); sharded state: Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054',
    examples={
        'parameter_server(optimizer=adamw(0.1, weight_decay=0.1))': (
            laws.agrees(),
            laws.equals('mean() | adamw(0.1, weight_decay=0.1)'),
            laws.sends_parts((bytes_sent(), 1), (bytes_sent(), 1)),
        ),
        'parameter_server(optimizer=sgd(0.1, momentum=0.9), staleness=2)': (
            laws.agrees(),
            laws.stale_by(2, 'mean() | sgd(0.1, momentum=0.9)'),
            laws.sends_parts((bytes_sent(), 1), (bytes_sent(), 3)),
        ),
        'parameter_server(optimizer=sgd(0.1), push=int8(), feedback=True, pull=int8())': (
            laws.agrees(),
            laws.sends_parts((bytes_sent(int8()), 1), (bytes_sent(int8()), 1)),
        ),
    },
    syncs='parameters',
)
def parameter_server(
    optimizer: optax.GradientTransformation,
    push: Codec | None = None,
    pull: Codec | None = None,
    feedback: Feedback = False,
    staleness: int = 0,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> optax.GradientTransformationExtraArgs:
    """Sends gradients to the workers that own parts of the parameters, steps there, and fetches parameters from them.

    What goes in are gradients: the optimiser is inside, since each worker runs it on the part that it owns, 1 / W of
    every tensor, and holds its state for that part alone. Pushing is a reduce-scatter, pulling an all-gather: together
    the bytes of an all-reduce. It is exactly `mean() | optimizer` for an optimiser that works entry by entry.

    Through a codec, a pull sends how far the served parameters are ahead of what all workers have, and these move by
    what arrives; so what is left out of one pull is in the next, as in EF21-P (Gruntkowska et al. 2023, arXiv
    2209.15218). Workers compute with parameters that are up to `staleness` steps old: the bound of a stale synchronous
    server (Ho et al. 2013), always reached.

    On another number of workers a run goes on with the served parameters and the optimiser's state cut anew, nothing
    changed; each worker's residual becomes the mean of those that there were.

    Args:
        optimizer: any optax optimiser that works entry by entry.
        push: the codec of gradients, or None for float32.
        pull: the codec of what has changed in the parameters, or None for parameters in float32.
        feedback: whether, or what part of, what a push leaves out is added to the next one.
        staleness: steps that the workers' parameters may be old; they pull at one step in `staleness` + 1.
        seed: of the codecs' random rounding.
        axis: the worker axis.

    Raises:
        InputError: the optimiser is none, or looks at whole tensors; a codec that is not one of messages, or errs by
            more than it is given where that would add up; feedback without `push`; a negative staleness; or no
            parameters given to `update`.

    >>> update = parameter_server(optax.sgd(1.0))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> jax.vmap(run, axis_name='workers', in_axes=(None, 0))(jnp.zeros(2), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([[-2., -3.],
           [-2., -3.]], dtype=float32)
    """
    inner = check_optimizer('parameter_server', optimizer, 'optimizer')
    _check(push, pull, feedback, staleness)

    def init(params: optax.Params) -> ParameterServerState:
        check_elementwise('parameter_server', inner, params)
        served = collectives.pvary(sharded.local_shard(params, axis), axis)
        zeros = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))  # noqa: E731
        residual = collectives.pvary(jax.tree.map(zeros, params), axis) if feedback else ()
        zero, key = jnp.zeros((), jnp.int32), jax.random.key(seed)
        return ParameterServerState(zero, served, inner.init(served), residual, key)

    def update(
        updates: optax.Updates, state: ParameterServerState, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, ParameterServerState]:
        periodic.require_params('parameter_server', params)
        key, to, fro = jax.random.split(state.key, 3)
        gradient, residual = sharded.reduce_scatter(updates, state.residual, push, float(feedback or 0), to, axis)
        moves, optimizer_state = inner.update(gradient, state.optimizer, state.served, **extra)
        served = optax.apply_updates(state.served, moves)
        step = state.step + 1

        def fetch() -> Any:
            return jax.tree.map(jnp.subtract, sharded.all_gather(served, params, pull, fro, axis), params)

        def wait() -> Any:
            return jax.tree.map(jnp.zeros_like, params)

        moved = lax.cond(step % (staleness + 1) == 0, fetch, wait) if staleness else fetch()
        return moved, ParameterServerState(step, served, optimizer_state, residual, key)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(push: Any, pull: Any, feedback: Feedback, staleness: int) -> None:
    for what, codec in (('push', push), ('pull', pull)):
        if codec is not None and not isinstance(codec, Codec):
            raise InputError(
                f'parameter_server: {what} takes a codec of messages, such as int8(); this one averages tensors, or '
                'chooses for each tensor'
            )
    if pull is not None and (pull.votes or not pull.contracts):
        raise InputError(
            'parameter_server: pull needs a codec whose error is smaller than what it is given: what one pull leaves '
            'out is in the next, and would grow without end'
        )
    if feedback == 'ef21' or (feedback and (push is None or not push.contracts)):
        raise InputError(
            f'parameter_server: feedback={feedback!r} needs push=..., a codec whose error is smaller than what it is '
            'given, and is True or the part that is kept'
        )
    if not isinstance(staleness, int) or staleness < 0:
        raise InputError(f'parameter_server: staleness={staleness!r} must be a whole number, 0 or more')
