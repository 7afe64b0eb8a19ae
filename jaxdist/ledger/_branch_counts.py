"""A traced program that also returns how often each branch of its conditionals is taken.

The program runs on one device, outside of the mesh. Whatever depends on the mesh (a worker's shard or index, the
result of a collective) or on an effect is computed from one additional input, `unknown`, so that dead-code
elimination shows whether an output depends on it.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import mlir

from jaxdist.ledger import _jaxprs as jaxprs

# Outside of a `shard_map`, and of the mesh, these are the identity.
_IDENTITIES = {'pvary', 'pcast', 'preduced', 'reshard'}
_IDENTITIES |= {'sharding_constraint', 'layout_constraint', 'optimization_barrier'}

# An equation whose primitive is bound only at lowering, after dead-code elimination: not every primitive can be
# bound outside of the mesh that it was traced in.
_deferred = Primitive('deferred')
_deferred.multiple_results = True
_deferred.def_abstract_eval(lambda *_, run, avals: list(avals))
mlir.register_lowering(_deferred, mlir.lower_fun(lambda *inputs, run, avals: run(*inputs)))


def with_branch_counts(program: Any, conditionals: Sequence[str]) -> ClosedJaxpr:
    """`program` with the input `unknown` after its own, and for each conditional an output int32[branches].

    Args:
        program: a closed jaxpr.
        conditionals: paths, as in `Branch`, of conditionals that are in no `while` loop of several turns.

    >>> traced = jax.make_jaxpr(lambda i, x: jax.lax.cond(i > 2, jnp.sin, jnp.cos, x))(3, 1.0)
    >>> unknown = 0.0
    >>> jax.jit(jax.extend.core.jaxpr_as_fun(with_branch_counts(traced, ['2'])))(3, 1.0, unknown)[1]
    Array([0, 1], dtype=int32)
    """

    def run(*inputs: Any) -> tuple[list[Any], list[Any]]:
        recorder = _Recorder(set(conditionals), inputs[-1])
        outputs = recorder.run(program, inputs[:-1])
        return outputs, [recorder.counts[path] for path in conditionals]

    avals = [var.aval for var in jaxprs.parts(program)[0].invars]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(run)(*shapes, jax.ShapeDtypeStruct((), 'float32'))


@dataclass
class _Recorder:
    """Traces a program anew, inlined, and counts branches.

    Attributes:
        conditionals: paths of the conditionals to count.
        unknown: the input that stands for what one device does not know.
        active: whether the branches around the program are taken.
        counts: path of a conditional -> how often each of its branches is taken [branches].
    """

    conditionals: Collection[str]
    unknown: Any
    active: Any = True
    counts: dict[str, jax.Array] = field(default_factory=dict)

    def run(self, program: Any, inputs: Sequence[Any], path: str = '') -> list[Any]:
        """The program's outputs."""
        jaxpr, constants = jaxprs.parts(program)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

        def read(atoms: Sequence[Any]) -> list[Any]:
            literals = (jaxprs.literal(atom) for atom in atoms)
            return [values[atom] if x is None else x for atom, x in zip(atoms, literals, strict=True)]

        for i, eqn in enumerate(jaxpr.eqns):
            outputs = self._equation(eqn, read(eqn.invars), f'{path}.{i}' if path else str(i))
            values.update(zip(eqn.outvars, outputs, strict=True))
        return read(jaxpr.outvars)

    def _equation(self, eqn: Any, inputs: list[Any], path: str) -> list[Any]:
        name = jaxprs.name(eqn)
        if name == 'shard_map':
            return self._shard_map(eqn, inputs, path)
        if (program := jaxprs.inlined(eqn)) is not None:
            return self.run(program, inputs, path)
        if name == 'cond':
            return self._cond(eqn, inputs, path)
        if name == 'scan':
            return self._scan(eqn, inputs, path)
        if name == 'while' and (condition := jaxprs.condition_of(eqn)) is not None:
            return self._once(eqn, inputs, path, condition)
        if name in _IDENTITIES:
            return inputs
        if eqn.effects or jaxprs.depends_on_mesh(eqn):
            return self._unknowns(eqn.outvars)
        # Dead-code elimination keeps or drops a `while` loop as a whole.
        run = functools.partial(_while if name == 'while' else _bind, eqn)
        return _deferred.bind(*inputs, run=run, avals=_off_mesh(eqn.outvars))

    def _unknowns(self, atoms: Sequence[Any]) -> list[Any]:
        return _deferred.bind(self.unknown, run=None, avals=_off_mesh(atoms))

    def _shard_map(self, eqn: Any, inputs: list[Any], path: str) -> list[Any]:
        """Runs the program of one worker; its shards, and arrays assembled from shards, are unknown."""

        def convert(values: list[Any], before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
            both = zip(values, self._unknowns(after), before, after, strict=True)
            return [unknown if jaxprs.is_sharded(a, b) else x for x, unknown, a, b in both]

        jaxpr, _ = jaxprs.parts(jaxprs.inlined(eqn))
        outputs = self.run(jaxpr, convert(inputs, eqn.invars, jaxpr.invars), path)
        return convert(outputs, jaxpr.outvars, eqn.outvars)

    def _cond(self, eqn: Any, inputs: list[Any], path: str) -> list[Any]:
        """Runs every branch, which has no effects here, and selects."""
        index, *operands = inputs
        branches = eqn.params['branches']
        taken = self._count(path, [index == i for i in range(len(branches))])
        outputs = [
            _Recorder(self.conditionals, self.unknown, active, self.counts).run(branch, operands, f'{path}:{i}')
            for i, (branch, active) in enumerate(zip(branches, taken, strict=True))
        ]
        return [lax.select_n(index, *cases) for cases in zip(*outputs, strict=True)]

    def _once(self, eqn: Any, inputs: list[Any], path: str, condition: int) -> list[Any]:
        """A loop that runs its body once or never: runs it, and selects."""
        n, m = jaxprs.while_sizes(eqn)
        constants, carry = inputs[n : n + m], inputs[n + m :]
        runs = carry[condition]
        active = self._count(path, [~runs, runs])[1]
        recorder = _Recorder(self.conditionals, self.unknown, active, self.counts)
        after = recorder.run(eqn.params['body_jaxpr'], [*constants, *carry], f'{path}:1')
        return [lax.select_n(runs, *cases) for cases in zip(carry, after, strict=True)]

    def _count(self, path: str, taken: list[Any]) -> list[Any]:
        """Counts the branches of a conditional; returns which of them are taken if all around them are."""
        taken = [branch & self.active for branch in taken]
        if path in self.conditionals:
            self.counts[path] = jnp.stack(taken).astype(jnp.int32)
        return taken

    def _scan(self, eqn: Any, inputs: list[Any], path: str) -> list[Any]:
        n, m = jaxprs.scan_sizes(eqn)
        constants, carry, rows = inputs[:n], inputs[n : n + m], inputs[n + m :]

        def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], tuple[list[Any], dict[str, jax.Array]]]:
            recorder = _Recorder(self.conditionals, self.unknown, self.active)
            outputs = recorder.run(eqn.params['jaxpr'], [*constants, *carry, *row], path)
            return outputs[:m], (outputs[m:], recorder.counts)

        options = {'length': eqn.params['length'], 'reverse': eqn.params['reverse']}
        carry, (rows, counts) = lax.scan(body, carry, rows, **options)
        self.counts.update({path: count.sum(axis=0) for path, count in counts.items()})
        return [*carry, *rows]


def _off_mesh(atoms: Sequence[Any]) -> tuple[jax.core.ShapedArray, ...]:
    """Types without the mesh and the axes that they vary over."""
    return tuple(jax.core.ShapedArray(atom.aval.shape, atom.aval.dtype) for atom in atoms)


def _while(eqn: Any, *inputs: Any) -> list[Any]:
    n, m = jaxprs.while_sizes(eqn)
    recorder = _Recorder((), None)
    return lax.while_loop(
        lambda carry: recorder.run(eqn.params['cond_jaxpr'], [*inputs[:n], *carry])[0],
        lambda carry: recorder.run(eqn.params['body_jaxpr'], [*inputs[n : n + m], *carry]),
        list(inputs[n + m :]),
    )


def _bind(eqn: Any, *inputs: Any) -> list[Any]:
    params = {key: None if key in {'sharding', 'out_sharding'} else value for key, value in eqn.params.items()}
    outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]
