"""How often each branch of a conditional is taken, computed from the traced step itself.

The step is extended by outputs that count its branches. JAX's dead-code elimination then keeps what computes
these counts, and the next values of the state leaves that they depend on: a few scalars, as a rule. If neither
the batch nor a value that varies over workers is left, that part of the step runs for as many steps as asked.
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
from jaxdist.ledger._branch_counts import with_branch_counts
from jaxdist.ledger.collective import Branch
from jaxdist.ledger.traced import Conditional, Flow, refuse_simulated

Frequencies = dict[Branch, Fraction | None]
"""Branch -> the share of steps on which it is taken; None: it depends on data. In a scan, the share of its turns."""


def frequencies(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> Frequencies:
    """The frequency of each branch of every conditional with a collective in it, over the first steps.

    Branches have the same names as in `traced`.

    Args:
        step: `(state, batch) -> (state, out)`, jitted or not.
        state: the first state, or its shapes; see `initial`.
        batch: a batch, or its shapes.
        sizes: the mesh's axes and their sizes, as in `mesh.shape`.
        steps: how many steps to count over.
        initial: returns the first state; used if `state` has no values. Only the leaves that predicates depend
            on are computed, on this process's first device.

    Raises:
        InputError: fewer than 1 step; the step returns a state of another type; or a state leaf that a predicate
            depends on has no value.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def code(count, x):
    ...     mean = lambda x: jax.lax.pcast(jax.lax.pmean(x, 'workers'), 'workers', to='varying')
    ...     return count + 1, jax.lax.cond((count + 1) % 5 == 0, mean, lambda x: x, x)
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=specs)
    >>> branches = frequencies(step, np.int32(0), jax.ShapeDtypeStruct((8,), 'float32'), mesh.shape, steps=100)
    >>> [(branch.index, str(frequency)) for branch, frequency in branches.items()]
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
    refuse_simulated(step)
    return step if hasattr(step, 'trace') else jax.jit(step)


def count_frequencies(
    flow: Flow, out: Any, state: Any, steps: int, initial: Callable[[], Any] | None = None
) -> Frequencies:
    """`frequencies` of a step that is already traced.

    >>> step = jax.jit(lambda count, x: (count + 1, x)).trace(np.int32(0), np.ones(2))
    >>> count_frequencies(Flow.of(step.jaxpr, {}), step.out_info, np.int32(0), 10)
    {}
    """
    counts = {path: each.sum(axis=0) for path, each in count_branches(flow, out, state, steps, initial).items()}
    return {
        Branch(path, i): Fraction(int(counts[path][i]), steps * (cond.times or 0)) if path in counts else None
        for path, cond in _conditionals(flow).items()
        for i in range(cond.branches)
    }


def count_branches(
    flow: Flow, out: Any, state: Any, steps: int, initial: Callable[[], Any] | None = None
) -> dict[str, np.ndarray]:
    """How often each branch is taken at each step, [steps, branches], by path; without what depends on data.

    Arguments and errors are those of `frequencies`, of a step that is already traced.

    >>> step = jax.jit(lambda count, x: (count + 1, x)).trace(np.int32(0), np.ones(2))
    >>> count_branches(Flow.of(step.jaxpr, {}), step.out_info, np.int32(0), 10)
    {}
    """
    if steps < 1:
        raise InputError(f'steps={steps} must be 1 or more')
    _check_type(out, state)
    countable = [path for path, cond in _conditionals(flow).items() if cond.times is not None]
    return _count_branches(flow.program, countable, state, steps, initial) if countable else {}


def _conditionals(flow: Flow) -> dict[str, Conditional]:
    """The conditionals with a collective in them, by path."""
    return {b.cond: flow.conditionals[b.cond] for collective in flow.collectives for b in collective.branch}


