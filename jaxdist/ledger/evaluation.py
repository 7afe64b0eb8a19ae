"""Running the part of a traced program that its known inputs decide."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.ledger import _jaxprs as jaxprs

Known = dict[int, Any]
"""Position among a program's inputs or outputs -> value; what is not known is not there."""

# Outside of a `shard_map`, and of the mesh, these change nothing.
_SAME = {
    'pvary',
    'pcast',
    'preduced',
    'sharding_constraint',
    'reshard',
    'layout_constraint',
    'optimization_barrier',
}


@dataclass
class Evaluation:
    """Runs what known inputs decide, under a trace of JAX, and leaves out the rest.

    Attributes:
        wanted: conditionals to count.
        runs: path of a conditional -> how often each of its branches is taken [branches].
        active: whether the program is reached at all.
    """

    wanted: set[str]
    runs: dict[str, jax.Array] = field(default_factory=dict)
    active: Any = True

    def walk(self, program: Any, inputs: Known, path: str = '') -> Known:
        """The known outputs."""
        jaxpr, constants = jaxprs.parts(program)
        values = dict(zip(jaxpr.constvars, constants, strict=True)) | {jaxpr.invars[i]: x for i, x in inputs.items()}

        def known(atoms: Sequence[Any]) -> Known:
            found = (
                (i, values.get(atom) if jaxprs.literal(atom) is None else jaxprs.literal(atom))
                for i, atom in enumerate(atoms)
            )
            return {i: x for i, x in found if x is not None}

        for i, eqn in enumerate(jaxpr.eqns):
            out = self._equation(eqn, known(eqn.invars), f'{path}.{i}' if path else str(i))
            values.update((eqn.outvars[i], x) for i, x in out.items())
        return {i: _typed(x, jaxpr.outvars[i].aval) for i, x in known(jaxpr.outvars).items()}

    def _equation(self, eqn: Any, ins: Known, path: str) -> Known:
        name = jaxprs.name(eqn)
        if name == 'shard_map':
            return self._shard_map(eqn, ins, path)
        if (program := jaxprs.inlined(eqn)) is not None:
            return self.walk(program, ins, path)
        if name == 'cond':
            return self._cond(eqn, ins, path)
        if name == 'scan':
            return self._scan(eqn, ins, path)
        if name in _SAME:
            return {i: x for i, x in ins.items() if i < len(eqn.outvars)}
        if len(ins) < len(eqn.invars) or name == 'axis_index' or jaxprs.talks(eqn) or eqn.effects:
            return {}
        return _while(eqn, ins) if name == 'while' else _bind(eqn, ins)

    def _shard_map(self, eqn: Any, ins: Known, path: str) -> Known:
        jaxpr, _ = jaxprs.parts(jaxprs.inlined(eqn))
        inside = {i: x for i, x in ins.items() if not jaxprs.cut(eqn.invars[i], jaxpr.invars[i])}
        out = self.walk(jaxpr, inside, path)
        return {i: x for i, x in out.items() if not jaxprs.cut(eqn.outvars[i], jaxpr.outvars[i])}

    def _cond(self, eqn: Any, ins: Known, path: str) -> Known:
        """Runs every branch, which has no effects, and chooses; a result is known if all branches know it."""
        if 0 not in ins:
            return {}
        branches, chosen = eqn.params['branches'], ins[0]
        taken = [(chosen == i) & self.active for i in range(len(branches))]
        if path in self.wanted:
            self.runs[path] = jnp.stack(taken).astype(jnp.int32)
        inside = {i - 1: x for i, x in ins.items() if i > 0}
        outs = []
        for i, branch in enumerate(branches):
            part = Evaluation(self.wanted, self.runs, taken[i])
            outs.append(part.walk(branch, inside, f'{path}:{i}'))
        alike = set.intersection(*(set(out) for out in outs))
        return {i: lax.select_n(chosen, *(out[i] for out in outs)) for i in sorted(alike)}

    def _scan(self, eqn: Any, ins: Known, path: str) -> Known:
        first, carried = jaxprs.scan_sizes(eqn)
        end = first + carried
        constants = {i: x for i, x in ins.items() if i < first}
        state = {i: x for i, x in ins.items() if first <= i < end}
        rows = {i: x for i, x in ins.items() if i >= end}

        def turn(state: Known, rows: Known) -> tuple[Known, tuple[Known, dict[str, jax.Array]]]:
            part = Evaluation(self.wanted, active=self.active)
            out = part.walk(eqn.params['jaxpr'], constants | state | rows, path)
            after = {i + first: x for i, x in out.items() if i + first < end}
            return after, ({i: x for i, x in out.items() if i >= carried}, part.runs)

        row = {i: jax.eval_shape(lambda x: x[0], x) for i, x in rows.items()} if eqn.params['length'] else {}
        while len(after := set(jax.eval_shape(turn, state, row)[0]) & set(state)) < len(state):
            state = {i: x for i, x in state.items() if i in after}

        def body(state: Known, rows: Known) -> Any:
            out, found = turn(state, rows)
            return {i: out[i] for i in state}, found

        options = {'length': eqn.params['length'], 'reverse': eqn.params['reverse']}
        state, (stacked, runs) = lax.scan(body, state, rows, **options)
        self.runs.update({path: found.sum(axis=0) for path, found in runs.items()})
        return {i - first: x for i, x in state.items()} | stacked


def _while(eqn: Any, ins: Known) -> Known:
    """A loop whose operands are all known."""
    n, m = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    operands = [ins[i] for i in range(len(ins))]
    ends, body = operands[:n], operands[n : n + m]

    def run(program: Any, constants: list[Any], state: list[Any]) -> list[Any]:
        out = Evaluation(set()).walk(program, dict(enumerate([*constants, *state])))
        return [out[i] for i in range(len(out))]

    out = lax.while_loop(
        lambda state: run(eqn.params['cond_jaxpr'], ends, state)[0],
        lambda state: run(eqn.params['body_jaxpr'], body, state),
        operands[n + m :],
    )
    return dict(enumerate(out))


def _bind(eqn: Any, ins: Known) -> Known:
    """Any other primitive. It is bound outside of the mesh that it was traced in."""
    params = {key: None if key in {'sharding', 'out_sharding'} else value for key, value in eqn.params.items()}
    out = eqn.primitive.bind(*(ins[i] for i in range(len(eqn.invars))), **params)
    return dict(enumerate(out if eqn.primitive.multiple_results else [out]))


def _typed(x: Any, aval: Any) -> Any:
    """An output may be a number of Python, or of a weak type."""
    return x if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended) else lax.convert_element_type(x, aval.dtype)
