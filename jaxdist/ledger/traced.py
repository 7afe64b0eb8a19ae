"""What a traced program sends, and what decides whether it does: one walk over the equations.

Every value is followed as a set of origins, written as the bits of an integer: bit i for input i, one more
for what may differ between workers, and a bit for each collective. A collective whose bit reaches no output
is dead and not counted; the compiler removes it too. The origins of a conditional's predicate tell what the
conditional depends on.
"""

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxdist.ledger import _jaxprs as jaxprs
from jaxdist.ledger.collective import Branch, Entry, bits, crossed, sent, stored


class Place(NamedTuple):
    """Where an equation stands: its path, its turns if every branch is taken, and the branches around it."""

    path: str = ''
    times: int | None = 1
    branch: tuple[Branch, ...] = ()

    def at(self, i: int) -> 'Place':
        """The i-th equation of the program that stands here."""
        return self._replace(path=f'{self.path}.{i}' if self.path else str(i))

    def looped(self, length: int | None) -> 'Place':
        """The body of a loop of this length that stands here; None if the length depends on data."""
        return self._replace(times=None if length is None or self.times is None else self.times * length)

    def taken(self, index: int) -> 'Place':
        """A branch of the conditional that stands here."""
        return self._replace(path=f'{self.path}:{index}', branch=(*self.branch, Branch(self.path, index)))


class Predicate(NamedTuple):
    """What a conditional depends on.

    Attributes:
        origins: of the predicate, and of those of the conditionals around it.
        branches: how many branches there are.
        times: see `Place`.
    """

    origins: int
    branches: int
    times: int | None


