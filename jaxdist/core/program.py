"""One program for all workers from per-worker code: on a mesh by `shard_map`, or simulated by `vmap`."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.donating_step import DonatingStep
from jaxdist.core.errors import InputError
from jaxdist.core.layout import Init, Layout, Step, find_layout, pack, packed, specs, under_shard_map, unpack
from jaxdist.core.mesh import path_text
from jaxdist.core.protocol import checked_synchronisation, diverging_states
from jaxdist.core.rule_errors import explained
from jaxdist.core.types import Params
from jaxdist.core.workers import Workers, abstract

State = TypeVar('State')


class Program(NamedTuple, Generic[State]):
    """Per-worker code, jitted for all workers.

    Attributes:
        init: `(*args) -> state`, jitted. All workers get the same arguments.
        step: `(state, batch) -> (state, out)`, jitted; the state's buffers are donated, so no state can be given twice.
            The batch's first dim is divided among the workers; every leaf of `out` is returned as [W, ...], one row for
            each worker.
        run: `step` without jit and donation, for tracing.
        state: shapes, dtypes and shardings of the state.
        layout: which leaves of the state vary over workers, as bools.
        workers: the workers.
        on_mesh: returns the same program on a mesh: that of simulated workers on an abstract one, where it cannot run,
            but what it sends and stores can be read.
    """

    init: jax.stages.Wrapped
    step: DonatingStep
    run: Callable[[State, Any], tuple[State, Any]]
    state: State
    layout: State
    workers: Workers
    on_mesh: Callable[[], 'Program[State]']


def build_program(
    init: Init,
    step: Step,
    layout: Layout,
    workers: Workers,
    args: tuple[Any, ...],
    shard: Callable[[Any], Any] | None = None,
    compiler_options: Mapping[str, str] | None = None,
) -> Program[Any]:
    """One program for all workers from per-worker code.

    Leaves of the state that vary over workers (`layout`) are stored as [W, ...], sharded over the worker axis; the
    others are replicated and stored once.

    Args:
        init: per-worker `(*args) -> state`.
        step: per-worker `(state, batch) -> (state, out)`.
        layout: which leaves of the state vary, from `find_layout`.
        workers: the workers.
        args: the arguments of `init`, or their shapes.
        shard: maps the per-worker shapes of the state to a `PartitionSpec` over the mesh's other axes for each leaf.
        compiler_options: XLA's options for the step on a mesh, if not the defaults.

    >>> from jaxdist.core.workers import simulated
    >>> init = lambda: {'sum': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}
    >>> step = lambda s, b: ({'sum': s['sum'] + b.sum(), 'count': s['count'] + 1}, b.sum())
    >>> program = build_program(init, step, {'sum': True, 'count': False}, simulated(4), ())
    >>> program.step(program.init(), jnp.arange(8.0))
    ({'count': Array(1, dtype=int32), 'sum': Array([ 1.,  5.,  9., 13.], dtype=float32)}, Array([ 1.,  5.,  9., 13.],
    dtype=float32))
    """
    if workers.mesh is None:
        return _simulate(init, step, layout, workers, args)
    return _place(init, step, layout, workers, args, shard, compiler_options)


def update_program(
    update: optax.GradientTransformation, start: Callable[[], Params], gradients: optax.Updates, workers: Workers
) -> Program[Any]:
    """An optax transformation as a program: `step((params, opt_state), gradients) -> (state, (updates, params))`.

    Args:
        update: the optax transformation.
        start: returns the initial parameters.
        gradients: gradients of all workers, [W, ...] each, or their shapes.
        workers: the workers.

    >>> from jaxdist.core.workers import simulated
    >>> program = update_program(optax.sgd(1.0), lambda: jnp.zeros(()), jnp.ones(2), simulated(2))
    >>> program.step(program.init(), jnp.ones(2))[1][0]
    Array([-1., -1.], dtype=float32)
    """
    extended = optax.with_extra_args_support(update)

    def init() -> Any:
        params = start()
        return params, extended.init(params)

    def step(state: Any, batch: Any) -> Any:
        with explained():
            updates, opt_state = extended.update(jax.tree.map(lambda x: x[0], batch), state[1], state[0])
        params = optax.apply_updates(state[0], updates)
        return (params, opt_state), (updates, params)

    return build_program(init, step, find_layout(init, step, workers, (), gradients), workers, ())


def distribute(
    init: Init, step: Callable[[Any, Any], tuple[Any, Any]], batch: Any, workers: Workers, *args: Any
) -> Program[Any]:
    """An existing training loop's `init` and `step` as one program for all workers.

    `step` is per-worker code: it gets this worker's part of the batch, and updates parameters with an algorithm in it.
    Which leaves of the state differ between workers is read from types. Gradients must be each worker's own: take them
    at `jaxdist.pvary(params)`.

    Args:
        init: `(*args) -> state`, any pytree, such as a flax `TrainState`.
        step: `(state, batch) -> (state, out)`.
        batch: the whole batch of all workers, or its shapes: a pytree of arrays [B, ...].
        workers: the workers.
        *args: the arguments of `init`, or their shapes.

    Raises:
        InputError: workers do not divide the batch; parameters, where the state has `params` and `opt_state`, would
            differ between workers though nothing in `opt_state` says that they may; or see `find_layout`.

    >>> from jaxdist.core.workers import simulated
    >>> update = optax.chain(optax.scale(-0.5))
    >>> def step(params, batch):
    ...     gradient = jax.grad(lambda w: jnp.mean((w - batch) ** 2))(collectives.pvary(params))
    ...     return params - 0.5 * collectives.pmean(gradient), gradient
    >>> program = distribute(lambda: jnp.zeros(()), step, jnp.arange(4.0), simulated(2))
    >>> program.step(program.init(), jnp.arange(4.0))
    (Array(1.5, dtype=float32), Array([-1., -5.], dtype=float32))
    """
    for path, x in jax.tree_util.tree_flatten_with_path(batch)[0]:
        if not jnp.shape(x) or jnp.shape(x)[0] % workers.count:
            raise InputError(
                f'batch{jax.tree_util.keystr(path)} has shape {jnp.shape(x)}, which {workers.count} workers '
                'cannot divide'
            )

    def first(*args: Any) -> Any:
        # A Python number, or a weak type, would compile the step twice.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), init(*args))

    def after(state: Any, batch: Any) -> tuple[Any, Any]:
        with checked_synchronisation() as check:
            new, out = step(state, batch)
            check(_part(new, 'opt_state') or ())
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), new), out

    layout = find_layout(first, after, workers, args, batch)
    check_divergence(layout)
    return build_program(first, after, layout, workers, args)


def check_divergence(layout: Any) -> None:
    """Checks the layout of a state that has `params` and `opt_state`: whether parameters that differ are meant to.

    Args:
        layout: which leaves of the state differ between workers, from `find_layout`.

    Raises:
        InputError: they are not.

    >>> from types import SimpleNamespace
    >>> check_divergence(SimpleNamespace(params={'w': False}, opt_state=()))
    """
    params, opt_state = _part(layout, 'params'), _part(layout, 'opt_state')
    if opt_state is None or diverging_states(opt_state):
        return
    names = [path_text(path) for path, varies in jax.tree_util.tree_flatten_with_path(params)[0] if varies]
    if names:
        more = f' (and {len(names) - 1} more)' if len(names) > 1 else ''
        raise InputError(
            f'parameter {names[0]!r}{more} would come out different on each worker: its updates vary over workers, and '
            'nothing in the line lets workers diverge. Put mean() before the optimiser to average gradients at every '
            'step, or average(every=...) after it to average parameters every few steps.'
        )


def _part(state: Any, name: str) -> Any:
    """A part of a state that is a dict or has attributes; None if it has no such part."""
    return state.get(name) if isinstance(state, dict) else getattr(state, name, None)


def _simulate(init: Init, step: Step, layout: Layout, workers: Workers, args: tuple[Any, ...]) -> Program[Any]:
    """Simulated workers: the rows of a `vmap`."""
    dims = jax.tree.map(lambda varies: 0 if varies else None, layout)
    w = workers.count

    def first(*args: Any) -> Any:
        return jax.vmap(
            lambda _: init(*args), in_axes=0, out_axes=dims, axis_name=workers.axis, axis_size=w
        )(jnp.arange(w))  # fmt: skip

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        rows = jax.tree.map(lambda x: x.reshape(w, x.shape[0] // w, *x.shape[1:]), batch)
        mapped = jax.vmap(step, in_axes=(dims, 0), out_axes=(dims, 0), axis_name=workers.axis, axis_size=w)
        return mapped(state, rows)

    run.simulates = w  # type: ignore[attr-defined]  # by this a ledger knows that the program sends nothing

    def on_mesh() -> Program[Any]:
        return _place(init, step, layout, abstract(w, workers.axis), args, None)

    one_device = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(first, *args)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), shapes)
    jit_step = DonatingStep(jax.jit(run, donate_argnums=0))
    return Program(jax.jit(first), jit_step, run, state, layout, workers, on_mesh)


def _place(
    init: Init, step: Step, layout: Layout, workers: Workers, args: tuple[Any, ...], shard: Callable[[Any], Any] | None,
    compiler_options: Mapping[str, str] | None = None,
) -> Program[Any]:  # fmt: skip
    """Workers along an axis of a mesh."""
    mesh, axis = workers.mesh, workers.axis
    assert mesh is not None
    worker_specs = specs(layout, workers)
    first = under_shard_map(packed(init, layout, workers), workers, P(), worker_specs)

    def packed_step(state: Any, batch: Any) -> tuple[Any, Any]:
        state, out = step(unpack(state, layout), batch)
        return pack(state, layout, workers), jax.tree.map(lambda x: collectives.pvary(x, axis)[None], out)

    run = under_shard_map(packed_step, workers, (worker_specs, P(axis)), (worker_specs, P(axis)))
    shapes = jax.eval_shape(first, *args)
    rows = jax.tree.map(lambda x, varies: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if varies else x, shapes, layout)
    other_specs = shard(rows) if shard is not None else jax.tree.map(lambda _: P(), shapes)
    full = jax.tree.map(lambda varies, s: NamedSharding(mesh, P(axis, *s) if varies else s), layout, other_specs)
    # Without fixed output shardings the compiler might choose others, and the next step would be compiled anew.
    jit_step = DonatingStep(
        jax.jit(
            run,
            donate_argnums=0,
            out_shardings=(full, NamedSharding(mesh, P(axis))),
            compiler_options=dict(compiler_options or {}),
        )
    )
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, full)
    program = Program(
        jax.jit(first, out_shardings=full), jit_step, run, state, layout, workers, on_mesh=lambda: program
    )
    return program
