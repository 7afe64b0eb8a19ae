"""The layout of a state: which of its leaves vary over workers, read from the types of a trace."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxdist.core import collectives
from jaxdist.core.divergence import divergent_branches
from jaxdist.core.errors import InputError
from jaxdist.core.protocol import finding_layout
from jaxdist.core.workers import Workers, abstract

Init = Callable[..., Any]
"""Per-worker `(*args) -> state`."""

Step = Callable[[Any, Any], tuple[Any, Any]]
"""Per-worker `(state, batch) -> (state, out)`."""

Layout = Any
"""A pytree of bools in the shape of the state: whether a leaf varies over workers."""


def varying(fn: Callable[..., Any], workers: Workers, in_specs: Any, *args: Any) -> Layout:
    """Which leaves of `fn(*args)` may differ between workers, as bools, read from the types of a trace. Nothing runs.

    Args:
        fn: per-worker code.
        workers: the workers.
        in_specs: a `PartitionSpec` for each argument, as for `jax.shard_map`.
        *args: the arguments of all workers, or their shapes.

    Raises:
        InputError: the predicate of a `cond` or `while` varies over workers, but its result is typed as replicated.

    >>> from jaxdist.core.workers import simulated
    >>> f = lambda x: {'mine': x, 'ours': collectives.pmean(x)}
    >>> varying(f, simulated(4), jax.P('workers'), jax.ShapeDtypeStruct((4,), 'float32'))
    {'mine': True, 'ours': False}
    """
    return traced_types(fn, workers, in_specs, *args)[0]


def traced_types(fn: Callable[..., Any], workers: Workers, in_specs: Any, *args: Any) -> tuple[Layout, Any]:
    """What `varying` finds, and the worker's program of the same trace: a jaxpr whose results are rows [1, ...].

    Args:
        fn: per-worker code.
        workers: the workers.
        in_specs: a `PartitionSpec` for each argument, as for `jax.shard_map`.
        *args: the arguments of all workers, or their shapes.

    Raises:
        InputError: as `varying`.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.workers import simulated
    >>> traced_types(jnp.sin, simulated(4), P('workers'), jax.ShapeDtypeStruct((4,), 'float32'))[1].eqns[0].primitive
    sin
    """
    layouts = []

    def probe(*args: Any) -> Any:
        out = fn(*args)
        layouts.append(jax.tree.map(lambda x: collectives.varies(x, workers.axis), out))
        return pack(out, jax.tree.map(lambda _: True, out), workers)

    traced = jax.make_jaxpr(under_shard_map(probe, workers, in_specs, P(workers.axis)))(*args)
    for kind in divergent_branches(traced, workers.axis):
        raise InputError(
            f'the predicate of a lax.{kind} varies over workers, but its result is typed as replicated: workers would '
            'diverge unnoticed. Return collectives.pvary(...) of every value from its branches, or make the predicate '
            'replicated, for example with collectives.psum(...)'
        )
    return layouts[-1], traced.eqns[-1].params['jaxpr']


def find_layout(init: Init, step: Step, workers: Workers, args: tuple[Any, ...], batch: Any) -> Layout:
    """Which leaves of the state differ between workers: a pytree of bools in the shape of the state.

    Starts from the types of `init(*args)` and applies `step(state, batch)` until no further leaf varies.

    Args:
        init: per-worker `(*args) -> state`.
        step: per-worker `(state, batch) -> (state, out)`.
        workers: the workers.
        args: the arguments of `init`, or their shapes.
        batch: the batch of all workers, or its shapes.

    Raises:
        InputError: the step returns a state of another structure, or a predicate varies as described in `varying`.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.workers import simulated
    >>> init = lambda: {'sum': jnp.zeros(()), 'count': jnp.zeros((), jnp.int32)}
    >>> step = lambda s, b: ({'sum': s['sum'] + b.sum(), 'count': s['count'] + 1}, None)
    >>> find_layout(init, step, simulated(4), (), jax.ShapeDtypeStruct((8,), 'float32'))
    {'count': False, 'sum': True}
    """
    layout = varying(init, workers, P(), *args)
    while True:
        state_specs = specs(layout, workers)
        state = jax.eval_shape(under_shard_map(packed(init, layout, workers), workers, P(), state_specs), *args)

        def after(state: Any, batch: Any, layout: Layout = layout) -> Any:
            return step(unpack(state, layout), batch)[0]

        with finding_layout():
            new = varying(after, workers, (state_specs, P(workers.axis)), state, batch)
        given: Any = jax.tree.structure(layout)
        returned: Any = jax.tree.structure(new)
        if given != returned:
            raise InputError(
                'the step returns a state of another structure than it was given:\n'
                f'  given    {given}\n  returned {returned}'
            )
        wider = jax.tree.map(lambda a, b: a or b, layout, new)
        if wider == layout:
            return layout
        layout = wider


def under_shard_map(fn: Callable[..., Any], workers: Workers, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`fn` under `shard_map`, manual in the worker axis only; with simulated workers it can be traced, but not run.

    >>> from jaxdist.core.workers import simulated
    >>> double = under_shard_map(lambda x: 2 * x, simulated(4), P('workers'), P('workers'))
    >>> jax.eval_shape(double, jax.ShapeDtypeStruct((8,), 'float32')).shape
    (8,)
    """
    # Under `vmap` types do not show which values vary; an abstract mesh gives simulated workers such types.
    mesh = abstract(workers.count, workers.axis).mesh if workers.mesh is None else workers.mesh
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={workers.axis})


def specs(layout: Layout, workers: Workers) -> Any:
    """The `PartitionSpec` of each leaf of a layout: sharded over the worker axis if it varies, else replicated.

    >>> from jaxdist.core.workers import simulated
    >>> specs({'mine': True, 'ours': False}, simulated(4))
    {'mine': P('workers',), 'ours': P()}
    """
    return jax.tree.map(lambda varies: P(workers.axis) if varies else P(), layout)


def pack(state: Any, layout: Layout, workers: Workers) -> Any:
    """A worker's state with leaves that vary as rows [1, ...], as a `shard_map` returns them; other leaves unchanged.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.workers import simulated
    >>> pack({'mine': jnp.ones(()), 'ours': jnp.zeros(())}, {'mine': True, 'ours': False}, simulated(4))
    {'mine': Array([1.], dtype=float32), 'ours': Array(0., dtype=float32)}
    """
    return jax.tree.map(lambda x, varies: collectives.pvary(x, workers.axis)[None] if varies else x, state, layout)


def unpack(state: Any, layout: Layout) -> Any:
    """The inverse of `pack`.

    >>> import jax.numpy as jnp
    >>> unpack({'mine': jnp.ones(1), 'ours': jnp.zeros(())}, {'mine': True, 'ours': False})
    {'mine': Array(1., dtype=float32), 'ours': Array(0., dtype=float32)}
    """
    return jax.tree.map(lambda x, varies: x[0] if varies else x, state, layout)


def packed(init: Init, layout: Layout, workers: Workers) -> Init:
    """`init` with a packed state; see `pack`.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.workers import simulated
    >>> packed(lambda: jnp.ones(()), True, simulated(4))()
    Array([1.], dtype=float32)
    """
    return lambda *args: pack(init(*args), layout, workers)
