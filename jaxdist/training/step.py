"""The training step: `init` and `step` as pure functions of a loss, an update and the workers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core import mesh as meshes
from jaxdist.core.deprecation import former_name, renamed_arguments
from jaxdist.core.emulated import after
from jaxdist.core.errors import InputError
from jaxdist.core.extra_args import find_extra_args
from jaxdist.core.gradient import as_seen, gradients, has_state
from jaxdist.core.guard import StepGuard
from jaxdist.core.layout import find_layout
from jaxdist.core.model_state import StateSync, shared_values, values_of, variables
from jaxdist.core.objective import LossObjective, Objective, WorkerLoss
from jaxdist.core.partition import cast_params
from jaxdist.core.program import Program, build_program, check_divergence
from jaxdist.core.protocol import checked_synchronisation, diverging_states, sharded_as
from jaxdist.core.types import Batch, Loss, Metrics, Params, Variables
from jaxdist.core.virtual_shards import COMPILER_OPTIONS, VirtualShards
from jaxdist.core.workers import Workers, local_shapes
from jaxdist.models.attention import Attention
from jaxdist.parallel.choice import partitioned
from jaxdist.parallel.fsdp import Fsdp
from jaxdist.parallel.pipeline import Pipeline
from jaxdist.parallel.sequences import Sequences
from jaxdist.training.checking import check_batch, check_key, check_parts, check_update, warn_of_rounding, what_varies
from jaxdist.training.sequence_checks import check_sequences


class State(NamedTuple):
    """All that training goes on from.

    Attributes:
        step: steps taken, an int32 scalar; with the seed it is the position in the data too.
        params: the model's parameters; [W, ...] where workers differ.
        opt_state: the update's state; [W, ...] where workers differ.
        key: a random key that never changes; each step draws from it and `step`.
        skipped: steps rejected by the guard; [W] if workers decide alone.
        objective: the objective's state, such as multipliers; () for a plain loss.
        model: the model state, a `jaxdist.core.model_state.ModelState`, [W, ...] where workers differ; () without one.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array
    objective: Any = ()
    model: Any = ()

    @property
    def duals(self) -> Any:
        """The former name of `objective`."""
        return former_name('State', 'duals', {'duals': self.objective}, 'objective')


