"""A traced program that also returns how often the branches of its conditionals are taken.

It runs on one device, outside of the mesh. Every value that depends on the mesh (the result of a collective, a
worker's shard, its index) or on an effect is computed from one more input, so that dead-code elimination shows
whether an output depends on such a value.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import mlir

from jaxdist.ledger import _jaxprs as jaxprs

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

# An equation whose primitive is bound only when the program is lowered, after dead-code elimination: many cannot
# be bound outside of the mesh that they were traced in.
_deferred = Primitive('deferred')
_deferred.multiple_results = True
_deferred.def_abstract_eval(lambda *_, run, avals: list(avals))
mlir.register_lowering(_deferred, mlir.lower_fun(lambda *ins, run, avals: run(*ins)))


def recorded(program: Any, wanted: Sequence[str]) -> ClosedJaxpr:
    """The program with its inputs and one more, and with its outputs and, for each wanted conditional, counts.

    Args:
        program: a closed jaxpr.
        wanted: paths of conditionals outside of `while` loops.

    >>> traced = jax.make_jaxpr(lambda i, x: jax.lax.cond(i > 2, jnp.sin, jnp.cos, x))(3, 1.0)
    >>> jax.jit(jaxpr_as_fun(recorded(traced, ['2'])))(3, 1.0, 0.0)[1]
    Array([0, 1], dtype=int32)
    """

    def run(*inputs: Any) -> tuple[list[Any], list[Any]]:
        recorder = _Recorder(set(wanted), inputs[-1])
        outputs = recorder.run(program, inputs[:-1])
        return outputs, [recorder.counts[path] for path in wanted]

    avals = [x.aval for x in jaxprs.parts(program)[0].invars]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    return jax.make_jaxpr(run)(*shapes, jax.ShapeDtypeStruct((), 'float32'))


@dataclass
class _Recorder:
    """An interpreter, run under a trace.

    Attributes:
        wanted: paths of the conditionals to count.
        unknown: the input on which all depends that one device does not know.
        active: whether the program is reached at all.
        counts: path of a conditional -> how often each of its branches is taken [branches].
    """

    wanted: Collection[str]
    unknown: Any
    active: Any = True
    counts: dict[str, jax.Array] = field(default_factory=dict)

    def run(self, program: Any, inputs: Sequence[Any], path: str = '') -> list[Any]:
        """The outputs."""
        jaxpr, constants = jaxprs.parts(program)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

        def read(atoms: Sequence[Any]) -> list[Any]:
            literals = (jaxprs.literal(atom) for atom in atoms)
            return [values[atom] if x is None else x for atom, x in zip(atoms, literals, strict=True)]

        for i, eqn in enumerate(jaxpr.eqns):
            out = self._equation(eqn, read(eqn.invars), f'{path}.{i}' if path else str(i))
            values.update(zip(eqn.outvars, out, strict=True))
        return read(jaxpr.outvars)

    def _equation(self, eqn: Any, ins: list[Any], path: str) -> list[Any]:
        name = jaxprs.name(eqn)
        if name == 'shard_map':
            return self._shard_map(eqn, ins, path)
        if (program := jaxprs.inlined(eqn)) is not None:
            return self.run(program, ins, path)
        if name == 'cond':
            return self._cond(eqn, ins, path)
        if name == 'scan':
            return self._scan(eqn, ins, path)
        if name in _SAME:
            return ins
        if eqn.effects or any(map(_varies, jaxprs.nested(eqn))):
            return self._unknowns(eqn.outvars)
        return _defer(_while if name == 'while' else _bind, eqn, ins)

    def _unknowns(self, atoms: Sequence[Any]) -> list[Any]:
        return _deferred.bind(self.unknown, run=None, avals=tuple(_plain(atom.aval) for atom in atoms))

    def _shard_map(self, eqn: Any, ins: list[Any], path: str) -> list[Any]:
        """Runs the program of one worker; shards are unknown, and so are results that are put together."""

        def pass_on(values: list[Any], before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
            pairs = zip(values, before, after, self._unknowns(after), strict=True)
            return [unknown if jaxprs.cut(a, b) else x for x, a, b, unknown in pairs]

        jaxpr, _ = jaxprs.parts(jaxprs.inlined(eqn))
        out = self.run(jaxpr, pass_on(ins, eqn.invars, jaxpr.invars), path)
        return pass_on(out, jaxpr.outvars, eqn.outvars)

    def _cond(self, eqn: Any, ins: list[Any], path: str) -> list[Any]:
        """Runs every branch, which has no effects, and selects."""
        branches, chosen = eqn.params['branches'], ins[0]
        taken = [(chosen == i) & self.active for i in range(len(branches))]
        if path in self.wanted:
            self.counts[path] = jnp.stack(taken).astype(jnp.int32)
        outs = [
            _Recorder(self.wanted, self.unknown, taken[i], self.counts).run(branch, ins[1:], f'{path}:{i}')
            for i, branch in enumerate(branches)
        ]
        return [lax.select_n(chosen, *cases) for cases in zip(*outs, strict=True)]

    def _scan(self, eqn: Any, ins: list[Any], path: str) -> list[Any]:
        first, carried = jaxprs.scan_sizes(eqn)

        def body(carry: Any, row: Any) -> Any:
            recorder = _Recorder(self.wanted, self.unknown, self.active)
            out = recorder.run(eqn.params['jaxpr'], [*ins[:first], *carry, *row], path)
            return out[:carried], (out[carried:], recorder.counts)

        end = first + carried
        options = {'length': eqn.params['length'], 'reverse': eqn.params['reverse']}
        carry, (rows, counts) = lax.scan(body, ins[first:end], ins[end:], **options)
        self.counts.update({path: count.sum(axis=0) for path, count in counts.items()})
        return [*carry, *rows]


def _varies(eqn: Any) -> bool:
    return jaxprs.name(eqn) == 'axis_index' or jaxprs.communicates(eqn)


def _plain(aval: Any) -> jax.core.ShapedArray:
    """The type of an array outside of the mesh."""
    return jax.core.ShapedArray(aval.shape, aval.dtype)


def _defer(run: Callable[..., list[Any]], eqn: Any, ins: Sequence[Any]) -> list[Any]:
    return _deferred.bind(*ins, run=functools.partial(run, eqn), avals=tuple(_plain(x.aval) for x in eqn.outvars))


def _while(eqn: Any, *ins: Any) -> list[Any]:
    n, m = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    recorder = _Recorder((), None)
    return lax.while_loop(
        lambda state: recorder.run(eqn.params['cond_jaxpr'], [*ins[:n], *state])[0],
        lambda state: recorder.run(eqn.params['body_jaxpr'], [*ins[n : n + m], *state]),
        list(ins[n + m :]),
    )


def _bind(eqn: Any, *ins: Any) -> list[Any]:
    params = {key: None if key in {'sharding', 'out_sharding'} else value for key, value in eqn.params.items()}
    out = eqn.primitive.bind(*ins, **params)
    return out if eqn.primitive.multiple_results else [out]
