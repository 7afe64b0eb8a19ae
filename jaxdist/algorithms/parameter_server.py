"""A synchronous, sharded parameter server: workers push gradients to the owners of shards and pull parameters from them
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
from jaxdist.core.parameters import check_real
from jaxdist.core.protocol import check_local, synchronised
from jaxdist.core.registry import algorithm


class ParameterServerState(NamedTuple):
    """The shard of the server that this worker owns, and what it needs to push and pull.

    Attributes:
        step: steps taken, an int32 scalar; replicated.
        served: the parameters that this worker owns, [shards, k] of each tensor.
        optimizer: the optimiser's state for these parameters.
        residual: with feedback, the compression error of this worker's pushes, in the shape of the parameters; else ().
        key: the random key of stochastic rounding; replicated.
    """

    step: jax.Array
    served: optax.Params
    optimizer: optax.OptState
    residual: optax.Updates
    key: Any

    @property
    def sharded_fields(self) -> tuple[str, ...]:
        """The fields of which each worker stores one shard."""
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
    """Updates each shard of the parameters on the worker that owns it: gradients are pushed, parameters pulled.

    It takes gradients and has the optimiser inside: each worker runs it on the shard that it owns, 1 / W of every
    tensor, and stores the optimiser's state for that shard only. It is the whole line, or its last transformation. A
    push, at every step, is a reduce-scatter, and a pull an all-gather: together the bytes of an all-reduce. It equals
    `mean() | optimizer` for an optimiser that works entry by entry.

    With a codec, a pull sends the difference between the served parameters and those that all workers have, which then
    move by the decoded difference; so the compression error of one pull is part of the next, as in EF21-P (Gruntkowska
    et al. 2023, arXiv 2209.15218). Workers compute gradients at parameters up to `staleness` steps old: the bound of a
    stale synchronous server (Ho et al. 2013), always reached.

    The guard rejects a step for all workers together, and the state then stays as it was. On another number of workers
    the served parameters and the optimiser's state are concatenated and sharded again, with no value changed; each
    residual becomes the mean of the workers' residuals.

    Args:
        optimizer: the server's optimiser, any of optax that works entry by entry.
        push: the codec of gradients, or None for float32.
        pull: the codec of changes of the parameters, or None for the parameters in float32.
        feedback: error feedback of pushes: False, True, or the part of the residual that is added to the next push.
        staleness: the largest age in steps of the workers' parameters; they are pulled every `staleness` + 1 steps.
        seed: the seed of the codecs' stochastic rounding.
        axis: the worker axis.

    Raises:
        InputError: `optimizer` is not an optimiser, or works on whole tensors; a codec does not encode messages, or its
            error is larger than its input and would be fed back; feedback is given without `push`; `staleness` is
            negative; a parameter is complex; or `update` is given no parameters.

    >>> update = parameter_server(optax.sgd(1.0))
    >>> run = lambda p, g: p + update.update(g, update.init(p), p)[0]
    >>> run = jax.jit(jax.vmap(run, axis_name='workers', in_axes=(None, 0)))
    >>> run(jnp.zeros(2), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([[-2., -3.],
           [-2., -3.]], dtype=float32)
    """
    inner = check_optimizer('parameter_server', optimizer, 'optimizer')
    _check(push, pull, feedback, staleness)

    def init(params: optax.Params) -> ParameterServerState:
        cure = 'contrib.split_real_and_imaginary(parameter_server(...)) shards their real and imaginary parts'
        check_real('parameter_server: the shards of all tensors share messages of real numbers', params, cure)
        check_elementwise('parameter_server', inner, params)
        served = collectives.pvary(sharded.local_shard(params, axis), axis)
        # Residuals are float32 at least: in the parameters' dtype a small one would be rounded away.
        zeros = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))  # noqa: E731
        residual = collectives.pvary(jax.tree.map(zeros, params), axis) if feedback else ()
        zero, key = jnp.zeros((), jnp.int32), jax.random.key(seed)
        return ParameterServerState(zero, served, inner.init(served), residual, key)

    def update(
        updates: optax.Updates, state: ParameterServerState, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, ParameterServerState]:
        periodic.require_params('parameter_server', params)
        check_local('parameter_server', updates, axis)
        key, push_key, pull_key = jax.random.split(state.key, 3)
        gradient, residual = sharded.reduce_scatter(updates, state.residual, push, float(feedback or 0), push_key, axis)
        shard_updates, optimizer_state = inner.update(gradient, state.optimizer, state.served, **extra)
        served = optax.apply_updates(state.served, shard_updates)
        step = state.step + 1

        def fetch() -> optax.Updates:
            return jax.tree.map(jnp.subtract, sharded.all_gather(served, params, pull, pull_key, axis), params)

        def wait() -> optax.Updates:
            return jax.tree.map(jnp.zeros_like, params)

        # A line returns updates, not parameters: the difference moves every worker to what it has pulled.
        moves = lax.cond(step % (staleness + 1) == 0, fetch, wait) if staleness else fetch()
        moves = synchronised('parameter_server', moves)
        return moves, ParameterServerState(step, served, optimizer_state, residual, key)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(push: Any, pull: Any, feedback: Feedback, staleness: int) -> None:
    """Checks the arguments of `parameter_server`, but for the optimiser."""
    for argument, codec in (('push', push), ('pull', pull)):
        if codec is not None and not isinstance(codec, Codec):
            raise InputError(
                f'parameter_server: {argument} takes a codec of messages, such as int8(); this one averages tensors, '
                'or chooses a codec for each tensor'
            )
    if pull is not None and (pull.votes or not pull.contracts):
        raise InputError(
            'parameter_server: pull needs a codec whose error is smaller than its input: the error of one pull is part '
            'of the next, and would grow without bound'
        )
    if feedback == 'ef21' or (feedback and (push is None or not push.contracts)):
        raise InputError(
            f'parameter_server: feedback={feedback!r} needs push=..., a codec whose error is smaller than its input, '
            'and must be True or the part of the residual that is kept'
        )
    if not isinstance(staleness, int) or staleness < 0:
        raise InputError(f'parameter_server: staleness={staleness!r} must be a whole number, 0 or more')
