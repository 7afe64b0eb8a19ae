"""The collectives of a traced program, without dead code: the compiler removes that too."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxdist.core.errors import InputError, UnknownCollectiveError
from jaxdist.ledger import _jaxprs as jaxprs
from jaxdist.ledger.collective import RAGGED, Branch, Collective, array_size, axes_spanned, bits, sent


class Place(NamedTuple):
    """The position of an equation in a program.

    Attributes:
        path: as in `Branch`.
        times: how often it runs if every branch around it is taken; None in a loop whose length depends on data.
        branch: the conditional branches around it, the outermost first.
    """

    path: str = ''
    times: int | None = 1
    branch: tuple[Branch, ...] = ()

    def at(self, i: int) -> 'Place':
        """The i-th equation of the program here."""
        return self._replace(path=f'{self.path}.{i}' if self.path else str(i))

    def looped(self, length: int | None) -> 'Place':
        """The body of a loop of this length here; None if the length depends on data."""
        return self._replace(times=None if length is None or self.times is None else self.times * length)

    def taken(self, index: int) -> 'Place':
        """A branch of the conditional here."""
        return self._replace(path=f'{self.path}:{index}', branch=(*self.branch, Branch(self.path, index)))


class Conditional(NamedTuple):
    """A conditional of a traced program. A loop that runs its body once or never is one, with the body as branch 1.

    Attributes:
        branches: how many branches it has.
        times: how often it runs if every branch around it is taken; see `Place`.
    """

    branches: int
    times: int | None


@dataclass(frozen=True)
class Flow:
    """The collectives and conditionals of one traced program.

    Attributes:
        program: the jaxpr, without dead code.
        sizes: the mesh's axes and their sizes.
        collectives: in the order of the program.
        paths: the place of each collective, as in `Branch`.
        pairs: of each collective that is a permute which position sends to which, along its axes; () for the others.
        conditionals: by path.
    """

    program: ClosedJaxpr | Jaxpr
    sizes: Mapping[str, int]
    collectives: list[Collective] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    pairs: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    conditionals: dict[str, Conditional] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Any, sizes: Mapping[str, int]) -> 'Flow':
        """The collectives and conditionals of a jaxpr, which may be closed."""
        jaxpr, _ = jaxprs.parts(program)
        jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
        flow = cls(program.replace(jaxpr=jaxpr) if isinstance(program, ClosedJaxpr) else jaxpr, sizes)
        flow._walk(jaxpr, Place())
        return flow

    def _walk(self, program: Any, place: Place) -> None:
        for i, eqn in enumerate(jaxprs.parts(program)[0].eqns):
            self._equation(eqn, place.at(i))

    def _equation(self, eqn: Any, place: Place) -> None:
        name = jaxprs.name(eqn)
        if name == 'shard_map':
            self._check_mesh(eqn.params['mesh'])
        if (program := jaxprs.inlined(eqn)) is not None:
            self._walk(program, place)
        elif name == 'cond':
            branches = eqn.params['branches']
            self.conditionals[place.path] = Conditional(len(branches), place.times)
            for i, branch in enumerate(branches):
                self._walk(branch, place.taken(i))
        elif name == 'scan':
            self._walk(eqn.params['jaxpr'], place.looped(eqn.params['length']))
        elif name == 'while' and jaxprs.condition_of(eqn) is not None:
            self.conditionals[place.path] = Conditional(2, place.times)
            self._walk(eqn.params['body_jaxpr'], place.taken(1))
        elif name == 'while':
            inside = place.looped(None)
            self._walk(eqn.params['cond_jaxpr'], inside.at(0))
            self._walk(eqn.params['body_jaxpr'], inside.at(1))
        elif name in jaxprs.SENDS and jaxprs.axis_names(eqn):
            self._send(eqn, place)
        elif jaxprs.communicates(eqn):
            over = jaxprs.axis_names(eqn) or 'the mesh'
            raise UnknownCollectiveError(
                f'the ledger does not know what {eqn.primitive.name!r} sends over {over}: it knows '
                f'{", ".join(sorted(jaxprs.SENDS))}, in scans, loops, conditionals and calls'
            )

    def _send(self, eqn: Any, place: Place) -> None:
        for collective in _send(eqn, place, self.sizes):
            self.collectives.append(collective)
            self.paths.append(place.path)
            self.pairs.append(tuple(eqn.params['perm']) if collective.kind == 'permute' else ())

    def _check_mesh(self, mesh: Any) -> None:
        sizes = dict(mesh.shape)
        if any(self.sizes.get(name, n) != n for name, n in sizes.items()):
            raise InputError(f'the program is for a mesh of {sizes}, not for one of {dict(self.sizes)}')


def traced(program: Any, sizes: Mapping[str, int], *args: Any) -> list[Collective]:
    """The collectives of a traced program, in order.

    Collectives over automatic axes are not included: the compiler inserts them, see `compiled`. Payloads have the
    size that they have in the trace: an array that the compiler shards over another axis counts whole, unless a
    nested `shard_map` shards it.

    Args:
        program: a jaxpr, as from `jax.make_jaxpr`; or a function, which is traced with `args`.
        sizes: the mesh's axes and their sizes, as in `mesh.shape`.
        args: the function's arguments, or their shapes and dtypes.

    Raises:
        InputError: the program names an axis that the mesh does not have, or simulates its workers.
        UnknownCollectiveError: a primitive communicates in a way that the ledger does not know.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> psum = lambda x: jax.lax.psum(x, 'workers')
    >>> program = jax.shard_map(psum, mesh=mesh, in_specs=jax.P('workers'), out_specs=jax.P())
    >>> traced(program, mesh.shape, jax.ShapeDtypeStruct((80,), 'float32'))
    [Collective(axes=('workers',), kind='all_reduce', dtype='float32', sent=Fraction(70, 1), times=1, branch=())]
    """
    if not isinstance(program, ClosedJaxpr | Jaxpr):
        refuse_simulated(program)
        program = jax.make_jaxpr(program)(*args)
    return Flow.of(program, sizes).collectives


def refuse_simulated(program: Any) -> None:
    """Refuses a function whose workers are simulated: nothing is sent between them, which no trace shows.

    Raises:
        InputError: with the call that has the bytes.

    >>> refuse_simulated(lambda x: x)
    """
    if count := getattr(inspect.unwrap(program), 'simulates', 0):
        raise InputError(
            f'this program simulates {count} workers on one device, which send nothing: jaxdist.cost(program, batch, '
            'key) has the bytes that they would send on a mesh; program.on_mesh() is the program for it'
        )


def _send(eqn: Any, place: Place, sizes: Mapping[str, int]) -> Iterator[Collective]:
    """One collective primitive, as a `Collective` for each dtype."""
    names = jaxprs.axis_names(eqn)
    if unknown := set(names) - set(sizes):
        raise InputError(f'the program communicates over {sorted(unknown)}, but the mesh has the axes {dict(sizes)}')
    n = int(np.prod([sizes[name] for name in names]))
    kind = jaxprs.SENDS[jaxprs.name(eqn)]
    if kind == 'permute':
        pairs = [(a, b) for a, b in eqn.params['perm'] if a != b]
        axes, factor = axes_spanned(pairs, {name: sizes[name] for name in names}), Fraction(len(pairs), n)
    else:
        groups = eqn.params.get('axis_index_groups') or [range(n)]
        axes, factor = names, sent(kind, Fraction(1), [len(group) for group in groups], n)
    axes = tuple(name for name in sizes if name in axes and sizes[name] > 1)
    payloads: dict[str, Fraction] = {}
    # The other operands of a ragged exchange say how many rows go where.
    for atom in eqn.invars[:1] if kind == RAGGED else eqn.invars:
        count, dtype = array_size(atom.aval)
        payloads[dtype] = payloads.get(dtype, Fraction(0)) + Fraction(count * bits(dtype), 8)
    if not axes or not factor or place.times == 0:
        return
    for dtype, payload in payloads.items():
        if payload:
            times = None if kind == RAGGED else place.times
            yield Collective(axes, kind, dtype, factor * payload, times, place.branch)
