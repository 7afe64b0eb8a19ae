"""Which collectives of a traced program send something that depends on some of its inputs."""

from collections.abc import Collection, Sequence
from typing import Any

from jax.extend.core import Literal

from jaxdist.ledger import _jaxprs as jaxprs


def dependent_collectives(program: Any, inputs: Collection[int]) -> set[str]:
    """The paths, as in `Branch`, of collectives whose operands depend on these inputs; not on how a branch is chosen.

    Args:
        program: a jaxpr, which may be closed.
        inputs: the numbers of the inputs.

    >>> import jax
    >>> code = lambda x, y: (jax.lax.psum(x, 'w'), jax.lax.psum(x + y, 'w'))
    >>> program = jax.make_jaxpr(code, axis_env=[('w', 2)])(1.0, 2.0)
    >>> [jaxprs.name(program.eqns[int(path)]) for path in dependent_collectives(program, [1])]
    ['psum']
    """
    found: set[str] = set()
    jaxpr, _ = jaxprs.parts(program)
    _follow(program, [i in inputs for i in range(len(jaxpr.invars))], '', found)
    return found


def _follow(program: Any, depends: Sequence[bool], path: str, found: set[str]) -> list[bool]:
    """Which outputs of a program depend on inputs, given which of its inputs do."""
    jaxpr, _ = jaxprs.parts(program)
    known = dict(zip(jaxpr.invars, depends, strict=True))
    read = lambda atoms: [not isinstance(atom, Literal) and known.get(atom, False) for atom in atoms]  # noqa: E731
    for i, eqn in enumerate(jaxpr.eqns):
        outputs = _equation(eqn, read(eqn.invars), f'{path}.{i}' if path else str(i), found)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return read(jaxpr.outvars)


def _equation(eqn: Any, depends: list[bool], path: str, found: set[str]) -> list[bool]:
    name = jaxprs.name(eqn)
    if (program := jaxprs.inlined(eqn)) is not None:
        return _follow(program, depends, path, found)
    if name == 'cond':
        branches = [_follow(b, depends[1:], f'{path}:{i}', found) for i, b in enumerate(eqn.params['branches'])]
        return [depends[0] or any(each) for each in zip(*branches, strict=True)]
    if name == 'scan':
        n, m = jaxprs.scan_sizes(eqn)
        return _loop(eqn.params['jaxpr'], depends[:n], depends[n : n + m], depends[n + m :], path, found)
    if name == 'while':
        n, m = jaxprs.while_sizes(eqn)
        inside = f'{path}:1' if jaxprs.condition_of(eqn) is not None else f'{path}.1'
        return _loop(eqn.params['body_jaxpr'], depends[n : n + m], depends[n + m :], [], inside, found)
    if name in jaxprs.SENDS and jaxprs.axis_names(eqn) and any(depends):
        found.add(path)
    return [any(depends)] * len(eqn.outvars)


def _loop(
    body: Any, constants: list[bool], carry: list[bool], rows: list[bool], path: str, found: set[str]
) -> list[bool]:
    """A loop: what a turn makes of the carry depends on what the turns before made of it."""
    while True:
        outputs = _follow(body, [*constants, *carry, *rows], path, found)
        wider = [a or b for a, b in zip(carry, outputs, strict=False)]
        if wider == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = wider
