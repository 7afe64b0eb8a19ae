"""Reads equations of jaxprs, in the forms of all versions of JAX: their programs, axes and collectives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core

SENDS = {
    'psum': 'all_reduce',
    'psum_invariant': 'all_reduce',
    'unreduced_psum': 'all_reduce',
    'pmax': 'all_reduce',
    'pmin': 'all_reduce',
    'unreduced_pmax': 'all_reduce',
    'unreduced_pmin': 'all_reduce',
    'all_gather': 'all_gather',
    'all_gather_invariant': 'all_gather',
    'all_gather_reduced': 'all_gather',
    'all_to_all': 'all_to_all',
    'ragged_all_to_all': 'ragged_all_to_all',
    'ppermute': 'permute',
    'reduce_scatter': 'reduce_scatter',
    'unreduced_reduce_scatter': 'reduce_scatter',
}
"""Primitive -> kind of collective."""

# They name axes but send nothing: they change types, or return a position.
_SILENT = {'pvary', 'pcast', 'preduced', 'vary_unreduced_cast', 'vary_unreduced_cast_p', 'axis_index'}

_INLINE = {
    'jit': 'jaxpr',
    'pjit': 'jaxpr',
    'remat2': 'jaxpr',
    'checkpoint': 'jaxpr',
    'shard_map': 'jaxpr',
    'closed_call': 'call_jaxpr',
    'core_call': 'call_jaxpr',
    'eval_jaxpr': 'call_jaxpr',
    'custom_jvp_call': 'call_jaxpr',
    'custom_vjp_call': 'call_jaxpr',
}


def parts(program: Any) -> tuple[Any, list[Any]]:
    """The jaxpr of a program, closed or not, and the values of its constants.

    >>> import jax
    >>> jaxpr, constants = parts(jax.make_jaxpr(lambda x: x + 1)(2.0))
    >>> len(jaxpr.eqns), constants
    (1, [])
    """
    return getattr(program, 'jaxpr', program), list(getattr(program, 'consts', ()))


def name(eqn: Any) -> str:
    """The primitive's name; the start of an asynchronous pair has the name of the whole.

    >>> import jax
    >>> name(jax.make_jaxpr(lambda x: x + 1)(2.0).eqns[0])
    'add'
    """
    return str(eqn.primitive.name).removesuffix('_start')


def inlined(eqn: Any) -> Any | None:
    """The program of an equation that runs it once, on its own operands, and returns its results; or None.

    >>> import jax
    >>> inlined(jax.make_jaxpr(jax.jit(lambda x: x + 1))(2.0).eqns[0]) is None
    False
    """
    key = _INLINE.get(name(eqn))
    return None if key is None else eqn.params[key]


def scan_sizes(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried.

    >>> import jax
    >>> code = lambda x: jax.lax.scan(lambda carry, _: (carry + 1, carry), x, None, length=3)
    >>> scan_sizes(jax.make_jaxpr(code)(2.0).eqns[0])
    (0, 1)
    """
    if 'num_carry' in eqn.params:
        return eqn.params['num_consts'], eqn.params['num_carry']
    constants, carried, _ = eqn.params['ft_in'].unpack()
    return len(list(constants)), len(list(carried))


def while_sizes(eqn: Any) -> tuple[int, int]:
    """How many operands of a `while` are constants of its condition, and of its body; the others are carried.

    >>> import jax
    >>> code = lambda x, end: jax.lax.while_loop(lambda x: x < end, lambda x: x + 1, x)
    >>> while_sizes(jax.make_jaxpr(code)(2, 5).eqns[0])
    (1, 0)
    """
    return eqn.params['cond_nconsts'], eqn.params['body_nconsts']


def condition_of(eqn: Any) -> int | None:
    """Which carried value is the condition of a `while` that runs its body once or never; None for any other.

    It does if its condition is a carried value that its body makes false, as in `jaxdist.core.conditional.when`.

    >>> import jax
    >>> once = lambda go, x: jax.lax.while_loop(lambda s: s[1], lambda s: (s[0] + 1, False), (x, go))
    >>> condition_of(jax.make_jaxpr(once)(True, 2.0).eqns[0])
    1
    >>> turns = lambda x: jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, x)
    >>> condition_of(jax.make_jaxpr(turns)(2.0).eqns[0])
    """
    condition, _ = parts(eqn.params['cond_jaxpr'])
    body, _ = parts(eqn.params['body_jaxpr'])
    carried = list(condition.invars[while_sizes(eqn)[0] :])
    go = condition.outvars[0]
    if isinstance(go, core.Literal) or go not in carried:
        return None
    after = literal(body.outvars[carried.index(go)])
    return None if after is None or after else carried.index(go)


def is_sharded(outer: Any, inner: Any) -> bool:
    """Whether a value has another shape inside a `shard_map` than outside.

    >>> import jax
    >>> x = jax.make_jaxpr(lambda x: x)(2.0).jaxpr.invars[0]
    >>> is_sharded(x, x)
    False
    """
    return bool(outer.aval.shape != inner.aval.shape)


def literal(atom: Any) -> np.ndarray | None:
    """The value of an operand that is a literal, or None.

    >>> import jax
    >>> literal(jax.make_jaxpr(lambda x: x + 1)(2.0).eqns[0].invars[1])
    array(1., dtype=float32)
    """
    if not isinstance(atom, core.Literal):
        return None
    aval: Any = atom.aval
    return np.asarray(atom.val, aval.dtype)


def axis_names(eqn: Any) -> tuple[str, ...]:
    """The mesh axes that an equation names.

    >>> import jax
    >>> axis_names(jax.make_jaxpr(lambda x: jax.lax.psum(x, 'w'), axis_env=[('w', 2)])(2.0).eqns[0])
    ('w',)
    """
    for key in ('axes', 'axis_name', 'axis_names'):
        value = eqn.params.get(key, ())
        axes = (value,) if isinstance(value, str) else value
        if isinstance(axes, tuple | list | set | frozenset) and any(isinstance(axis, str) for axis in axes):
            return tuple(axis for axis in axes if isinstance(axis, str))
    return ()


def communicates(eqn: Any) -> bool:
    """Whether an equation, or one in its programs, sends something, as far as can be seen.

    >>> import jax
    >>> communicates(jax.make_jaxpr(lambda x: jax.lax.psum(x, 'w'), axis_env=[('w', 2)])(2.0).eqns[0])
    True
    """
    return any(_may_send(inner) for inner in _nested(eqn))


def depends_on_mesh(eqn: Any) -> bool:
    """Whether an equation, or one in its programs, communicates or returns the position in the mesh.

    >>> import jax
    >>> depends_on_mesh(jax.make_jaxpr(lambda: jax.lax.axis_index('w'), axis_env=[('w', 2)])().eqns[0])
    True
    """
    return any(_may_send(inner) or name(inner) == 'axis_index' for inner in _nested(eqn))


def _nested(eqn: Any) -> Iterator[Any]:
    """The equation, and all equations in its programs."""
    yield eqn
    for program in core.jaxprs_in_params(eqn.params):
        for inner in program.eqns:
            yield from _nested(inner)


def _may_send(eqn: Any) -> bool:
    silent = inlined(eqn) is not None or eqn.primitive.name.endswith('done') or name(eqn) in _SILENT
    return bool(axis_names(eqn)) and not silent
