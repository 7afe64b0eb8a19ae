"""A function whose new values can be discarded: each is chosen where it is computed, and so is what follows from it.

`jnp.where(ok, new, old)` after an optimiser makes XLA copy every moment: the new parameters are computed from the old
moments, which must therefore outlive their replacement. If the new parameters are computed from the chosen moments
instead, each buffer is overwritten in place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy
    copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma
    log log1p logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n
    sign sin sinh sqrt square stop_gradient sub tan tanh xor pcast pvary
    """.split()  # noqa: SIM905
)
"""Primitives that compute each entry of their result from the same entry of their arguments."""


def gate(fn: Callable[..., Any], args: tuple[Any, ...], old: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`fn(*args)`, and a function that chooses between its leaves and those of `old`.

    Args:
        fn: the function.
        args: its arguments, pytrees of arrays.
        old: a tree like `fn(*args)`, in place of which its leaves are stored.

    Returns:
        `fn(*args)`, and `choose(keep)`. `keep` is a tree like `old` with a bool scalar for each leaf, or None; where it
        is false the leaf is the old one bit for bit, and where it is None the new one.

    >>> new, choose = gate(lambda x: {'x': x + 1, 'y': x * 2}, (jnp.ones(()),), {'x': jnp.ones(()), 'y': jnp.zeros(())})
    >>> jax.tree.map(float, choose({'x': jnp.bool(False), 'y': None}))
    {'x': 1.0, 'y': 2.0}
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    treedef: Any = jax.tree.structure(shapes)
    leaves, outputs = treedef.flatten_up_to(old), closed.jaxpr.outvars
    inputs = dict(zip(closed.jaxpr.invars, jax.tree.leaves(args), strict=True))
    inputs |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values = dict(inputs)
    for eqn in closed.jaxpr.eqns:
        _evaluate(eqn, values)
    new = [jnp.asarray(_read(v, values)) for v in outputs]

    def choose(keep: Any) -> Any:
        keeps = treedef.flatten_up_to(keep)
        places: dict[Any, int] = {}
        for i, v in enumerate(outputs):
            if not isinstance(v, Literal) and v not in inputs and keeps[i] is not None:
                places.setdefault(v, i)
        chosen: dict[Any, Any] = {}
        for eqn in closed.jaxpr.eqns:
            # A collective must not run twice: only what is computed entry by entry follows from chosen values.
            if eqn.primitive.name in ELEMENTWISE and any(_reads(v, chosen) for v in eqn.invars):
                _evaluate(eqn, chosen, values)
            for v in eqn.outvars:
                place = places.get(v)
                if place is not None:
                    choice = _pick(keeps[place], chosen.pop(v, values[v]), leaves[place])
                    # What follows was traced for values of the type of the new one: of its dtype, varying as it does.
                    if jax.typeof(choice) == jax.typeof(values[v]):
                        chosen[v] = choice
        done = [_reads(v, chosen) and places.get(v) == i for i, v in enumerate(outputs)]
        out = [chosen[v] if done[i] else _pick(keeps[i], new[i], leaves[i]) for i, v in enumerate(outputs)]
        return jax.tree.unflatten(treedef, out)

    return jax.tree.unflatten(treedef, new), choose


def _evaluate(eqn: Any, into: dict[Any, Any], otherwise: dict[Any, Any] | None = None) -> None:
    """Evaluates an equation at these values, or at those of `otherwise` where there are none."""
    operands = [_read(v, into if otherwise is None or _reads(v, into) else otherwise) for v in eqn.invars]
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    into.update(zip(eqn.outvars, results if eqn.primitive.multiple_results else [results], strict=True))


def _read(v: Any, values: dict[Any, Any]) -> Any:
    return v.val if isinstance(v, Literal) else values[v]


def _reads(v: Any, values: dict[Any, Any]) -> bool:
    return not isinstance(v, Literal) and v in values


def _pick(keep: Any, new: Any, old: Any) -> Any:
    return new if keep is None else jnp.where(keep, new, old)
