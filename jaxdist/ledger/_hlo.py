"""Parses the text of a compiled XLA program: its computations, instructions, shapes and device groups."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.ledger.collective import bits

_NAMES = {'pred': 'bool', 'bf16': 'bfloat16'}
_KINDS = {'s': 'int', 'u': 'uint', 'f': 'float', 'c': 'complex'}


class Instruction(NamedTuple):
    """One instruction: `%name = shape opcode(operands), attributes`.

    Attributes:
        name: without the percent sign.
        shape: of the result, as text.
        opcode: as in `all-reduce`.
        operands: names of the operands; of a constant, its value.
        attributes: the rest, as text.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names: `body=%x`, `branch_computations={%x, %y}`."""
        text = self.attributes.split(', metadata=')[0]
        names = re.search(rf'(?<!\w){attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)', text)
        return re.findall(r'[\w.\-]+', names.group(1)) if names else []


@dataclass
class Computation:
    """Instructions by name, in order, and the name of the one whose result is returned."""

    instructions: dict[str, Instruction]
    root: str = ''


@dataclass
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the name of the computation that runs.
        partitions: how many devices a replica is partitioned over.
        replicas: how many replicas there are.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int
    replicas: int


def parse(text: str) -> Module:
    """The program of a text, as from `Compiled.as_text()`.

    Raises:
        InputError: the text is not that of a compiled program.

    >>> module = parse('''HloModule jit_f, num_partitions=2
    ...
    ... ENTRY %main (x: f32[4]) -> f32[4] {
    ...   ROOT %x = f32[4]{0} parameter(0)
    ... }''')
    >>> module.entry, module.partitions, module.computations['main'].instructions['x'].shape
    ('main', 2, 'f32[4]{0}')
    """
    computations: dict[str, Computation] = {}
    entry, current = '', None
    for line in text.splitlines():
        if line.startswith('}'):
            current = None
        elif header := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$', line):
            current = computations.setdefault(header.group(2), Computation({}))
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and ' = ' in line:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
            if line.lstrip().startswith('ROOT '):
                current.root = instruction.name
    if not entry:
        raise InputError('this is not the text of a compiled program: no computation is marked ENTRY')
    head = text.split('\n', 1)[0]
    return Module(computations, entry, _count(head, 'num_partitions'), _count(head, 'replica_count'))


def _count(head: str, key: str) -> int:
    number = re.search(rf'{key}=(\d+)', head)
    return int(number.group(1)) if number else 1


def _instruction(line: str) -> Instruction:
    name, rest = re.sub(r'/\*.*?\*/', '', line).strip().removeprefix('ROOT ').split(' = ', 1)
    end = _closing(rest) if rest.startswith('(') else rest.index(' ')
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index('(')
    end = _closing(rest, start)
    operands = tuple(piece.split()[-1].lstrip('%') for piece in _pieces(rest[start + 1 : end - 1]))
    return Instruction(name.lstrip('%'), shape, rest[:start], operands, rest[end:])


def _closing(text: str, start: int = 0) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for mark in re.finditer(r'[()]', text[start:]):
        depth += 1 if mark.group() == '(' else -1
        if depth == 0:
            return start + mark.end()
    raise InputError(f'a parenthesis is not closed in {text!r}')


def _pieces(text: str) -> Iterator[str]:
    """The pieces between commas that are outside of brackets."""
    depth, piece = 0, ''
    for letter in text:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and depth == 0:
            yield piece
            piece = ''
        else:
            piece += letter
    if piece.strip():
        yield piece


def payload(shape: str) -> dict[str, Fraction]:
    """Bytes of each dtype in the text of a shape.

    Raises:
        InputError: an unknown dtype.

    >>> payload('(f32[4,2]{1,0:T(8,128)}, s4[3]{0}, pred[])')
    {'float32': Fraction(32, 1), 'int4': Fraction(3, 2), 'bool': Fraction(1, 1)}
    """
    out: dict[str, Fraction] = {}
    for kind, dims in re.findall(r'(?<![\w.])([a-z]\w*)\[([^\]]*)\]', shape):
        if kind != 'token':
            name = dtype(kind)
            count = math.prod(int(n.replace('<=', '')) for n in dims.split(',') if n)
            out[name] = out.get(name, Fraction(0)) + Fraction(count * bits(name), 8)
    return out


def dtype(kind: str) -> str:
    """The NumPy name of an XLA dtype.

    >>> [dtype(kind) for kind in ('f32', 'bf16', 's8', 'u4', 'pred', 'f8e4m3fn')]
    ['float32', 'bfloat16', 'int8', 'uint4', 'bool', 'float8_e4m3fn']
    """
    if kind in _NAMES:
        return _NAMES[kind]
    parts = re.fullmatch(r'([sufc])(\d+)(e\w+)?', kind)
    if parts is None:
        raise InputError(f'{kind!r} is not a dtype that the ledger knows')
    letter, width, rest = parts.groups()
    return f'{_KINDS[letter]}{width}' + (f'_{rest}' if rest else '')


def groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of devices that communicate, from any notation of `replica_groups`.

    Raises:
        InputError: an unknown notation.

    >>> for text in ('{{0,2},{1,3}}', '[2,2]<=[2,2]T(1,0)', "mesh['a'=2,'b'=2] {'a'}", '{}'):
    ...     groups(f', channel_id=1, replica_groups={text}, dimensions=(0)', 4)
    [[0, 2], [1, 3]]
    [[0, 2], [1, 3]]
    [[0, 2], [1, 3]]
    [[0, 1, 2, 3]]
    """
    notation = re.search(r'replica_groups=(.*)', attributes)
    text = notation.group(1) if notation else '{}'
    if text.startswith('{'):
        lists = re.match(r'\{((?:\{[^}]*\},?\s*)*)\}', text)
        listed = [
            [int(n) for n in re.findall(r'\d+', g)] for g in re.findall(r'\{([^}]*)\}', lists.group(1) if lists else '')
        ]
        return listed or [list(range(devices))]
    if iota := re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text):
        shape, dims, order = iota.groups()
        return _iota(dims, order).reshape(_integers(shape)).tolist()
    numbering = r'(?:,\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?'
    if mesh := re.match(rf'mesh\[([^\]]*)\]{numbering}\s*\{{([^}}]*)\}}', text):
        sizes, dims, order, axes = mesh.groups()
        return _along(dict(re.findall(r"'([^']+)'=(\d+)", sizes)), axes, _iota(dims or str(devices), order))
    raise InputError(f'replica_groups in a notation that the ledger does not know: {text[:80]}')


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(',') if n]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """The devices in the order of an array of these dims, which is transposed."""
    shape = _integers(dims)
    return (
        np.arange(math.prod(shape)).reshape(shape).transpose(_integers(order) if order else range(len(shape))).ravel()
    )


def _along(sizes: dict[str, str], axes: str, devices: np.ndarray) -> list[list[int]]:
    """Groups along axes of a mesh, or parts of axes: `'a'`, or `'a':(2)4`, a dimension of 4 within one of 2.

    `devices` are numbered in the order of the mesh.
    """
    dims: list[int] = []
    members: list[int] = []
    parts = {name: (pre, size) for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, text in sizes.items():
        size = int(text)
        before, own = (int(n or d) for n, d in zip(parts.get(name, (size, 1)), (1, size), strict=True))
        members += [len(dims) + 1] if name in parts else []
        dims += [before, own, size // (before * own)]
    others = [i for i in range(len(dims)) if i not in members]
    size = math.prod(dims[i] for i in members)
    return devices.reshape(dims).transpose(others + members).reshape(-1, size).tolist()


def pairs(attributes: str) -> list[tuple[int, int]]:
    """The (source, target) pairs of a permutation.

    >>> pairs(', channel_id=1, source_target_pairs={{0,1},{1,0}}')
    [(0, 1), (1, 0)]
    """
    listed = re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', attributes)
    return [(int(a), int(b)) for a, b in re.findall(r'\{(\d+),(\d+)\}', listed.group(1) if listed else '')]
