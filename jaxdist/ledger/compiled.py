"""The collectives of a compiled program: its own, and those that the compiler inserts."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxdist.core.errors import InputError, UnknownCollectiveError
from jaxdist.ledger import _hlo as hlo
from jaxdist.ledger._hlo import Computation, Instruction, Module
from jaxdist.ledger.collective import RAGGED, Collective, axes_spanned, sent
from jaxdist.ledger.traced import Place

_SENDS = {
    'all-reduce': 'all_reduce',
    'all-gather': 'all_gather',
    'all-to-all': 'all_to_all',
    'reduce-scatter': 'reduce_scatter',
    'collective-permute': 'permute',
    'ragged-all-to-all': RAGGED,
}
_REFUSED = {'collective-broadcast', 'send', 'recv'}


def compiled(program: Any, mesh: Any) -> list[Collective]:
    """The collectives of a compiled program, with the payloads of one device.

    The compiler may merge collectives, shard their payloads over other axes, and replace one kind by another. For
    CPU it sends bfloat16 as float32 and 8-bit floats as float16, and some versions turn a reduce_scatter into an
    all_reduce or an all_to_all. For TPU an all_gather whose length is no multiple of 128 may become a padded
    all_reduce, and matrices are gathered as bfloat16 for a product that is computed in bfloat16.

    Args:
        program: the result of `jax.jit(f).lower(...).compile()`, or its text.
        mesh: the mesh that it was compiled for, or an abstract one.

    Raises:
        InputError: the program was compiled for another number of devices.
        UnknownCollectiveError: it has a collective that the ledger does not know.

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
    """Walks from the entry through all computations that it calls."""

    module: hlo.Module
    sizes: Mapping[str, int]
    devices: int

    def computation(self, name: str, place: Place, chains: set[str]) -> Iterator[Collective]:
        """The collectives of one computation; `chains` are asynchronous ones that are counted already."""
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
            turns = trip_count(self.module, where, op)
            once = turns is None and runs_once_or_never(self.module, op)
            inside = here.taken(1) if once else here.looped(turns)
            for called in op.called('body') + op.called('condition'):
                # On TPU a chain can go on inside of a loop: products that are computed while a gather is in flight.
                yield from self.computation(called, inside, chains)
        elif opcode == 'conditional':
            branches = op.called('branch_computations') or op.called('false_computation') + op.called(
                'true_computation'
            )
            for i, called in enumerate(branches):
                yield from self.computation(called, here.taken(i), set(chains))
        elif not op.opcode.endswith(('-done', '-update')):
            applied = op.called('to_apply') if opcode == 'call' else []
            for called in op.called('calls') + op.called('called_computations') + applied:
                yield from self.computation(called, here, chains)

    def _is_new(self, op: hlo.Instruction, chains: set[str]) -> bool:
        """Whether a collective is not counted yet: on TPU an asynchronous one is in several fusions."""
        chain = re.search(r'frontend_attributes=\{[^}]*chain_id="(\w+)"', op.attributes)
        if chain is None:
            return True
        new = chain.group(1) not in chains
        chains.add(chain.group(1))
        return new

    def _collective(self, op: hlo.Instruction, where: str, place: Place) -> Iterator[Collective]:
        kind = _SENDS[op.opcode.removesuffix('-start')]
        # In XLA for TPU a reduce-scatter is a fusion of this name: an all-reduce and a slice.
        if where.startswith('all-reduce-scatter'):
            kind = 'reduce_scatter'
        if kind == 'permute':
            groups = [[a, b] for a, b in hlo.pairs(op.attributes) if a != b]
            factor = Fraction(len(groups), self.devices)
        else:
            groups = self._groups(op)
            factor = sent(kind, Fraction(1), [len(group) for group in groups], self.devices)
        if any(not 0 <= i < self.devices for group in groups for i in group):
            raise InputError(f'{op.name} in {where} names a device beyond the {self.devices} of the program')
        if not factor:
            return
        axes = axes_spanned(groups, self.sizes)
        instructions = self.module.computations[where].instructions
        names = op.operands[:1] if kind == RAGGED else op.operands
        operands = [instructions[name].shape for name in names]
        for dtype, payload in hlo.payload(', '.join(operands)).items():
            if payload:
                times = None if kind == RAGGED else place.times
                yield Collective(axes, kind, dtype, factor * payload, times, place.branch)

    def _groups(self, op: hlo.Instruction) -> list[list[int]]:
        """The groups of devices that communicate: without a channel, of replicas; without a list, all of them."""
        participants = self.devices if 'channel_id=' in op.attributes else self.module.replicas
        if 'replica_groups={}' in op.attributes or 'replica_groups=' not in op.attributes:
            return [list(range(participants))]
        return hlo.groups(op.attributes, self.devices)


