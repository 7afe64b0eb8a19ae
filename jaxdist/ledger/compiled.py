"""Collectives of a compiled program, whoever put them there: the program itself, or the compiler."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxdist.core.errors import InputError, UnknownCollectiveError
from jaxdist.ledger import _hlo as hlo
from jaxdist.ledger._hlo import Computation, Instruction, Module
from jaxdist.ledger.collective import Collective, crossed, sent
from jaxdist.ledger.traced import Place

_SENDS = {
    'all-reduce': 'all_reduce',
    'all-gather': 'all_gather',
    'all-to-all': 'all_to_all',
    'reduce-scatter': 'reduce_scatter',
    'collective-permute': 'permute',
}
_REFUSED = {'ragged-all-to-all', 'collective-broadcast', 'send', 'recv'}


def compiled(program: Any, mesh: Any) -> list[Collective]:
    """The collectives of a compiled program, with the payloads of one device.

    The compiler may merge collectives, cut their payloads over other axes, and choose others. On CPU it sends
    bfloat16 as float32 and 8-bit floats as float16, and some versions of it turn a reduce_scatter into an
    all_reduce or an all_to_all. On TPU an all_gather whose length is no multiple of 128 may become a padded
    all_reduce, and matrices are gathered as bfloat16 for a product that is computed in it.

    Args:
        program: what `jax.jit(f).lower(...).compile()` returns, or its text.
        mesh: the mesh that it was compiled for, or anything else with its `shape`.

    Raises:
        InputError: the program was compiled for another number of devices.
        UnknownCollectiveError: it communicates in a way that the ledger does not know.

    >>> import jax
    >>> text = '''HloModule jit_f, num_partitions=8
    ...
    ... ENTRY %main (x: f32[10]) -> f32[10] {
    ...   %x = f32[10]{0} parameter(0)
    ...   ROOT %r = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
    ... }'''
    >>> compiled(text, jax.sharding.AbstractMesh((4, 2), ('workers', 'model')))
    [Collective(axes=('workers',), kind='all_reduce', dtype='float32', sent=Fraction(60, 1), times=1, branch=())]
    """
    text = program if isinstance(program, str) else program.as_text()
    module = hlo.parse(text)
    devices, sizes = module.partitions * module.replicas, dict(mesh.shape)
    if devices != mesh.size:
        raise InputError(f'the program was compiled for {devices} devices; the mesh of {sizes} has {mesh.size}')
    return list(_Walk(module, sizes, devices).computation(module.entry, Place(), set()))


@dataclass(frozen=True)
class _Walk:
    """A walk from the entry through all that is called."""

    module: hlo.Module
    sizes: Mapping[str, int]
    devices: int

    def computation(self, name: str, place: Place, chains: set[str]) -> Iterator[Collective]:
        """The entries of one computation. `chains` are asynchronous collectives that were counted already."""
        for instruction in self.module.computations[name].instructions.values():
            yield from self._instruction(instruction, name, place, chains)

    def _instruction(self, op: hlo.Instruction, where: str, place: Place, chains: set[str]) -> Iterator[Collective]:
        opcode = op.opcode.removesuffix('-start')
        here = place._replace(path=f'{place.path}/{op.name}' if place.path else op.name)
        if opcode in _REFUSED and 'is_host_transfer=true' not in op.attributes:
            raise UnknownCollectiveError(f'the ledger does not know what {op.opcode} sends: {op.name} in {where}')
        if opcode in _SENDS:
            if self._is_new(op, chains):
                yield from self._collective(op, where, place)
        elif opcode == 'while':
            inside = here.looped(trip_count(self.module, where, op))
            for called in op.called('body') + op.called('condition'):
                yield from self.computation(called, inside, set())
        elif opcode == 'conditional':
            branches = op.called('branch_computations') or op.called('false_computation') + op.called(
                'true_computation'
            )
            for i, called in enumerate(branches):
                yield from self.computation(called, here.taken(i), set())
        elif not op.opcode.endswith(('-done', '-update')):
            applied = op.called('to_apply') if opcode == 'call' else []
            for called in op.called('calls') + op.called('called_computations') + applied:
                yield from self.computation(called, here, chains)

    def _is_new(self, op: hlo.Instruction, chains: set[str]) -> bool:
        """On TPU a collective that runs beside other work stands in every fusion that carries it on."""
        chain = re.search(r'frontend_attributes=\{[^}]*chain_id="(\w+)"', op.attributes)
        if chain is None:
            return True
        new = chain.group(1) not in chains
        chains.add(chain.group(1))
        return new

    def _collective(self, op: hlo.Instruction, where: str, place: Place) -> Iterator[Collective]:
        kind = _SENDS[op.opcode.removesuffix('-start')]
        # XLA for TPU writes its reduce-scatter as a fusion of this name: an all-reduce and a slice.
        if where.startswith('all-reduce-scatter'):
            kind = 'reduce_scatter'
        if kind == 'permute':
            exchanged = [[a, b] for a, b in hlo.pairs(op.attributes) if a != b]
            factor = Fraction(len(exchanged), self.devices)
        else:
            exchanged = self._groups(op)
            factor = sent(kind, Fraction(1), [len(group) for group in exchanged], self.devices)
        if any(not 0 <= i < self.devices for group in exchanged for i in group):
            raise InputError(f'{op.name} in {where} names a device beyond the {self.devices} of the program')
        if not factor:
            return
        axes = crossed(exchanged, self.sizes)
        instructions = self.module.computations[where].instructions
        operands = [instructions[name].shape for name in op.operands]
        for dtype, payload in hlo.payload(', '.join(operands)).items():
            if payload:
                yield Collective(axes, kind, dtype, factor * payload, place.times, place.branch)

    def _groups(self, op: hlo.Instruction) -> list[list[int]]:
        """Without a channel the participants are replicas, and all of them if no group is named."""
        participants = self.devices if 'channel_id=' in op.attributes else self.module.replicas
        if 'replica_groups={}' in op.attributes or 'replica_groups=' not in op.attributes:
            return [list(range(participants))]
        return hlo.groups(op.attributes, self.devices)


def trip_count(module: Module, where: str, loop: Instruction) -> int | None:
    """How often a `while` of the computation `where` runs its body, or None if that depends on data.

    XLA for CPU and GPU writes it into the instruction. XLA for TPU does not: there it is read from the loop,
    if that counts from one constant to another.

    >>> from jaxdist.ledger import _hlo as hlo
    >>> known = ', backend_config={"known_trip_count":{"n":"5"}}'
    >>> loop = hlo.Instruction('w', 's32[]', 'while', ('i',), known)
    >>> trip_count(hlo.Module({}, 'main', 1, 1), 'main', loop)
    5
    """
    known = re.search(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    body = module.computations[loop.called('body')[0]]
    condition = module.computations[loop.called('condition')[0]]
    return _counted(module.computations[where], loop, body, condition)


def _counted(outside: Computation, loop: Instruction, body: Computation, condition: Computation) -> int | None:
    """Trips of a loop that ends when a counter, which grows by a constant, is no longer below a constant."""
    before = _elements(outside, loop.operands[0])
    after = _elements(body, body.root)
    test = _seen(condition, condition.root)
    if before is None or after is None or test.opcode != 'compare' or 'direction=LT' not in test.attributes:
        return None

    def value(inside: Computation, name: str) -> int | None:
        """A constant, written inside or handed round the loop unchanged."""
        found = _seen(inside, name)
        at = _index(inside, found)
        if at is not None and _index(body, _seen(body, after[at])) == at:
            found = _seen(outside, before[at])
        integer = found.opcode == 'constant' and re.fullmatch(r'-?\d+', found.operands[0])
        return int(found.operands[0]) if integer else None

    counter = _index(condition, _seen(condition, test.operands[0]))
    if counter is None:
        return None
    start, end = _seen(outside, before[counter]), value(condition, test.operands[1])
    turn = _seen(body, after[counter])
    if start.opcode != 'constant' or end is None or turn.opcode != 'add':
        return None
    added = [value(body, name) for name in turn.operands if _index(body, _seen(body, name)) != counter]
    if len(added) != 1 or not added[0] or added[0] < 0:
        return None
    return max(0, math.ceil((end - int(start.operands[0])) / added[0]))


def _seen(inside: Computation, name: str) -> Instruction:
    """An instruction, seen through copies."""
    found = inside.instructions[name]
    while found.opcode in {'copy', 'bitcast'}:
        found = inside.instructions[found.operands[0]]
    return found


def _elements(inside: Computation, name: str) -> tuple[str, ...] | None:
    """What a tuple is made of."""
    found = _seen(inside, name)
    return found.operands if found.opcode == 'tuple' else None


def _index(inside: Computation, found: Instruction) -> int | None:
    """Which element of the loop's state an instruction is, if it is one."""
    if found.opcode != 'get-tuple-element' or inside.instructions[found.operands[0]].opcode != 'parameter':
        return None
    index = re.search(r'index=(\d+)', found.attributes)
    return int(index.group(1)) if index else None
