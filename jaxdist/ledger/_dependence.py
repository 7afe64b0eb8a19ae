"""What the operands of the collectives of a traced program depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend.core import Literal

from jaxdist.ledger import _jaxprs as jaxprs

Labels = frozenset[str]
"""Names of inputs, and paths of collectives, that a value depends on."""
NOTHING: Labels = frozenset()


def dependence(program: Any, inputs: Mapping[int, str]) -> dict[str, Labels]:
    """For each collective, by its path as in `Branch`, what its operands depend on; not how a branch is chosen.

    Args:
        program: a jaxpr, which may be closed.
        inputs: the names of inputs, by their numbers.

    >>> import jax
    >>> code = lambda x, y: jax.lax.psum(jax.lax.psum(x, 'w') + y, 'w')
    >>> program = jax.make_jaxpr(code, axis_env=[('w', 2)])(1.0, 2.0)
    >>> [sorted(labels) for labels in dependence(program, {1: 'batch'}).values()]
    [[], ['0', 'batch']]
    """
    found: dict[str, Labels] = {}
    jaxpr, _ = jaxprs.parts(program)
    labels = [frozenset({inputs[i]}) if i in inputs else NOTHING for i in range(len(jaxpr.invars))]
    _follow(program, labels, '', found)
    return found


def _follow(program: Any, inputs: Sequence[Labels], path: str, found: dict[str, Labels]) -> list[Labels]:
    """What the outputs of a program depend on, given what its inputs do."""
    jaxpr, _ = jaxprs.parts(program)
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atoms: [NOTHING if isinstance(a, Literal) else known.get(a, NOTHING) for a in atoms]  # noqa: E731
    for i, eqn in enumerate(jaxpr.eqns):
        outputs = _equation(eqn, read(eqn.invars), f'{path}.{i}' if path else str(i), found)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return read(jaxpr.outvars)


def _equation(eqn: Any, inputs: list[Labels], path: str, found: dict[str, Labels]) -> list[Labels]:
    name, all_of_them = jaxprs.name(eqn), NOTHING.union(*inputs)
    if (program := jaxprs.inlined(eqn)) is not None:
        return _follow(program, inputs, path, found)
    if name == 'cond':
        branches = [_follow(b, inputs[1:], f'{path}:{i}', found) for i, b in enumerate(eqn.params['branches'])]
        return [inputs[0].union(*each) for each in zip(*branches, strict=True)]
    if name == 'scan':
        n, m = jaxprs.scan_sizes(eqn)
        return _loop(eqn.params['jaxpr'], inputs[:n], inputs[n : n + m], inputs[n + m :], path, found)
    if name == 'while':
        n, m = jaxprs.while_sizes(eqn)
        inside = f'{path}:1' if jaxprs.condition_of(eqn) is not None else f'{path}.1'
        return _loop(eqn.params['body_jaxpr'], inputs[n : n + m], inputs[n + m :], [], inside, found)
    if name in jaxprs.SENDS and jaxprs.axis_names(eqn):
        found[path] = all_of_them
        all_of_them |= {path}
    return [all_of_them] * len(eqn.outvars)


def _loop(
    body: Any, constants: list[Labels], carry: list[Labels], rows: list[Labels], path: str, found: dict[str, Labels]
) -> list[Labels]:
    """A loop: what a turn makes of the carry depends on what the turns before made of it."""
    while True:
        outputs = _follow(body, [*constants, *carry, *rows], path, found)
        wider = [before | after for before, after in zip(carry, outputs, strict=False)]
        if wider == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = wider
