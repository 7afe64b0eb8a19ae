"""How often a loop of a compiled program runs."""

import math
import re

from jaxdist.ledger.hlo import Computation, Instruction, Module


def trip_count(module: Module, where: str, loop: Instruction) -> int | None:
    """How often a `while` of the computation `where` runs its body, or None if that depends on data.

    XLA for CPU and GPU writes it into the instruction. XLA for TPU does not: there it is read from the loop,
    if that counts from one constant to another.

    >>> from jaxdist.ledger import hlo
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