def trip_count(module: Module, where: str, loop: Instruction) -> int | None:
    """How often a `while` in the computation `where` runs its body, or None if that depends on data.

    XLA for CPU and GPU writes the number into the instruction. XLA for TPU does not: there it is computed, if the
    loop counts from one constant to another.

    >>> from jaxdist.ledger import _hlo as hlo
    >>> attributes = ', backend_config={"known_trip_count":{"n":"5"}}'
    >>> loop = hlo.Instruction('w', 's32[]', 'while', ('i',), attributes)
    >>> trip_count(hlo.Module({}, 'main', 1, 1), 'main', loop)
    5
    """
    count = re.search(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"', loop.attributes)
    if count:
        return int(count.group(1))
    body = module.computations[loop.called('body')[0]]
    condition = module.computations[loop.called('condition')[0]]
    return _counted(module.computations[where], loop, body, condition)


def runs_once_or_never(module: Module, loop: Instruction) -> bool:
    """Whether the condition of a `while` is a carried value that its body makes false.

    >>> text = '''HloModule jit_f
    ...
    ... %body (x: (pred[], s32[])) -> (pred[], s32[]) {
    ...   %x = (pred[], s32[]) parameter(0)
    ...   %y = s32[] get-tuple-element(%x), index=1
    ...   %no = pred[] constant(false)
    ...   ROOT %r = (pred[], s32[]) tuple(%no, %y)
    ... }
    ...
    ... %go (x: (pred[], s32[])) -> pred[] {
    ...   %x = (pred[], s32[]) parameter(0)
    ...   ROOT %p = pred[] get-tuple-element(%x), index=0
    ... }
    ...
    ... ENTRY %main (x: (pred[], s32[])) -> (pred[], s32[]) {
    ...   %x = (pred[], s32[]) parameter(0)
    ...   ROOT %w = (pred[], s32[]) while(%x), condition=%go, body=%body
    ... }'''
    >>> module = hlo.parse(text)
    >>> runs_once_or_never(module, module.computations['main'].instructions['w'])
    True
    """
    body = module.computations[loop.called('body')[0]]
    condition = module.computations[loop.called('condition')[0]]
    after, at = _elements(body, body.root), _index(condition, _source(condition, condition.root))
    if after is None or at is None:
        return False
    last = _source(body, after[at])
    return last.opcode == 'constant' and last.operands == ('false',)


def _counted(outside: Computation, loop: Instruction, body: Computation, condition: Computation) -> int | None:
    """Trip count of a loop that adds a constant to a counter as long as that is below a constant."""
    before = _elements(outside, loop.operands[0])
    after = _elements(body, body.root)
    test = _source(condition, condition.root)
    if before is None or after is None or test.opcode != 'compare' or 'direction=LT' not in test.attributes:
        return None

    def value(inside: Computation, name: str) -> int | None:
        """The value of a constant, inside of the loop or passed through it unchanged."""
        source = _source(inside, name)
        at = _index(inside, source)
        if at is not None and _index(body, _source(body, after[at])) == at:
            source = _source(outside, before[at])
        integer = source.opcode == 'constant' and re.fullmatch(r'-?\d+', source.operands[0])
        return int(source.operands[0]) if integer else None

    counter = _index(condition, _source(condition, test.operands[0]))
    if counter is None:
        return None
    start, end = _source(outside, before[counter]), value(condition, test.operands[1])
    turn = _source(body, after[counter])
    if start.opcode != 'constant' or end is None or turn.opcode != 'add':
        return None
    added = [value(body, name) for name in turn.operands if _index(body, _source(body, name)) != counter]
    if len(added) != 1 or not added[0] or added[0] < 0:
        return None
    return max(0, math.ceil((end - int(start.operands[0])) / added[0]))


def _source(inside: Computation, name: str) -> Instruction:
    """The instruction of this name or, if it is a copy, the one copied."""
    source = inside.instructions[name]
    while source.opcode in {'copy', 'bitcast'}:
        source = inside.instructions[source.operands[0]]
    return source


def _elements(inside: Computation, name: str) -> tuple[str, ...] | None:
    """The names of a tuple's elements."""
    source = _source(inside, name)
    return source.operands if source.opcode == 'tuple' else None


def _index(inside: Computation, op: Instruction) -> int | None:
    """Which element of the loop's carry an instruction is, or None."""
    if op.opcode != 'get-tuple-element' or inside.instructions[op.operands[0]].opcode != 'parameter':
        return None
    index = re.search(r'index=(\d+)', op.attributes)
    return int(index.group(1)) if index else None
