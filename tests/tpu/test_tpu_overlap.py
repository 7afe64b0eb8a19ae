"""On a TPU the mean of a delayed gradient overlaps with the next computation, as far as XLA's schedule shows.

`delay(steps=1) | mean()` averages what lies in the state, so nothing in the step has to be computed before its messages
leave. Whether the compiler makes use of it is read from scheduled programs, compiled for eight chips; nothing runs.
"""

import math
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxdist import line
from jaxdist.core import workers
from jaxdist.core.types import Task
from jaxdist.ledger import _hlo as hlo
from jaxdist.models import Perceptron
from jaxdist.training.step import make_step

Chips = topologies.TopologyDescription

ROWS = 1024

ASYNC_ALL_REDUCE = {
    'xla_enable_async_all_reduce': 'true',
    'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': 'true',
    'xla_jf_crs_combiner_threshold_in_bytes': '1',
}
"""What makes all-reduces asynchronous: for `compile(compiler_options=...)`, or as `--name=value` in LIBTPU_INIT_ARGS.

By the first two, an all-reduce is divided among the matrix products around it. One of all of a gradient's tensors was
not (libtpu 0.0.42), so the third keeps tensors apart. All three are needed; an all-gather needs none.
"""

GATHERED = "mean(codec=bf16(), exchange='gather')"


class Schedule(NamedTuple):
    """What a scheduled program does while messages are in flight.

    Attributes:
        under: the share of the operations of matrix products that stands between a collective's start and its end.
        hidden: the share of the bytes that collectives return, of those with products between start and end.
    """

    under: float
    hidden: float


def schedule(text: str) -> Schedule:
    """Reads it off the program's text.

    >>> product = '  %m = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf'
    >>> whole, start, done = (f'  %r{end} = f32[8,8]{{1,0}} all-reduce{end}(%x)' for end in ('', '-start', '-done'))
    >>> def of(*lines: str) -> Schedule:
    ...     first = '  %x = f32[8,8]{1,0} parameter(0)'
    ...     head = ['HloModule m, is_scheduled=true', 'ENTRY %main (x: f32[8,8]) -> f32[8,8] {']
    ...     return schedule('\\n'.join([*head, first, *lines, '}']))
    >>> of(product, whole), of(start, product, done, whole), of(start, done, product)
    (Schedule(under=0.0, hidden=0.0), Schedule(under=1.0, hidden=0.5), Schedule(under=0.0, hidden=0.0))
    """
    assert 'is_scheduled=true' in text.split('\n', 1)[0]
    module = hlo.parse(text)
    work = under = sent = hidden = 0
    started: list[int] = []  # bytes of each collective in flight
    meanwhile = 0  # operations since the first of them began
    for op in module.computations[module.entry].instructions.values():
        role, size = collective(module, op)
        sent += size if role in ('start', 'whole') else 0
        if role == 'start':
            started.append(size)
        work += (more := products(module, op))
        meanwhile += more if started else 0
        if role == 'done':
            size = started.pop(0)
            hidden += size if meanwhile else 0
            if not started:
                under, meanwhile = under + meanwhile, 0
    assert not started
    return Schedule(under / work, hidden / sent)


def collective(module: hlo.Module, op: hlo.Instruction) -> tuple[str, int]:
    """Whether an instruction is the start, the end or the whole of a collective, and the bytes that it returns.

    What a TPU divides among products is three kinds of fusions: a start, products with a share of it, an end. Each
    holds the collective, and the start and the end hold a call that says so.
    """
    inside = [i for name in op.called('calls') for i in module.computations[name].instructions.values()]
    found = [i for i in (op, *inside) if re.match(r'all-(reduce|gather|to-all)|reduce-scatter', i.opcode)]
    if not found:
        return '', 0
    size = int(sum(hlo.payload(found[0].shape).values()))
    calls = ' '.join(i.attributes for i in inside)
    if said := re.search(r'custom_call_target="AsyncCollective(Start|Done)"', calls):
        return said.group(1).lower(), size
    if end := re.search(r'-(start|done)$', op.opcode):
        return end.group(1), size
    return ('share' if products(module, op) else 'whole'), size


