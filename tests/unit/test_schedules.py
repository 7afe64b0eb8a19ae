"""Schedules of pipelines, without JAX: every stage does each microbatch once, in an order that data allow."""

import pytest

from jaxdist.parallel.schedules import Schedule

SIZES = [(1, 1), (1, 5), (2, 1), (2, 4), (4, 2), (4, 9), (3, 8)]


@pytest.mark.parametrize('name', ['1f1b', 'gpipe'])
@pytest.mark.parametrize('stages, microbatches', SIZES)
def test_a_schedule_is_one_that_data_allow(stages: int, microbatches: int, name: str) -> None:
    plan = Schedule(stages, microbatches, name)  # type: ignore[arg-type]
    at = {(op.slot, op.stage, op.microbatch): t for t in range(plan.ticks) for op in plan.tick(t)}
    assert len(at) == 2 * stages * microbatches
    for k in range(microbatches):
        for s in range(stages - 1):
            assert at['forward', s, k] < at['forward', s + 1, k]
            assert at['backward', s + 1, k] < at['backward', s, k]
        assert at['forward', stages - 1, k] <= at['backward', stages - 1, k]  # a tick has its forward slot first
    slots = sum((t < plan.passes) + (t >= plan.fill) for t in range(plan.ticks))
    assert slots == 2 * plan.passes
    assert 1 - plan.bubble == pytest.approx(2 * microbatches / slots)


@pytest.mark.parametrize('name', ['1f1b', 'gpipe'])
@pytest.mark.parametrize('stages, microbatches', SIZES)
def test_an_input_is_kept_until_its_backward_pass(stages: int, microbatches: int, name: str) -> None:
    """The input of microbatch k is in slot k mod `held`, and no other is written there before it was used.

    The first stage does not use its inputs.
    """
    plan = Schedule(stages, microbatches, name)  # type: ignore[arg-type]
    for stage in range(1, stages):
        slots: dict[int, int] = {}
        for t in range(plan.ticks):
            for op in (op for op in plan.tick(t) if op.stage == stage):
                if op.slot == 'forward':
                    slots[op.microbatch % plan.held] = op.microbatch
                else:
                    assert slots[op.microbatch % plan.held] == op.microbatch


def test_what_1f1b_keeps_does_not_grow() -> None:
    assert [Schedule(4, m).held for m in (2, 8, 64)] == [2, 5, 5]
    assert [Schedule(4, m, 'gpipe').held for m in (2, 8, 64)] == [2, 8, 64]


def test_the_picture() -> None:
    lines = Schedule(3, 4).picture().splitlines()
    assert [' '.join(line.split()) for line in lines] == [
        'stage 0 | F0 . | F1 . | F2 . | F3 . | . B0 | . B1 | . B2 | . B3',
        'stage 1 | . . | F0 . | F1 . | F2 B0 | F3 B1 | . B2 | . B3 | . .',
        'stage 2 | . . | . . | F0 B0 | F1 B1 | F2 B2 | F3 B3 | . . | . .',
    ]
    short = Schedule(2, 100).picture(widest=40).splitlines()
    assert all(len(line) < 60 and line.endswith('more ticks') for line in short)


@pytest.mark.parametrize(
    'arguments, problem',
    [
        ((0, 4), '1 stage and 1 microbatch or more, not 0, 4'),
        ((4, 0), 'not 4, 0'),
        ((2, 2, 'zb'), "there is no schedule 'zb'; there are 1f1b, gpipe"),
    ],
)
def test_what_is_no_schedule(arguments: tuple[int, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Schedule(*arguments)