@renamed_arguments(where='workers', constraints='objective')
def make_step(
    loss: Loss,
    init: Callable[[jax.Array], Params | Variables],
    update: optax.GradientTransformation,
    batch: Batch,
    workers: Workers,
    *,
    rules: meshes.Rules = (),
    accumulate: int = 1,
    compute: jax.typing.DTypeLike | None = None,
    guard: bool = True,
    objective: Objective | None = None,
    state_sync: optax.GradientTransformation | None = None,
    pipeline: Pipeline | None = None,
    fsdp: Fsdp = Fsdp(),
    attention: Attention = 'ring',
    virtual_shards: int = 0,
) -> Program[State]:
    """The program that trains: `init(key) -> State` and `step(state, batch) -> (state, metrics)`.

    Metrics are the loss's sums, its `count` and `skipped`, each [W], not yet reduced, and those of the objective: see
    `means`.

    The gradient that the update gets is each worker's own. Where workers do not diverge, the mean of these gradients is
    that of the mean loss over all examples, exactly: if counts can differ between workers, a worker's gradient is that
    of its sum over the mean count (an all-reduce of 4 bytes). Where they diverge, it is of the worker's own mean.

    Args:
        loss: `(params, batch, key) -> (sums, count)`, see `jaxdist.core.types.Loss`.
        init: `key -> params`: a pytree of real numbers, float32, or complex ones; see `Params`. Of a model with a state
            `key -> Variables(params, state)`.
        update: an optax transformation, such as `optax.chain(mean(), optax.adam(1e-3))` or `jaxdist.build(text)`. If it
            uses them, it gets `value`, `grad` and `value_fn` of the mean loss; see `jaxdist.core.extra_args`.
        batch: the whole batch of all workers, or its shapes: [B, ...].
        workers: the workers.
        rules: sharding rules of the parameters over the mesh's other axes.
        accumulate: parts that each worker's batch is taken in, one after the other; the result is that of the whole.
        compute: the dtype in which the loss sees the parameters, if another than theirs: `jnp.bfloat16`.
        guard: whether a step whose gradient has no finite squared norm is rejected: by all workers if one has such a
            gradient (they vote: 4 bytes), or by that worker alone where workers diverge.
        objective: what is minimised, if not the loss alone: `LagrangianObjective(...)` of `jaxdist.constraints`.
        state_sync: how workers synchronise the real numbers of a model state: a transformation of their changes, such
            as `mean(codec=bf16())`, `average(every=30)`, or `optax.identity()` for a state per worker. By default their
            mean at every step, and a state per worker where workers diverge.
        pipeline: how a worker's batch walks through the stages of the mesh, if it has the axis `stage`. The step then
            follows its parts, of which `loss` must be the loss.
        fsdp: how workers gather and scatter, if the mesh has the axis `fsdp`.
        attention: how devices that share sequences compute attention, if the mesh has the axis `context`.
        virtual_shards: if not 0, the parts of the batch of which each is evaluated by itself, so that the result has
            the same bits on any number of workers. The update gets the mean gradient, and has no `mean()`.

    Raises:
        InputError: the batch, the parameters, the model state or the loss do not fit; parameters would diverge though
            nothing in the update says that workers may; the update needs arguments that there are not; or the objective
            does not fit.

    Warns:
        PrecisionWarning: parameters are of 16 bits.

    >>> import jaxdist
    >>> loss = lambda p, b, key: ({'loss': jnp.sum((p - b['x']) ** 2)}, jnp.float32(b['x'].size))
    >>> batch = {'x': jnp.arange(4.0)}
    >>> update = optax.chain(jaxdist.mean(), optax.sgd(0.5))
    >>> program = make_step(loss, lambda key: jnp.zeros(()), update, batch, jaxdist.simulated(2))
    >>> state, metrics = program.step(program.init(jax.random.key(0)), batch)
    >>> float(state.params), jaxdist.means(metrics)
    (1.5, {'loss': 3.5, 'skipped': 0.0})
    """
    check_update(update)
    update = optax.with_extra_args_support(update)
    goal = _goal(objective, virtual_shards)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, values = jax.eval_shape(lambda key: variables(init(key)), key)
    warn_of_rounding(params)
    if state_sync is not None and not has_state(values):
        raise InputError(
            'state_sync synchronises a model state, and init returned none: return Variables(params, state)'
        )
    _refuse_rules_over_workers(rules, workers.axis)
    specs, partition = partitioned(params, rules, workers, pipeline, fsdp, accumulate, attention)
    if partition.microbatches > 1 and accumulate > 1:
        raise InputError(
            f'accumulate={accumulate}: a pipeline takes microbatches={partition.microbatches} in its place'
        )
    inner_specs = specs if workers.mesh is not None and len(workers.mesh.shape) > 1 else None
    cast = jax.eval_shape(lambda params: cast_params(params, compute), params)
    check_batch(batch, workers.count, accumulate * partition.microbatches, partition.batch_shards)
    uneven, varies = what_varies(loss, cast, values, batch, workers, goal.metric_names)
    uneven = uneven or virtual_shards > 0  # of them the first worker has all examples
    if partition.own_gradient is not None and pipeline is not None:
        check_parts(loss, pipeline.parts, cast, values, batch)
    if isinstance(partition, Sequences):
        if objective is not None:
            raise InputError("constraints need a mesh without the axis 'context'")
        check_sequences(loss, cast, values, local_shapes(batch, workers.count), partition.size)
    goal.check(as_seen(params, values), batch, workers, accumulate * partition.batch_shards)
    part = local_shapes(batch, workers.count)
    extras = find_extra_args(update, params, workers, inner_specs, plain=isinstance(goal, LossObjective))

    of_worker = gradients(loss, accumulate, compute, partition)
    plain_loss = WorkerLoss(loss, accumulate, compute, uneven, workers.axis, of_worker, partition=partition)
    sync = StateSync(state_sync, varies, extras.diverge, workers.axis)

    def first(key: jax.Array) -> State:
        check_key(key)
        params, values = variables(init(key))
        zero = jnp.zeros((), jnp.int32)
        with sharded_as(inner_specs):
            opt_state = update.init(params)
        return State(zero, params, opt_state, key, zero, goal.begin(as_seen(params, values), part), sync.begin(values))

    def step(guard: StepGuard, state: State, batch: Batch) -> tuple[State, Metrics]:
        draw = jax.random.fold_in(state.key, state.step)
        # Virtual shards draw from keys that do not depend on the worker.
        draw = draw if virtual_shards else jax.random.fold_in(draw, collectives.axis_index(workers.axis))

        def apply(grads: Params, params: Params, opt_state: optax.OptState, **extra: Any) -> Any:
            with sharded_as(inner_specs), checked_synchronisation() as check:
                updates, opt_state = update.update(grads, opt_state, params, **extra)
                check(opt_state, updates)
            return optax.apply_updates(params, updates), opt_state

        def lookahead(grads: Params) -> Params:
            extras.check_lookahead()
            return apply(grads, state.params, state.opt_state)[0]

        worker_loss = plain_loss._replace(state=values_of(state.model))
        out = goal.gradient(worker_loss, state.objective, state.params, state.step, batch, draw, lookahead)
        value = extras.value(worker_loss, out, state.params)
        opt_state = _behind(state.opt_state, out.grads) if partition.loops else state.opt_state
        ok, grads, finite = guard.admit(out.grads, out.examples, (out.check, value, out.model_state))
        grads = _behind(grads, out.sums) if inner_specs is not None else grads
        extra = extras.arguments(worker_loss, value, grads, ok, state.params, batch, draw)
        moved, params, opt_state = guard.apply(ok, functools.partial(apply, **extra), grads, state.params, opt_state)
        ahead = goal.after(worker_loss, out.state, moved, state.step, batch, draw)
        objective = guard.commit(ok, ahead, state.objective)
        model = sync.after(state.model, out.model_state, ok)
        new = state._replace(params=params, opt_state=opt_state, objective=objective, model=model)
        skipped, bad = (1 - flag.astype(jnp.int32) for flag in (ok, finite))
        flags = {'skipped': skipped.astype(jnp.float32), 'not_finite': bad.astype(jnp.float32)}
        metrics = {**out.sums, 'count': out.examples, **flags, **out.metrics}
        return new._replace(step=state.step + 1, skipped=state.skipped + skipped), metrics

    bare = StepGuard((), False, False, False, workers.axis)
    layout = find_layout(first, functools.partial(step, bare), workers, (key,), batch)
    diverge = bool(diverging_states(layout.opt_state))
    check_divergence(layout)
    goal.check_layout(layout.objective, diverge)
    layout = layout._replace(skipped=guard and diverge)
    step_guard = StepGuard(layout.opt_state, diverge, guard, uneven and not goal.weighted, workers.axis)

    def shard(rows: State) -> State:
        whole = jax.tree.map(lambda _: P(), rows)
        sizes = workers.mesh.shape if workers.mesh is not None else {}
        return whole._replace(params=specs, opt_state=meshes.state_specs(rows.opt_state, rows.params, specs, sizes))

    options = COMPILER_OPTIONS if virtual_shards else None
    program = build_program(first, functools.partial(step, step_guard), layout, workers, (key,), shard, options)
    if virtual_shards:
        jax.eval_shape(program.run, program.state, batch)  # refuses an update that averages once more
    return program


