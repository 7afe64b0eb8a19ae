"""The planner: formulas by hand and by compiled programs, all layouts, ranking, machines."""

import ast
import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

import jaxdist.planner
from jaxdist.core.errors import InputError
from jaxdist.planner.cost import NOTHING, Estimate, Traffic, estimate, links
from jaxdist.planner.fit import fit, spearman
from jaxdist.planner.layouts import AXES, Layout, layouts
from jaxdist.planner.machines import MACHINES, machine
from jaxdist.planner.search import fits, front, rank
from jaxdist.planner.workload import Workload, decoder

H100, V5E = MACHINES['h100'], MACHINES['v5e']

# A transformer of 872M parameters on 8 x 16 x 2 (workers x fsdp x model) of v5e.
BIG = decoder(16, 2048, 8 * 2048 // 3, 32768, 2048, batch=512, heads=16)
SMALL = decoder(layers=4, width=8, mlp=16, vocabulary=32, context=16, batch=16, heads=4)


def test_bytes_are_those_of_programs_that_were_compiled() -> None:
    at = Layout(workers=8, fsdp=16, model=2, again=True)
    kept, again = (estimate(BIG, V5E, layout).sent for layout in (at, at._replace(regather=True)))
    assert kept['fsdp'] == pytest.approx(2.66e9, rel=0.01)
    assert again['fsdp'] == pytest.approx(3.41e9, rel=0.01)
    assert kept['model'] == again['model'] == pytest.approx(2.68e9, rel=0.01)


def test_bytes_of_tensor_parallel_stages_are_those_of_a_program_that_was_compiled() -> None:
    # Transformer(layers=4, width=16, heads=2, stacked=True) on 16 x 8 tokens, float32, stage=2 x model=2 with four
    # microbatches: 122,896 bytes over `model`, of which 16 are the guard's norms; on model=2 alone 163,856.
    model = decoder(4, 16, 16, 64, 8, batch=16, heads=2)._replace(passed=4 * 8 * 16, compute_bytes=4)
    stages = estimate(model, V5E, Layout(stage=2, model=2, microbatches=4, again=True))
    assert stages.sent['model'] == 122_880
    assert estimate(model, V5E, Layout(model=2, again=True)).sent['model'] == 163_840


def test_bytes_by_hand() -> None:
    block, edge, passed = 8 * (2 * 8 + 16 + 3 * 16), 32 * 8, 16 * 8 * 2
    at = Layout(workers=2, stage=2, fsdp=2, context=2, model=2, microbatches=2, again=True)
    sent = estimate(SMALL, V5E, at, Traffic('mean()', 8 * SMALL.parameters)).sent
    activations = 2 * passed / 2  # two examples of a microbatch, half of their positions
    whole, ticks = 2 * block / 2 + edge, 3
    assert sent['stage'] == 2 * ticks * activations + 2 * 1 / 2 * 4 * edge / 2
    assert sent['fsdp'] == 1 / 2 * whole * (2 + 4)
    assert sent['model'] == ticks * 2 * 6 * 2 * 1 / 2 * activations
    keys = activations / 2  # two of four heads
    assert sent['context'] == ticks * 2 * 2 * (1 + 1 + 1 + 2) * keys + 2 * 1 / 2 * 4 * whole / 2
    assert sent['workers'] == 8 * whole / 2
    assert set(sent) == set(AXES)


@pytest.mark.parametrize(('stage', 'microbatches'), [(1, 4), (2, 1), (4, 2), (4, 16)])
def test_bubble(stage: int, microbatches: int) -> None:
    cost = estimate(SMALL, V5E, Layout(stage=stage, microbatches=microbatches, again=True))
    share = (stage - 1) / (microbatches + stage - 1)
    assert cost.bubble == pytest.approx(share)
    working = cost.seconds['blocks'] + cost.seconds['edge']
    assert cost.seconds['bubble'] / (cost.seconds['bubble'] + working) == pytest.approx(share)


def test_lines_are_added_up() -> None:
    cost = estimate(SMALL, V5E, Layout(workers=2, fsdp=2, model=2), Traffic('mean()', 1e12))
    assert set(cost.memory) == {'parameters', 'optimiser', 'gradients', 'gathered', 'activations', 'head'}
    assert cost.total == pytest.approx(sum(cost.memory.values()))
    assert cost.step == pytest.approx(sum(cost.seconds.values()))
    assert cost.binds == 'workers'


def test_memory_by_hand() -> None:
    cost = estimate(SMALL, V5E, Layout(fsdp=4, microbatches=2)).memory
    assert (cost['parameters'], cost['optimiser']) == (SMALL.parameters, 2 * SMALL.parameters)
    assert cost['gradients'] == SMALL.parameters + 4 * SMALL.parameters
    assert cost['gathered'] == 2 * SMALL.parameters
    assert cost['activations'] == 4 * 2 * SMALL.kept
    assert cost['head'] == 2 * SMALL.head


def test_more_devices_of_an_axis_need_less_memory_each() -> None:
    for axis in ('fsdp', 'context', 'model'):
        at = Layout(microbatches=4, again=True)
        assert estimate(BIG, V5E, at._replace(**{axis: 4})).total < estimate(BIG, V5E, at).total, axis


def test_an_axis_that_spans_groups_uses_the_slow_link() -> None:
    speeds = links(H100, Layout(workers=4, stage=2, fsdp=2, model=4))
    assert speeds == {
        'model': H100.link,
        'expert': H100.link,
        'context': H100.link,
        'fsdp': H100.link,
        'stage': H100.slow_link,
        'workers': H100.slow_link,
    }
    inside, outside = (estimate(BIG, H100, Layout(fsdp=size)) for size in (8, 16))
    assert inside.seconds['fsdp'] == pytest.approx(inside.sent['fsdp'] / H100.link)
    assert outside.seconds['fsdp'] == pytest.approx(outside.sent['fsdp'] / H100.slow_link)


def brute_force(model: Workload, devices: int) -> set[Layout]:
    """All layouts, by trying all numbers."""
    found = set()
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    sizes = [each for each in itertools.product(*[divisors] * 6) if math.prod(each) == devices]
    for each, *rest in itertools.product(sizes, [2**i for i in range(8)], *[(False, True)] * 2):
        at = Layout(*each, *rest)
        fine = model.batch % (at.workers * at.fsdp * at.expert * at.microbatches) == 0
        bound = ('stage', 'context', 'expert', 'model')
        fine &= all(model.limits.get(axis, 1) % getattr(at, axis) == 0 for axis in bound)
        fine &= not at.regather or (at.fsdp > 1 and at.stage == 1 and at.again)
        if fine and at.again:  # the model is in parts
            found.add(at)
    return found


@pytest.mark.parametrize('devices', [1, 6, 8])
def test_no_layout_is_missing_or_double(devices: int) -> None:
    model = SMALL._replace(batch=24, limits={**SMALL.limits, 'expert': 4})
    found = list(layouts(model, devices))
    assert len(found) == len(set(found))
    assert set(found) == brute_force(model, devices)


def test_a_model_without_parts_has_no_stages() -> None:
    model = SMALL._replace(layers=0, limits={'stage': 4, 'model': 4})
    found = list(layouts(model, 8))
    assert found
    assert not any(at.stage > 1 or at.context > 1 or at.regather or at.again for at in found)
    assert estimate(model, V5E, found[0]).seconds['blocks'] > 0


def test_no_devices() -> None:
    with pytest.raises(InputError, match='1 device and 1 example or more'):
        list(layouts(SMALL, 0))
    with pytest.raises(InputError, match='no layout has 7 devices'):
        rank(SMALL, V5E, 7, between)
    with pytest.raises(InputError, match='no layout has 8 devices and 3 workers'):
        rank(SMALL, V5E, 8, between, workers=3)
    assert {cost.layout.workers for cost in rank(SMALL, V5E, 8, between, workers=2)} == {2}


def between(workers: int) -> list[Traffic]:
    """An exact mean, and a line that rarely synchronises and stores three times as much."""
    if workers == 1:
        return [NOTHING]
    share = 2 * (workers - 1) / workers * 4 * BIG.parameters
    return [Traffic('mean()', share), Traffic('diloco(every=100)', share / 100, optimizer_bytes=24)]


def test_ranking() -> None:
    small = dataclasses.replace(V5E, memory=4e9)
    costs = rank(BIG, small, 64, between)
    inside = [cost for cost in costs if fits(cost, small)]
    outside = costs[len(inside) :]
    assert inside
    assert outside
    times = [float(f'{cost.step:.2e}') for cost in inside]
    assert times == sorted(times)
    axes = [sum(getattr(cost.layout, axis) > 1 for axis in AXES) for cost in inside]
    assert all(a <= b for (s, a), (t, b) in itertools.pairwise(zip(times, axes, strict=True)) if s == t)
    assert [cost.total for cost in outside] == sorted(cost.total for cost in outside)
    assert min(cost.total for cost in outside) > small.memory
    names = {(cost.layout.workers > 1, cost.traffic.name) for cost in costs}
    assert names == {(False, 'nothing'), (True, 'mean()'), (True, 'diloco(every=100)')}
    state = {cost.traffic.name: cost.memory['optimiser'] for cost in costs if cost.layout.workers == 64}
    assert state['diloco(every=100)'] == 3 * state['mean()']
    alone = [estimate(BIG, small, cost.layout, cost.traffic) for cost in costs[:50]]
    assert alone == costs[:50]


def test_the_front_has_what_nothing_beats() -> None:
    costs = rank(BIG, V5E, 16, between)
    best = front(costs)
    beats = lambda a, b: a.step <= b.step and a.total <= b.total and (a.step, a.total) != (b.step, b.total)  # noqa: E731
    points = {(cost.step, cost.total) for cost in costs if not any(beats(other, cost) for other in costs)}
    assert sorted(points) == [(cost.step, cost.total) for cost in best]
    assert front([]) == []


@pytest.mark.slow
def test_thousands_of_devices_are_ranked() -> None:
    model = decoder(80, 8192, 28672, 128256, 8192, batch=2048, heads=64)
    costs = rank(model, MACHINES['v5p'], 4096, between)
    assert len(costs) > 15_000
    assert fits(costs[0], MACHINES['v5p'])
    assert isinstance(costs[0], Estimate)


def test_machines_have_sound_numbers() -> None:
    assert set(MACHINES) == {'v5e', 'v5p', 'trillium', 'v6e', 'h100', 'h200', 'cpu'}
    assert all(each.slow_link <= each.link for each in MACHINES.values())
    assert machine('v6e') is machine('trillium')


def write(path: Path, text: str) -> str:
    file = path / 'mine.json'
    file.write_text(text)
    return str(file)


def test_a_machine_from_a_file(tmp_path: Path) -> None:
    mine = machine(write(tmp_path, '{"like": "v5e", "link": 80e9}'))
    assert mine == dataclasses.replace(V5E, name='mine', link=80e9)
    assert machine(write(tmp_path, json.dumps(dataclasses.asdict(H100)))) == H100


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('link: 80e9', 'is not a JSON file'),
        ('[1]', 'has no fields'),
        ('{"like": "v4"}', "no machine 'v4' to be like; there are v5e, v5p"),
        ('{"like": "v5e", "speed": 1}', "has no 'speed'; it has flops, memory, link"),
        ('{"like": "v5e", "link": 0}', "link of machine 'mine' is 0: give a number above 0"),
        ('{"like": "v5e", "link": NaN}', "link of machine 'mine' is nan: give a number above 0"),
        ('{"like": "v5e", "link": "80e9"}', "link of machine 'mine' is '80e9': give a number"),
        ('{"like": "v5e", "reached": 1.5}', 'give a share of the peak'),
        ('{"like": "v5e", "group": 2.5}', 'give a whole number of devices'),
        ('{"flops": 1e12}', 'lacks memory, link, group, slow_link, reached, launch'),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        machine(write(tmp_path, text))


def test_an_unknown_machine() -> None:
    with pytest.raises(InputError, match='nor a file of that name; there are v5e, v5p, trillium, v6e, h100, h200, cpu'):
        machine('v4')


def test_fits_that_cannot_be() -> None:
    with pytest.raises(InputError, match='seconds above 0'):
        fit({}, SMALL, H100)
    with pytest.raises(InputError, match='two lists of one length'):
        spearman([1.0, 1.0], [1.0, 2.0])
    assert spearman([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]) == pytest.approx(1)


def test_the_planner_imports_no_jax() -> None:
    for path in Path(jaxdist.planner.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split('.')[0] in ('jax', 'numpy') for name in names), path
