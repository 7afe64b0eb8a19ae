"""Choices that workers make differently between values that they share: JAX types the result as shared, and it is
not.
"""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def divergent_branches(program: Any, axis: str) -> Iterator[str]:
    """Each `cond`, `switch` or loop of a traced program whose condition differs between workers, and not its result's
    type.

    In jax 0.10 and 0.12 such a result is typed by the branches alone. Returned are the names of the operations.

    Args:
        program: a jaxpr, as `jax.make_jaxpr` returns it.
        axis: the worker axis, manual in the program.

    >>> import jax
    >>> mesh = jax.make_mesh((1,), ('w',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> choose = lambda x: jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0)
    >>> code = jax.shard_map(choose, mesh=mesh, in_specs=jax.P('w'), out_specs=jax.P())
    >>> list(divergent_branches(jax.make_jaxpr(code)(jax.numpy.ones(1)), 'w'))
    ['cond']
    """
    for eqn in program.eqns:
        kind = eqn.primitive.name
        split = kind in ('cond', 'while') and _condition_differs(eqn, axis)
        if split and any(not _differs(out, axis) for out in eqn.outvars):
            yield kind
        for inner in core.jaxprs_in_params(eqn.params):
            yield from divergent_branches(inner, axis)


def _condition_differs(eqn: Any, axis: str) -> bool:
    if eqn.primitive.name == 'cond':
        return _differs(eqn.invars[0], axis)
    return any(_differs(out, axis) for out in eqn.params['cond_jaxpr'].jaxpr.outvars)


def _differs(atom: Any, axis: str) -> bool:
    return axis in getattr(getattr(atom.aval, 'mat', None), 'varying', ())
