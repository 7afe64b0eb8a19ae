"""On what share of the steps each branch of a conditional is taken, found from the program itself.

The predicate's origins tell which leaves of the state decide; if neither the batch nor another worker is
among them, the part of the step that leads from those leaves to the predicate, and to their next values, is
run for as many steps as asked: a few scalars, as a rule.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist.ledger.collective import Branch
from jaxdist.ledger.evaluation import Evaluation, Known
from jaxdist.ledger.traced import Flow

Shares = dict[Branch, Fraction | None]
"""Branch -> the share of its chances at which it is taken; None: it depends on data."""


def shares(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> Shares:
    """For every conditional with a collective in it, on what share of the first steps each branch is taken.

    Of a conditional in a scan, every turn of every step is a chance. Branches are named as `traced` names
    them.

    Args:
        step: `(state, batch) -> (state, out)`, jitted or not.
        state: the first state, or its shapes; see `initial`.
        batch: a batch, or its shapes.
        sizes: the mesh's axes and their sizes, as in `mesh.shape`.
        steps: how many steps to count over.
        initial: makes the first state. Only those of its leaves that decide are computed, on this process's
            first device, and only if `state` has no values.

    Raises:
        ValueError: fewer than 1 step; the step returns a state of another type; or a leaf that decides has no
            value.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def code(count, x):
    ...     meet = lambda x: jax.lax.pcast(jax.lax.psum(x, 'workers'), 'workers', to='varying')
    ...     return count + 1, jax.lax.cond((count + 1) % 5 == 0, meet, lambda x: x, x)
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=specs)
    >>> found = shares(step, jnp.int32(0), jax.ShapeDtypeStruct((8,), 'float32'), mesh.shape, steps=100)
    >>> [(branch.index, str(share)) for branch, share in found.items()]
    [(0, '4/5'), (1, '1/5')]
    """
    traced = jitted(step).trace(state, batch)
    return count_runs(traced.jaxpr, Flow.of(traced.jaxpr, sizes), traced.out_info, state, steps, initial)


def jitted(step: Callable[..., Any]) -> Any:
    """The function itself if it is jitted, else jitted.

    >>> f = jax.jit(lambda x: x)
    >>> jitted(f) is f
    True
    """
    return step if hasattr(step, 'trace') else jax.jit(step)


def count_runs(
    program: Any, flow: Flow, out: Any, state: Any, steps: int, initial: Callable[[], Any] | None = None
) -> Shares:
    """`shares` of a step that is already traced and walked.

    >>> step = jax.jit(lambda count, x: (count + 1, x)).trace(jnp.int32(0), jnp.ones(2))
    >>> count_runs(step.jaxpr, Flow.of(step.jaxpr, {}), step.out_info, jnp.int32(0), 10)
    {}
    """
    if steps < 1:
        raise ValueError(f'steps={steps} must be 1 or more')
    leaves = _check_type(out, state)
    wanted = {branch.cond: flow.conditionals[branch.cond] for entry in flow.entries() for branch in entry.branch}
    needed = 0
    known: dict[str, int] = {}  # path -> how many chances there are
    for path, predicate in wanted.items():
        origins = _closure(predicate.origins, flow.outputs[: len(leaves)])
        if predicate.times is not None and not origins >> len(leaves):
            known[path], needed = steps * predicate.times, needed | origins
    first = _values(state, [i for i in range(len(leaves)) if needed >> i & 1], initial)
    runs = _run(program, first, set(known), steps) if known else {}
    return {
        Branch(path, i): Fraction(int(runs[path][i]), known[path]) if path in known else None
        for path, predicate in wanted.items()
        for i in range(predicate.branches)
    }


def _check_type(out: Any, state: Any) -> list[tuple[Any, Any]]:
    """The state's leaves with their paths, once the step is known to return a state of the same type."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    shapes = jax.tree.leaves(jax.eval_shape(lambda x: x, state))
    new = out[0] if isinstance(out, tuple | list) and out else None
    if tree != jax.tree.structure(new):
        raise ValueError(f'the step must return (state, out); of a state {tree} it returned {jax.tree.structure(out)}')
    for (path, _), before, after in zip(leaves, shapes, jax.tree.leaves(new), strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(f'the step turns state{jax.tree_util.keystr(path)} from {before} into {after}')
    return leaves


def _closure(origins: int, outputs: Sequence[int]) -> int:
    """The origins at any step: those of the next value of every state leaf among them are added too."""
    while True:
        wider = origins
        for i, after in enumerate(outputs):
            wider |= after if origins >> i & 1 else 0
        if wider == origins:
            return origins
        origins = wider


def _values(state: Any, needed: Sequence[int], initial: Callable[[], Any] | None) -> Known:
    """The first values of the state leaves that decide."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    absent = [i for i in needed if isinstance(leaves[i][1], jax.ShapeDtypeStruct)]
    made: Known = {}
    if absent and initial is not None:
        program, shapes = jax.make_jaxpr(initial, return_shape=True)()
        if tree != jax.tree.structure(shapes):
            raise ValueError(f'initial makes {jax.tree.structure(shapes)} where the state is {tree}')
        made = jax.jit(lambda: {i: x for i, x in Evaluation(set()).walk(program, {}).items() if i in absent})()
    if missing := [i for i in absent if i not in made]:
        names = ', '.join(f'state{jax.tree_util.keystr(leaves[i][0])}' for i in missing)
        raise ValueError(
            f'how often a branch is taken depends on the first value of {names}: give a state with values, '
            'or initial=..., a function that makes it, alike on all workers'
        )
    return made | {i: _local(leaves[i][1]) for i in needed if i not in absent}


def _local(x: Any) -> Any:
    """The value on one device of this process."""
    if not hasattr(x, 'dtype'):
        return jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_local(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return jnp.asarray(jax.device_get(x))


def _run(program: Any, values: Known, wanted: set[str], steps: int) -> dict[str, np.ndarray]:
    """How often each branch of the wanted conditionals is taken."""

    def turn(state: Known, _: None) -> tuple[Known, dict[str, jax.Array]]:
        part = Evaluation(wanted)
        out = part.walk(program, state)
        return {i: out[i] for i in state}, part.runs

    # Results are summed on the host, in 64 bits.
    counts = jax.jit(lambda state: lax.scan(turn, state, length=steps)[1])(values)
    return {path: np.asarray(runs).astype(np.int64).sum(axis=0) for path, runs in counts.items()}