@dataclass
class Flow:
    """A walk over one traced program.

    Attributes:
        sizes: the mesh's axes and their sizes.
        inputs: how many inputs the program has.
        conditionals: path -> what it depends on.
        outputs: the origins of each output, once it is walked over.
    """

    sizes: Mapping[str, int]
    inputs: int
    conditionals: dict[str, Predicate] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    _entries: dict[str, list[Entry]] = field(default_factory=dict)
    _bits: dict[str, int] = field(default_factory=dict)
    _live: int = 0

    @classmethod
    def of(cls, program: Any, sizes: Mapping[str, int]) -> 'Flow':
        """The walk over a closed jaxpr."""
        jaxpr, _ = jaxprs.parts(program)
        flow = cls(sizes, len(jaxpr.invars))
        flow.outputs = flow._walk(program, [1 << i for i in range(flow.inputs)], Place())
        return flow

    @property
    def differs(self) -> int:
        """The origin of what may differ between workers."""
        return 1 << self.inputs

    def entries(self) -> list[Entry]:
        """The collectives whose results are used."""
        live = functools.reduce(operator.or_, self.outputs, self._live)
        return [e for path, entries in self._entries.items() if live & self._bits[path] for e in entries]

    def _walk(self, program: Any, inputs: Sequence[int], place: Place) -> list[int]:
        jaxpr, _ = jaxprs.parts(program)
        origins = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int:
            return 0 if isinstance(atom, Literal) else origins.get(atom, 0)

        for i, eqn in enumerate(jaxpr.eqns):
            out = self._equation(eqn, [read(atom) for atom in eqn.invars], place.at(i))
            origins.update(zip(eqn.outvars, out, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[int], place: Place) -> list[int]:
        name = jaxprs.name(eqn)
        if name == 'shard_map':
            return self._shard_map(eqn, ins, place)
        if (program := jaxprs.inlined(eqn)) is not None:
            return self._walk(program, ins, place)
        if name == 'cond':
            return self._cond(eqn, ins, place)
        if name == 'scan':
            return self._scan(eqn, ins, place)
        if name == 'while':
            return self._while(eqn, ins, place)
        return [self._plain(eqn, _union(ins), place)] * len(eqn.outvars)

    def _plain(self, eqn: Any, origins: int, place: Place) -> int:
        name = jaxprs.name(eqn)
        if name in jaxprs.SENDS and jaxprs.axis_names(eqn):
            self._entries[place.path] = list(_send(eqn, place, self.sizes))
            return origins | self._bits.setdefault(place.path, self.differs << (1 + len(self._bits)))
        if jaxprs.talks(eqn):
            over = jaxprs.axis_names(eqn) or 'the mesh'
            raise NotImplementedError(
                f'the ledger does not know what {eqn.primitive.name!r} sends over {over}: it knows '
                f'{", ".join(sorted(jaxprs.SENDS))}, in scans, loops, conditionals and calls'
            )
        if name == 'axis_index':
            return origins | self.differs
        if eqn.effects:
            self._live |= origins
        return origins | self.differs * bool(eqn.effects)

    def _shard_map(self, eqn: Any, ins: list[int], place: Place) -> list[int]:
        """Operands that are cut, and results that are put together, may differ between workers."""
        sizes = dict(eqn.params['mesh'].shape)
        if any(self.sizes.get(name, n) != n for name, n in sizes.items()):
            raise ValueError(f'the program is for a mesh of {sizes}, not for one of {dict(self.sizes)}')
        jaxpr, _ = jaxprs.parts(jaxprs.inlined(eqn))
        inside = [m | self.differs * jaxprs.cut(o, i) for m, o, i in zip(ins, eqn.invars, jaxpr.invars, strict=True)]
        out = self._walk(jaxpr, inside, place)
        return [m | self.differs * jaxprs.cut(o, i) for m, o, i in zip(out, eqn.outvars, jaxpr.outvars, strict=True)]

    def _cond(self, eqn: Any, ins: list[int], place: Place) -> list[int]:
        branches = eqn.params['branches']
        outer = (self.conditionals[branch.cond].origins for branch in place.branch)
        predicate = Predicate(_union([ins[0], *outer]), len(branches), place.times)
        self.conditionals[place.path] = predicate
        outs = [self._walk(branch, ins[1:], place.taken(i)) for i, branch in enumerate(branches)]
        return [_union([ins[0], *out]) for out in zip(*outs, strict=True)]

    def _scan(self, eqn: Any, ins: list[int], place: Place) -> list[int]:
        first, carried = jaxprs.scan_sizes(eqn)
        inside = place.looped(eqn.params['length'])
        return self._loop(ins, slice(first, first + carried), lambda ins: self._walk(eqn.params['jaxpr'], ins, inside))

    def _while(self, eqn: Any, ins: list[int], place: Place) -> list[int]:
        """All that goes in is an origin of all that comes out: the loop ends, and is evaluated, as a whole."""
        n, m = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
        inside = place.looped(None)

        def body(ins: list[int]) -> list[int]:
            ends = self._walk(eqn.params['cond_jaxpr'], ins[:n] + ins[n + m :], inside.at(0))
            out = self._walk(eqn.params['body_jaxpr'], ins[n:], inside.at(1))
            return [_union([*ins, *ends, *out, self.differs * bool(eqn.effects)])] * len(out)

        return self._loop(ins, slice(n + m, None), body)

    def _loop(self, ins: list[int], carried: slice, body: Any) -> list[int]:
        """The origins after any number of turns: what is carried gathers origins until nothing is added."""
        ins = list(ins)
        while True:
            out: list[int] = body(ins)
            wider = [a | b for a, b in zip(ins[carried], out, strict=False)]
            if wider == ins[carried]:
                return wider + out[len(wider) :]
            ins[carried] = wider


def traced(program: Any, sizes: Mapping[str, int], *args: Any) -> list[Entry]:
    """The collectives that a traced program asks for, in order.

    Those over axes that are left to the compiler are not here: it inserts them, see `compiled`. Payloads are
    counted as the trace sees them: an array that the compiler cuts over another axis counts whole, unless it
    is cut by a nested `shard_map`.

    Args:
        program: a jaxpr, as from `jax.make_jaxpr`; or a function, which is traced with `args`.
        sizes: the mesh's axes and their sizes, as in `mesh.shape`.
        args: the function's arguments, or their shapes and dtypes.

    Raises:
        ValueError: the program names an axis that the mesh does not have.
        NotImplementedError: a primitive communicates in a way that the ledger does not know.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> total = lambda x: jax.lax.psum(x, 'workers')
    >>> program = jax.shard_map(total, mesh=mesh, in_specs=jax.P('workers'), out_specs=jax.P())
    >>> traced(program, mesh.shape, jax.ShapeDtypeStruct((80,), 'float32'))
    [Entry(axes=('workers',), kind='all_reduce', dtype='float32', sent=Fraction(70, 1), times=1, branch=())]
    """
    if not isinstance(program, ClosedJaxpr | Jaxpr):
        program = jax.make_jaxpr(program)(*args)
    return Flow.of(program, sizes).entries()


def _union(origins: Iterable[int]) -> int:
    return functools.reduce(operator.or_, origins, 0)


def _send(eqn: Any, place: Place, sizes: Mapping[str, int]) -> Iterator[Entry]:
    """The entries of one collective: one for each dtype."""
    names = jaxprs.axis_names(eqn)
    if unknown := set(names) - set(sizes):
        raise ValueError(f'the program communicates over {sorted(unknown)}, but the mesh has the axes {dict(sizes)}')
    n = int(np.prod([sizes[name] for name in names]))
    kind = jaxprs.SENDS[jaxprs.name(eqn)]
    if kind == 'permute':
        pairs = [(a, b) for a, b in eqn.params['perm'] if a != b]
        axes, factor = crossed(pairs, {name: sizes[name] for name in names}), Fraction(len(pairs), n)
    else:
        groups = eqn.params.get('axis_index_groups') or [range(n)]
        axes, factor = names, sent(kind, Fraction(1), [len(group) for group in groups], n)
    axes = tuple(name for name in sizes if name in axes and sizes[name] > 1)
    payloads: dict[str, Fraction] = {}
    for atom in eqn.invars:
        count, dtype = stored(atom.aval)
        payloads[dtype] = payloads.get(dtype, Fraction(0)) + Fraction(count * bits(dtype), 8)
    if not axes or not factor or place.times == 0:
        return
    for dtype, payload in payloads.items():
        if payload:
            yield Entry(axes, kind, dtype, factor * payload, place.times, place.branch)
