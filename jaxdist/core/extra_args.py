"""Arguments of optax transformations beyond the gradient: `value`, `grad` and `value_fn`, of the loss of all workers.

optax's Polyak step, its line searches and `contrib.reduce_on_plateau` take them as keywords of `update`. A trace finds
which of them an update uses; a step computes only these, so any other update has the program that it has without.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.layout import under_shard_map
from jaxdist.core.objective import ObjectiveOutput, WorkerLoss
from jaxdist.core.protocol import diverging_states, finding_layout, sharded_as
from jaxdist.core.rule_errors import MisusedError, explained, rule_of
from jaxdist.core.types import Batch, Params
from jaxdist.core.workers import Workers

_OTHER_OBJECTIVE = (
    'uses the loss together with its gradient, and with constraints or virtual shards there is the gradient alone: '
    'take an optimiser that needs a gradient only, such as adamw'
)


class ExtraArgs(NamedTuple):
    """The extra arguments that an update uses, and how a step computes them.

    Where workers do not diverge they are those of the mean loss over the examples of all workers, and replicated. Where
    workers diverge they are those of the worker's own mean loss.

    Attributes:
        names: the arguments that are used, of `value`, `grad` and `value_fn`.
        diverge: whether workers diverge.
    """

    names: frozenset[str] = frozenset()
    diverge: bool = False

    def value(self, loss: WorkerLoss, out: ObjectiveOutput, params: Params) -> jax.Array | None:
        """The mean loss, which the guard has to admit; None if it is not used.

        It is NaN if there are no examples. Sends 4 bytes, and 4 more if example counts can differ.

        Args:
            loss: the loss.
            out: this worker's evaluation of the objective.
            params: the parameters, whose precision the value has.
        """
        if 'value' not in self.names:
            return None
        total, count = out.sums['loss'], out.examples
        if not self.diverge and loss.uneven:
            sums = collectives.psum({'loss': total, 'count': count}, loss.axis)
            total, count = sums['loss'], sums['count']
        value = (total / count).astype(_dtype(params))
        return value if self.diverge or loss.uneven else collectives.pmean(value, loss.axis)

    def arguments(
        self, loss: WorkerLoss, value: jax.Array | None, grads: Params, ok: jax.Array, params: Params, batch: Batch,
        key: jax.Array,
    ) -> dict[str, Any]:  # fmt: skip
        """The keyword arguments of `update`.

        Args:
            loss: the loss.
            value: the result of `value`.
            grads: this worker's weighted gradient.
            ok: whether this worker applies the step.
            params: the parameters before the step.
            batch: this worker's part of the batch.
            key: the random key with which the gradient was evaluated.
        """
        args: dict[str, Any] = {}
        if value is not None:
            # The step may be a synchronisation round, so no non-finite number may be left to send.
            args['value'] = jnp.where(ok, value, 0) if self.diverge else value
        if 'grad' in self.names:
            args['grad'] = grads if self.diverge else collectives.pmean(grads, loss.axis)
        if 'value_fn' in self.names:
            args['value_fn'] = _loss_function(loss, _dtype(params), batch, key, self.diverge)
        return args

    def check_lookahead(self) -> None:
        """Checks that the update can be evaluated before the loss is.

        Raises:
            InputError: it uses an extra argument.

        >>> ExtraArgs().check_lookahead()
        """
        if self.names:
            raise InputError(
                "order='extragradient' evaluates the update before the loss, and a transformation of the update uses "
                'the loss: leave it out, or take another order'
            )


def find_extra_args(
    update: optax.GradientTransformationExtraArgs, params: Params, workers: Workers, specs: Any = None,
    plain: bool = True,
) -> ExtraArgs:  # fmt: skip
    """Finds in a trace which extra arguments an update uses. Nothing runs.

    Args:
        update: the optax transformation.
        params: the parameters' shapes.
        workers: the workers.
        specs: how parameters are sharded over the mesh's other axes; see `sharded_as`.
        plain: whether the gradient is that of the loss, and not of another objective.

    Raises:
        InputError: the update needs arguments that a step does not have, or combines the loss with a gradient of
            another function.

    >>> from jaxdist.core.workers import simulated
    >>> find_extra_args(optax.contrib.reduce_on_plateau(), jax.ShapeDtypeStruct((3,), 'float32'), simulated(2))
    ExtraArgs(names=frozenset({'value'}), diverge=False)
    """
    found: list[ExtraArgs] = []

    def probe(params: Params) -> jax.Array:
        state = update.init(params)
        diverge = bool(diverging_states(state))
        updates, zero = collectives.pvary(params, workers.axis), jnp.zeros((), _dtype(params))
        if diverge:
            params, zero = updates, collectives.pvary(zero, workers.axis)
        calls: list[str] = []

        def value_fn(params: Params, *_: Any, **__: Any) -> jax.Array:
            calls.append('value_fn')
            value = zero + sum(jnp.sum(jnp.abs(x)).astype(zero.dtype) for x in jax.tree.leaves(params))
            if not plain:
                raise MisusedError(_OTHER_OBJECTIVE)
            if not diverge and collectives.varies(value, workers.axis):
                raise MisusedError('evaluates the loss at parameters that differ between workers: put mean() before it')
            return value

        def run(updates: Params, value: jax.Array, grad: Params) -> Any:
            return call_update(update, updates, state, params, value=value, grad=grad, value_fn=value_fn)

        with explained(diverge):
            jaxpr = jax.make_jaxpr(run)(updates, zero, params).jaxpr
        used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
        at = len(jax.tree.leaves(params))
        names = {*calls, *(['value'] if used[at] else []), *(['grad'] if any(used[at + 1 :]) else [])}
        of_grads = {*jaxpr.invars[:at], *jaxpr.invars[at + 1 :]}
        for eqn in _combining(jaxpr, {jaxpr.invars[at]}, of_grads):
            frames = getattr(eqn.source_info.traceback, 'frames', ())
            rule = rule_of((frame.function_name, frame.file_name) for frame in frames)
            if not plain:
                raise InputError(f'{rule} {_OTHER_OBJECTIVE}')
            if not diverge and workers.axis in eqn.outvars[0].aval.mat.varying:
                raise InputError(
                    f'{rule} combines the loss of all workers with the gradient of one: put mean() before it'
                )
        found.append(ExtraArgs(frozenset(names), diverge))
        return jnp.zeros(())

    # A gradient without dims would be taken for a factor of the gradient.
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape or (1,), p.dtype), params)
    with sharded_as(specs), finding_layout():
        jax.make_jaxpr(under_shard_map(probe, workers, P(), P()))(shapes)
    return found[-1]


def call_update(
    update: optax.GradientTransformationExtraArgs, updates: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    """`update.update(...)` with these extra arguments; without them if it accepts no such keywords.

    >>> call_update(optax.with_extra_args_support(optax.sgd(0.5)), 1.0, optax.sgd(0.5).init(1.0), None, value=2.0)[0]
    -0.5
    """
    try:
        return update.update(updates, state, params, **extra)
    except TypeError as error:
        if 'unexpected keyword argument' not in str(error):
            raise
    return update.update(updates, state, params)


def _combining(jaxpr: Any, of_loss: set[Any], of_grads: set[Any]) -> Iterator[Any]:
    """The equations that compute scalars from a scalar of the loss alone and another of the gradient.

    Args:
        jaxpr: the traced update.
        of_loss: its variables that depend on the loss; those of the equations are added.
        of_grads: the same for the gradient.
    """
    for eqn in jaxpr.eqns:
        operands = {v for v in eqn.invars if not isinstance(v, core.Literal)}
        if operands & (of_loss - of_grads) and operands & of_grads and not any(v.aval.shape for v in eqn.outvars):
            yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            # The operands of a program are the last ones of its equation: a cond has the predicate before them.
            pairs = list(zip(reversed(inner.invars), reversed(eqn.invars), strict=False))
            parts = [{i for i, o in pairs if not isinstance(o, core.Literal) and o in x} for x in (of_loss, of_grads)]
            yield from _combining(inner, *parts)
        for depend in (of_loss, of_grads):
            depend |= set(eqn.outvars) if operands & depend else set()


def _loss_function(
    loss: WorkerLoss, dtype: Any, batch: Batch, key: jax.Array, diverge: bool
) -> Callable[[Params], jax.Array]:
    """`params -> mean loss`, of the examples of all workers, or of this worker's if workers diverge.

    It has its own derivative: under `vmap`, JAX's derivative of a mean over workers is that of the worker's term alone.
    """

    def sums(params: Params) -> dict[str, Any]:
        sums, count, grads, _ = loss.gradients(collectives.pvary(params, loss.axis), loss.state, batch, key)
        grads = jax.tree.map(lambda g: g * count.astype(g.dtype), grads)
        return {'loss': sums['loss'], 'count': count, 'grads': grads}

    def reduced(sums: dict[str, Any]) -> tuple[jax.Array, Any]:
        sums = sums if diverge else collectives.psum(sums, loss.axis)
        grads = jax.tree.map(lambda g: g / sums['count'].astype(g.dtype), sums.get('grads'))
        return (sums['loss'] / sums['count']).astype(dtype), grads

    def value_fn(params: Params) -> jax.Array:
        return reduced({name: x for name, x in sums(params).items() if name != 'grads'})[0]

    def backward(grads: Params, cotangent: jax.Array) -> tuple[Params]:
        return (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads),)

    function = jax.custom_vjp(value_fn)
    function.defvjp(lambda params: reduced(sums(params)), backward)
    return function


def _dtype(params: Params) -> Any:
    """The dtype of the loss: float32, or the parameters' if that is wider."""
    kinds = [p.dtype for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.inexact)]
    return jnp.finfo(jnp.result_type(jnp.float32, *kinds)).dtype
