"""Finds `cond`/`while` whose predicate varies over workers though the result is typed as replicated."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def divergent_branches(program: Any, axis: str) -> Iterator[str]:
    """The names of all `cond` and `while` whose predicate varies over workers and whose result is typed as replicated.

    `switch` is a `cond`, loops are `while`. Jax 0.10 and 0.12 type such a result by its branches only, so workers could
    diverge unnoticed.

    Args:
        program: the jaxpr of a traced program.
        axis: the worker axis, which is manual in the program.

    >>> import jax
    >>> mesh = jax.make_mesh((1,), ('w',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> choose = lambda x: jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0)
    >>> code = jax.shard_map(choose, mesh=mesh, in_specs=jax.P('w'), out_specs=jax.P())
    >>> list(divergent_branches(jax.make_jaxpr(code)(jax.numpy.ones(1)), 'w'))
    ['cond']
    """
    for eqn in program.eqns:
        kind = eqn.primitive.name
        divergent = kind in ('cond', 'while') and _predicate_varies(eqn, axis)
        if divergent and any(not _varies(out, axis) for out in eqn.outvars):
            yield kind
        for inner in core.jaxprs_in_params(eqn.params):
            yield from divergent_branches(inner, axis)


def _predicate_varies(eqn: Any, axis: str) -> bool:
    if eqn.primitive.name == 'cond':
        return _varies(eqn.invars[0], axis)
    return any(_varies(out, axis) for out in eqn.params['cond_jaxpr'].jaxpr.outvars)


def _varies(atom: Any, axis: str) -> bool:
    return axis in getattr(getattr(atom.aval, 'mat', None), 'varying', ())