def _goal(objective: Objective | None, virtual_shards: int) -> Objective:
    if not virtual_shards:
        return objective or LossObjective()
    if objective is not None:
        raise InputError(
            f'virtual_shards={virtual_shards} have the gradient of the loss alone: leave constraints out, or take 0'
        )
    return VirtualShards(virtual_shards)


def _behind(tree: Any, first: Any) -> Any:
    """The same tree, on emulated devices behind `first`: what workers send of it may not depend on that."""

    def late(x: jax.Array) -> jax.Array:
        number = not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        behind: jax.Array = after(x, first) if number and axes <= jax.typeof(x).mat.varying else x
        return behind

    axes: set[str] = set().union(*(jax.typeof(g).mat.varying for g in jax.tree.leaves(first)))
    return jax.tree.map(late, tree)


def _refuse_rules_over_workers(rules: meshes.Rules, axis: str) -> None:
    wrong = [pattern for pattern, dims in rules if axis in dims]
    if wrong:
        raise InputError(
            f'rules {wrong} shard parameters over {axis!r}, the worker axis: each worker has all of its parameters, '
            'and would have to gather them at every step. Shard them over another axis of the mesh'
        )


def shared_params(state: State, layout: State) -> Params | Variables:
    """What a loss gets for evaluation: where workers differ, the mean over them; pure, for use under `jit`.

    Of `optax.contrib.schedule_free` these are the averaged parameters x, and not y, at which gradients are taken.

    >>> state = State(jnp.int32(0), jnp.array([1.0, 3.0]), (), jax.random.key(0), jnp.int32(0))
    >>> shared_params(state, State(False, True, (), False, False))
    Array(2., dtype=float32)
    """
    params = _mean_rows(layout.params, state.params)
    averages = [
        _mean_rows(varies, node)
        for varies, node in zip(_schedule_free(layout.opt_state), _schedule_free(state.opt_state), strict=True)
    ]
    tree: Any = jax.tree.structure(params)
    if len(averages) == 1 and jax.tree.structure(averages[0].z) == tree:
        params = optax.contrib.schedule_free_eval_params(averages[0], params)
    values = shared_values(values_of(state.model), values_of(layout.model))
    return as_seen(params, values)


def _mean_rows(layout: Any, tree: Any) -> Any:
    """The mean over workers of the leaves that vary."""
    return jax.tree.map(lambda varies, x: jnp.mean(x, 0) if varies else x, layout, tree)


def _schedule_free(opt_state: Any) -> list[Any]:
    is_average = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(node)]
