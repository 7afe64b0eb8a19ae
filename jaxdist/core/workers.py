"""Per-worker code becomes one program: on a mesh, or with simulated workers on one device; types lay out its state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxdist.core import collectives
from jaxdist.core.divergence import split_choices

P = PartitionSpec
Init = Callable[..., Any]
Step = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Workers:
    """Where the workers are.

    Attributes:
        count: the number of workers W.
        mesh: a mesh with the worker axis (its other axes are left to the compiler), or None to simulate on one
            device. An abstract mesh will do for tracing.
        axis: the worker axis's name.
    """

    count: int
    mesh: Mesh | AbstractMesh | None = None
    axis: str = collectives.AXIS

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f'there must be 1 worker or more, not {self.count}')


def on_mesh(mesh: Mesh | AbstractMesh, axis: str = collectives.AXIS) -> Workers:
    """The workers of a mesh's axis.

    Raises:
        ValueError: the mesh has no such axis, or one that is not of `AxisType.Auto`.

    >>> import jaxdist.core.mesh
    >>> on_mesh(jaxdist.core.mesh.make({'workers': 2, 'model': 2})).count
    2
    """
    if axis not in mesh.shape:
        raise ValueError(f'the mesh has no axis {axis!r}; its axes are {list(mesh.shape)}')
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(f'every axis of the mesh must be of AxisType.Auto; they are {mesh.axis_types}')
    return Workers(mesh.shape[axis], mesh, axis)


def simulated(count: int, axis: str = collectives.AXIS) -> Workers:
    """This many workers on one device, by `vmap`.

    >>> simulated(64).count
    64
    """
    return Workers(count, None, axis)


def imagined(count: int, axis: str = collectives.AXIS, others: Mapping[str, int] | None = None) -> Workers:
    """This many workers on a mesh that is not there: for programs that are traced, and do not run.

    Args:
        count: the number of workers.
        axis: the worker axis's name.
        others: the mesh's other axes and their sizes.

    >>> imagined(1024).count
    1024
    """
    axes = {axis: count, **(others or {})}
    return Workers(
        count, AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)), axis
    )


def part_shapes(data: Any, count: int) -> Any:
    """The shapes of one worker's part of arrays [rows, ...] that so many workers divide, in dtypes that JAX has.

    >>> part_shapes({'x': jnp.zeros((8, 3))}, 4)
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    dtype = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // count, *x.shape[1:]), dtype(x.dtype)), data)


class Program(NamedTuple):
    """Compiled per-worker code.

    Attributes:
        init: `(*args) -> state`, jitted. Every worker gets the same arguments.
        step: `(state, batch) -> (state, out)`, jitted; the state's buffers are donated. The batch's first dim is
            divided among the workers; every leaf of `out` comes back as [W, ...], one row a worker.
        run: `step` before jit and donation, for tracing.
        state: the state's shapes, dtypes and shardings.
        layout: which leaves of the state differ between workers, as bools.
    """

    init: Any
    step: Any
    run: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    layout: Any


def which_vary(fn: Callable[..., Any], workers: Workers, in_specs: Any, *args: Any) -> Any:
    """Which leaves of `fn(*args)` may differ between workers, as bools, read from the types of a trace. Nothing runs.

    >>> f = lambda x: {'mine': x, 'ours': collectives.mean(x)}
    >>> which_vary(f, simulated(4), jax.P('workers'), jax.ShapeDtypeStruct((4,), 'float32'))
    {'mine': True, 'ours': False}
    """
    seen = []

    def probe(*args: Any) -> jax.Array:
        seen.append(jax.tree.map(lambda x: collectives.varies(x, workers.axis), fn(*args)))
        return jnp.zeros(())

    traced = jax.make_jaxpr(_sharded(probe, workers, in_specs, P()))(*args)
    for kind in split_choices(traced, workers.axis):
        raise ValueError(
            f'a lax.{kind} is decided differently by each worker, and gives values that count as shared by all: they '
            'would drift apart unseen. Give jaxdist.core.collectives.per_worker(...) of every value out of it, or decide by '
            'something that all share, such as collectives.total(...)'
        )
    return seen[-1]


def find_layout(init: Init, step: Step, workers: Workers, args: tuple[Any, ...], batch: Any) -> Any:
    """Which leaves of the state differ between workers: a pytree of bools in the shape of the state.

    Starts from the types of `init(*args)` and lets `step(state, batch)` widen them until nothing changes. Arguments may
    be shapes; the batch is the whole one, of all workers.

    >>> init = lambda: {'sum': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}
    >>> step = lambda s, b: ({'sum': s['sum'] + b.sum(), 'count': s['count'] + 1}, None)
    >>> find_layout(init, step, simulated(4), (), jax.ShapeDtypeStruct((8,), 'float32'))
    {'count': False, 'sum': True}
    """
    layout = which_vary(init, workers, P(), *args)
    while True:
        own = _specs(layout, workers)
        state = jax.eval_shape(_sharded(_packed(init, layout, workers), workers, P(), own), *args)

        def after(state: Any, batch: Any, layout: Any = layout) -> Any:
            return step(_unpack(state, layout), batch)[0]

        found = which_vary(after, workers, (own, P(workers.axis)), state, batch)
        given: Any = jax.tree.structure(layout)
        returned: Any = jax.tree.structure(found)
        if given != returned:
            raise ValueError(
                'the step returns a state of another structure than it was given:\n'
                f'  given    {given}\n  returned {returned}'
            )
        wider = jax.tree.map(lambda a, b: a or b, layout, found)
        if wider == layout:
            return layout
        layout = wider