def _check_type(out: Any, state: Any) -> None:
    """Checks that the step returns a state of the same type."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    shapes = jax.tree.leaves(jax.eval_shape(lambda x: x, state))
    new = out[0] if isinstance(out, tuple | list) and out else None
    if tree != jax.tree.structure(new):
        raise InputError(f'the step must return (state, out); of a state {tree} it returned {jax.tree.structure(out)}')
    for (path, _), before, after in zip(leaves, shapes, jax.tree.leaves(new), strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise InputError(f'the step turns state{jax.tree_util.keystr(path)} from {before} into {after}')


def _count_branches(
    program: Any, conditionals: Sequence[str], state: Any, steps: int, initial: Callable[[], Any] | None
) -> dict[str, np.ndarray]:
    """Path -> how often each branch is taken at each step, for the conditionals that do not depend on data."""
    counted = with_branch_counts(program, conditionals)
    outputs = {path: len(counted.jaxpr.outvars) - len(conditionals) + i for i, path in enumerate(conditionals)}
    size = len(jax.tree.leaves(state))
    inputs = {path: _inputs_at_any_step(counted, output, size) for path, output in outputs.items()}
    outputs = {path: output for path, output in outputs.items() if all(i < size for i in inputs[path])}
    if not outputs:
        return {}
    leaves = sorted(set().union(*(inputs[path] for path in outputs)))
    step, _ = _part(counted, {*leaves, *outputs.values()})

    def body(state: list[Any], _: None) -> tuple[list[Any], list[Any]]:
        results = step(*state)
        return results[: len(leaves)], results[len(leaves) :]

    counts = jax.jit(lambda state: lax.scan(body, state, length=steps)[1])(_values(state, leaves, initial))
    # In 64 bits, for the sum over steps.
    return {path: np.asarray(count).astype(np.int64) for path, count in zip(outputs, counts, strict=True)}


def _part(program: ClosedJaxpr, outputs: Collection[int]) -> tuple[Callable[..., list[Any]], list[int]]:
    """The part of a program that computes these outputs, and which inputs that part has."""
    jaxpr, used = dce_jaxpr(program.jaxpr, [i in outputs for i in range(len(program.jaxpr.outvars))])
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, program.consts)), [i for i, is_used in enumerate(used) if is_used]


def _inputs_at_any_step(program: ClosedJaxpr, output: int, size: int) -> set[int]:
    """The inputs that an output depends on after any number of steps; the first `size` are the state's leaves."""
    inputs: set[int] = set()
    while True:
        wider = inputs.union(_part(program, {output, *(i for i in inputs if i < size)})[1])
        if wider == inputs:
            return inputs
        inputs = wider


def _values(state: Any, needed: Sequence[int], initial: Callable[[], Any] | None) -> list[Any]:
    """The first values of these state leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    tree: Any = jax.tree.structure(state)
    abstract = [i for i in needed if isinstance(leaves[i][1], jax.ShapeDtypeStruct)]
    values = {i: _local(leaves[i][1]) for i in needed if i not in abstract}
    if abstract and initial is not None:
        traced, shapes = jax.make_jaxpr(initial, return_shape=True)()
        if tree != jax.tree.structure(shapes):
            raise InputError(f'initial makes {jax.tree.structure(shapes)} where the state is {tree}')
        program = with_branch_counts(traced, [])
        computable = [i for i in abstract if not _part(program, [i])[1]]
        values |= dict(zip(computable, jax.jit(_part(program, computable)[0])(), strict=True))
    if missing := [i for i in abstract if i not in values]:
        names = ', '.join(f'state{jax.tree_util.keystr(leaves[i][0])}' for i in missing)
        raise InputError(
            f'how often a branch is taken depends on the first value of {names}: give a state with values, '
            'or initial=..., a function that returns it, the same on all workers'
        )
    return [values[i] for i in needed]


def _local(x: Any) -> Any:
    """The value on one device of this process."""
    if not hasattr(x, 'dtype'):
        return jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_local(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return jnp.asarray(jax.device_get(x))
