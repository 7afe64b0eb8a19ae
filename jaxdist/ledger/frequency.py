"""How often each branch of a conditional is taken, computed from the traced step itself.

`recorded` rewrites the step so that it also returns how often each branch is taken. JAX's dead-code elimination
then keeps the equations that compute those counts, and the next values of the state leaves that they depend on:
a few scalars, as a rule. If neither the batch nor a value that varies over workers remains, these equations run
for as many steps as asked.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from jaxdist.core.errors import InputError
from jaxdist.ledger._recorder import recorded
from jaxdist.ledger.collective import Branch
from jaxdist.ledger.traced import Flow

Frequencies = dict[Branch, Fraction | None]
"""Branch -> the share of its chances at which it is taken; None: it depends on data."""


def frequencies(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> Frequencies:
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
        InputError: fewer than 1 step; the step returns a state of another type; or a leaf that decides has no
            value.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def code(count, x):
    ...     meet = lambda x: jax.lax.pcast(jax.lax.psum(x, 'workers'), 'workers', to='varying')
    ...     return count + 1, jax.lax.cond((count + 1) % 5 == 0, meet, lambda x: x, x)
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=specs)
    >>> found = frequencies(step, jnp.int32(0), jax.ShapeDtypeStruct((8,), 'float32'), mesh.shape, steps=100)
    >>> [(branch.index, str(share)) for branch, share in found.items()]
    [(0, '4/5'), (1, '1/5')]
    """
    traced = jitted(step).trace(state, batch)
    return count_frequencies(Flow.of(traced.jaxpr, sizes), traced.out_info, state, steps, initial)


def jitted(step: Callable[..., Any]) -> Any:
    """The function itself if it is jitted, else jitted.

    >>> f = jax.jit(lambda x: x)
    >>> jitted(f) is f
    True
    """
    return step if hasattr(step, 'trace') else jax.jit(step)


def count_frequencies(
    flow: Flow, out: Any, state: Any, steps: int, initial: Callable[[], Any] | None = None
) -> Frequencies:
    """`frequencies` of a step that is already traced.

    >>> step = jax.jit(lambda count, x: (count + 1, x)).trace(jnp.int32(0), jnp.ones(2))
    >>> count_frequencies(Flow.of(step.jaxpr, {}), step.out_info, jnp.int32(0), 10)
    {}
    """
    if steps < 1:
        raise InputError(f'steps={steps} must be 1 or more')
    leaves = _check_type(out, state)
    wanted = {branch.cond: flow.conditionals[branch.cond] for c in flow.collectives for branch in c.branch}
    chances = {path: steps * cond.times for path, cond in wanted.items() if cond.times is not None}
    program = recorded(flow.program, list(chances))
    position = {path: len(program.jaxpr.outvars) - len(chances) + i for i, path in enumerate(chances)}
    needed = {path: _closure(program, i, len(leaves)) for path, i in position.items()}
    decided = [path for path, inputs in needed.items() if all(i < len(leaves) for i in inputs)]
    first = _values(state, sorted(set().union(*(needed[path] for path in decided))), initial)
    counts = dict(zip(decided, _run(program, first, [position[path] for path in decided], steps), strict=True))
    return {
        Branch(path, i): Fraction(int(counts[path][i]), chances[path]) if path in counts else None
        for path, cond in wanted.items()
        for i in range(cond.branches)
    }


def _check_type(out: Any, state: Any) -> list[tuple[Any, Any]]:
    """The state's leaves with their paths, once the step is known to return a state of the same type."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    shapes = jax.tree.leaves(jax.eval_shape(lambda x: x, state))
    new = out[0] if isinstance(out, tuple | list) and out else None
    if tree != jax.tree.structure(new):
        raise InputError(f'the step must return (state, out); of a state {tree} it returned {jax.tree.structure(out)}')
    for (path, _), before, after in zip(leaves, shapes, jax.tree.leaves(new), strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise InputError(f'the step turns state{jax.tree_util.keystr(path)} from {before} into {after}')
    return leaves


def _pruned(program: ClosedJaxpr, outputs: Collection[int]) -> tuple[Callable[..., list[Any]], list[int]]:
    """The part of a program that computes these outputs, and the positions of the inputs that it needs."""
    jaxpr, used = dce_jaxpr(program.jaxpr, [i in outputs for i in range(len(program.jaxpr.outvars))])
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, program.consts)), [i for i, use in enumerate(used) if use]


def _closure(program: ClosedJaxpr, output: int, leaves: int) -> set[int]:
    """Inputs that an output depends on after any number of steps; the first `leaves` are the state's."""
    inputs: set[int] = set()
    while True:
        wider = inputs.union(_pruned(program, {output, *(i for i in inputs if i < leaves)})[1])
        if wider == inputs:
            return inputs
        inputs = wider


def _values(state: Any, needed: Sequence[int], initial: Callable[[], Any] | None) -> dict[int, Any]:
    """The first values of the state leaves that decide."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    absent = [i for i in needed if isinstance(leaves[i][1], jax.ShapeDtypeStruct)]
    values = {i: _local(leaves[i][1]) for i in needed if i not in absent}
    if absent and initial is not None:
        traced, shapes = jax.make_jaxpr(initial, return_shape=True)()
        if tree != jax.tree.structure(shapes):
            raise InputError(f'initial makes {jax.tree.structure(shapes)} where the state is {tree}')
        program = recorded(traced, [])
        known = [i for i in absent if not _pruned(program, [i])[1]]
        values |= dict(zip(known, jax.jit(_pruned(program, known)[0])(), strict=True))
    if missing := [i for i in absent if i not in values]:
        names = ', '.join(f'state{jax.tree_util.keystr(leaves[i][0])}' for i in missing)
        raise InputError(
            f'how often a branch is taken depends on the first value of {names}: give a state with values, '
            'or initial=..., a function that makes it, alike on all workers'
        )
    return values


def _local(x: Any) -> Any:
    """The value on one device of this process."""
    if not hasattr(x, 'dtype'):
        return jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_local(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return jnp.asarray(jax.device_get(x))


def _run(program: ClosedJaxpr, first: dict[int, Any], outputs: list[int], steps: int) -> list[np.ndarray]:
    """The sum over steps of some outputs."""
    step, _ = _pruned(program, {*first, *outputs})

    def body(state: list[Any], _: None) -> tuple[list[Any], list[Any]]:
        out = step(*state)
        return out[: len(first)], out[len(first) :]

    # Counts are summed on the host, in 64 bits.
    counts = jax.jit(lambda state: lax.scan(body, state, length=steps)[1])([first[i] for i in sorted(first)])
    return [np.asarray(count).astype(np.int64).sum(axis=0) for count in counts]