def spread(
    init: Init,
    step: Step,
    layout: Any,
    workers: Workers,
    args: tuple[Any, ...],
    cut: Callable[[Any], Any] | None = None,
) -> Program:
    """One program for all workers from the code of one.

    What varies (`layout`) is held as [W, ...], sharded over the worker axis; the rest is held once.

    Args:
        init: per-worker `(*args) -> state`.
        step: per-worker `(state, batch) -> (state, out)`.
        layout: from `find_layout`.
        workers: where they are.
        args: arguments of `init`, or their shapes.
        cut: from the state's per-worker shapes, a `PartitionSpec` over the mesh's other axes for each leaf.

    >>> init = lambda: {'sum': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}
    >>> step = lambda s, b: ({'sum': s['sum'] + b.sum(), 'count': s['count'] + 1}, b.sum())
    >>> program = spread(init, step, {'sum': True, 'count': False}, simulated(4), ())
    >>> program.step(program.init(), jnp.arange(8.0))
    ({'count': Array(1, dtype=int32), 'sum': Array([ 1.,  5.,  9., 13.], dtype=float32)}, Array([ 1.,  5.,  9., 13.],
    dtype=float32))
    """
    if workers.mesh is None:
        return _simulate(init, step, layout, workers, args)
    return _place(init, step, layout, workers, args, cut)


def update_program(
    update: optax.GradientTransformation, start: Callable[[], Any], gradients: Any, where: Workers
) -> Program:
    """An update alone as a program: `step((params, opt_state), gradients) -> (state, (updates, params))`.

    Args:
        update: the optax transformation.
        start: makes the parameters.
        gradients: of all workers, [W, ...] each, or their shapes.
        where: the workers.

    >>> program = update_program(optax.sgd(1.0), lambda: jnp.zeros(()), jnp.ones(2), simulated(2))
    >>> program.step(program.init(), jnp.ones(2))[1][0]
    Array([-1., -1.], dtype=float32)
    """
    extended = optax.with_extra_args_support(update)

    def init() -> Any:
        params = start()
        return params, extended.init(params)

    def step(state: Any, batch: Any) -> Any:
        updates, opt_state = extended.update(jax.tree.map(lambda x: x[0], batch), state[1], state[0])
        params = optax.apply_updates(state[0], updates)
        return (params, opt_state), (updates, params)

    return spread(init, step, find_layout(init, step, where, (), gradients), where, ())


def _simulate(init: Init, step: Step, layout: Any, workers: Workers, args: tuple[Any, ...]) -> Program:
    """Workers as the rows of a `vmap`."""
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

    here = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(first, *args)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return Program(jax.jit(first), jax.jit(run, donate_argnums=0), run, state, layout)


def _place(
    init: Init, step: Step, layout: Any, workers: Workers, args: tuple[Any, ...], cut: Callable[[Any], Any] | None
) -> Program:
    """Workers as the positions along a mesh's axis."""
    mesh, axis = workers.mesh, workers.axis
    assert mesh is not None
    own = _specs(layout, workers)
    first = _sharded(_packed(init, layout, workers), workers, P(), own)

    def packed_step(state: Any, batch: Any) -> tuple[Any, Any]:
        state, out = step(_unpack(state, layout), batch)
        return _pack(state, layout, workers), jax.tree.map(lambda x: collectives.per_worker(x, axis)[None], out)

    run = _sharded(packed_step, workers, (own, P(axis)), (own, P(axis)))
    shapes = jax.eval_shape(first, *args)
    rows = jax.tree.map(lambda x, varies: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if varies else x, shapes, layout)
    cuts = cut(rows) if cut is not None else jax.tree.map(lambda _: P(), shapes)
    full = jax.tree.map(lambda varies, c: NamedSharding(mesh, P(axis, *c) if varies else c), layout, cuts)
    jit_step = jax.jit(run, donate_argnums=0, out_shardings=(full, NamedSharding(mesh, P(axis))))
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, full)
    return Program(jax.jit(first, out_shardings=full), jit_step, run, state, layout)


def _sharded(fn: Callable[..., Any], workers: Workers, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`fn` under `shard_map`, manual in the worker axis alone."""
    # Simulated workers get an abstract mesh, so that their values have types to read; it cannot run.
    mesh = imagined(workers.count, workers.axis).mesh if workers.mesh is None else workers.mesh
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={workers.axis})


def _specs(layout: Any, workers: Workers) -> Any:
    return jax.tree.map(lambda varies: P(workers.axis) if varies else P(), layout)


def _pack(state: Any, layout: Any, workers: Workers) -> Any:
    return jax.tree.map(lambda x, varies: collectives.per_worker(x, workers.axis)[None] if varies else x, state, layout)


def _unpack(state: Any, layout: Any) -> Any:
    return jax.tree.map(lambda x, varies: x[0] if varies else x, state, layout)


def _packed(init: Init, layout: Any, workers: Workers) -> Init:
    return lambda *args: _pack(init(*args), layout, workers)