def products(module: hlo.Module, op: hlo.Instruction, computation: hlo.Computation | None = None) -> int:
    """Multiplications and additions of the matrix products in an instruction, and in what it calls."""
    computation = computation or module.computations[module.entry]
    if op.opcode == 'convolution':  # what a TPU makes of every product
        labels = re.search(r'dim_labels=\w+_(\w+)->', op.attributes).group(1)
        summed = [n for n, label in zip(_dims(computation, op.operands[1]), labels, strict=True) if label != 'o']
        return 2 * math.prod(_dims(computation, op.name)) * math.prod(summed)
    assert op.opcode != 'dot'
    called = [module.computations[name] for word in ('calls', 'body') for name in op.called(word)]
    return sum(products(module, inner, c) for c in called for inner in c.instructions.values())


def _dims(computation: hlo.Computation, name: str) -> list[int]:
    return [int(n) for n in re.search(r'\[([\d,]*)\]', computation.instructions[name].shape).group(1).split(',') if n]


def trained(
    chips: Chips, update: str, width: int = 1024, guard: bool = True, options: dict[str, str] | None = None
) -> Schedule:
    """The schedule of a training step of eight workers, a chip each: a perceptron of two layers so wide."""
    laid = topologies.make_mesh(chips, (8,), ('workers',))
    mesh = Mesh(laid.devices, ('workers',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, jax.P('workers'))
    shapes = {'x': ((8 * ROWS, width), np.float32), 'y': ((8 * ROWS,), np.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=rows) for name, shape in shapes.items()}
    model = Perceptron((width, width)).build(Task('classes', (width,), 128))
    built = line.build(f'{update} | sgd(learning_rate=0.1)')
    program = make_step(model.loss, model.init, built, batch, workers.on_mesh(mesh), guard=guard)
    lowered = program.step.lower(program.state, batch)
    return schedule(lowered.compile(compiler_options=options).as_text())


def judged(found: Schedule) -> None:
    """All products are computed while messages are in flight, and all messages but of some biases meanwhile."""
    assert found.under > 0.99, found
    assert found.hidden > 0.99, found


def test_a_gather_overlaps_with_the_step(chips: Chips) -> None:
    judged(trained(chips, f'delay(steps=1) | {GATHERED}', width=512))


def test_without_the_delay_it_is_gathered_afterwards(chips: Chips) -> None:
    found = trained(chips, GATHERED, width=512)
    assert found == Schedule(0, 0)
    with pytest.raises(AssertionError):
        judged(found)


def test_an_exact_mean_overlaps_with_the_step(chips: Chips) -> None:
    """With the options above, and without the guard."""
    judged(trained(chips, 'delay(steps=1) | mean()', guard=False, options=ASYNC_ALL_REDUCE))


@pytest.mark.parametrize('update', ['mean()', 'mean() | delay(steps=1)'])
def test_without_the_delay_it_is_in_part(chips: Chips, update: str) -> None:
    """A layer's gradient can be averaged while that of an earlier layer is computed, but nothing under the forward
    pass, and the first layer's under nothing. Delaying a mean, instead of what it is taken of, does not help.
    """
    found = trained(chips, update, guard=False, options=ASYNC_ALL_REDUCE)
    assert 0 < found.under < 0.7, found
    assert 0 < found.hidden < 0.7, found
    with pytest.raises(AssertionError):
        judged(found)


@pytest.mark.parametrize('guard, options', [(False, None), (True, ASYNC_ALL_REDUCE)])
def test_what_an_exact_mean_needs(chips: Chips, guard: bool, options: dict[str, str] | None) -> None:
    """Without the options all-reduces are synchronous. With the guard, the compiler's scheduler puts the vote on the
    new gradient before the means, and after it nothing is left to compute.
    """
    assert trained(chips, 'delay(steps=1) | mean()', guard=guard, options=options) == Schedule(0, 0)
