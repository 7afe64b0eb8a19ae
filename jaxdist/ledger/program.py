"""What a compiled program sends, whoever put it there: the program itself, or the compiler."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxdist.ledger import hlo
from jaxdist.ledger.entry import Entry, crossed, sent
from jaxdist.ledger.flow import Place
from jaxdist.ledger.trips import trip_count

_SENDS = {
    'all-reduce': 'all_reduce',
    'all-gather': 'all_gather',
    'all-to-all': 'all_to_all',
    'reduce-scatter': 'reduce_scatter',
    'collective-permute': 'permute',
}
_REFUSED = {'ragged-all-to-all', 'collective-broadcast', 'send', 'recv'}


def compiled(program: Any, mesh: Any) -> list[Entry]:
    """The collectives of a compiled program, with the payloads of one device.

    The compiler may merge collectives, cut their payloads over other axes, and choose others. On CPU it sends
    bfloat16 as float32 and 8-bit floats as float16, and some versions of it turn a reduce_scatter into an
    all_reduce or an all_to_all. On TPU an all_gather whose length is no multiple of 128 may become a padded
    all_reduce, and matrices are gathered as bfloat16 for a product that is computed in it.

    Args:
        program: what `jax.jit(f).lower(...).compile()` returns, or its text.
        mesh: the mesh that it was compiled for, or anything else with its `shape`.

    Raises:
        ValueError: the program was compiled for another number of devices.
        NotImplementedError: it communicates in a way that the ledger does not know.

    >>> import jax
    >>> text = '''HloModule jit_f, num_partitions=8
    ...
    ... ENTRY %main (x: f32[10]) -> f32[10] {
    ...   %x = f32[10]{0} parameter(0)
    ...   ROOT %r = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
    ... }'''
    >>> compiled(text, jax.sharding.AbstractMesh((4, 2), ('workers', 'model')))
    [Entry(axes=('workers',), kind='all_reduce', dtype='float32', sent=Fraction(60, 1), times=1, branch=())]
    """
    text = program if isinstance(program, str) else program.as_text()
    module = hlo.parse(text)
    devices, sizes = module.partitions * module.replicas, dict(mesh.shape)
    if devices != mesh.size:
        raise ValueError(f'the program was compiled for {devices} devices; the mesh of {sizes} has {mesh.size}')
    return list(_Walk(module, sizes, devices).computation(module.entry, Place(), set()))


@dataclass(frozen=True)
class _Walk:
    """A walk from the entry through all that is called."""

    module: hlo.Module
    sizes: Mapping[str, int]
    devices: int

    def computation(self, name: str, place: Place, chains: set[str]) -> Iterator[Entry]:
        """The entries of one computation. `chains` are asynchronous collectives that were counted already."""
        for instruction in self.module.computations[name].instructions.values():
            yield from self._instruction(instruction, name, place, chains)

    def _instruction(self, op: hlo.Instruction, where: str, place: Place, chains: set[str]) -> Iterator[Entry]:
        opcode = op.opcode.removesuffix('-start')
        here = place._replace(path=f'{place.path}/{op.name}' if place.path else op.name)
        if opcode in _REFUSED and 'is_host_transfer=true' not in op.attributes:
            raise NotImplementedError(f'the ledger does not know what {op.opcode} sends: {op.name} in {where}')
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

    def _collective(self, op: hlo.Instruction, where: str, place: Place) -> Iterator[Entry]:
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
            raise ValueError(f'{op.name} in {where} names a device beyond the {self.devices} of the program')
        if not factor:
            return
        axes = crossed(exchanged, self.sizes)
        instructions = self.module.computations[where].instructions
        operands = [instructions[name].shape for name in op.operands]
        for dtype, payload in hlo.payload(', '.join(operands)).items():
            if payload:
                yield Entry(axes, kind, dtype, factor * payload, place.times, place.branch)

    def _groups(self, op: hlo.Instruction) -> list[list[int]]:
        """Without a channel the participants are replicas, and all of them if no group is named."""
        participants = self.devices if 'channel_id=' in op.attributes else self.module.replicas
        if 'replica_groups={}' in op.attributes or 'replica_groups=' not in op.attributes:
            return [list(range(participants))]
        return hlo.groups(op.attributes, self.devices)
