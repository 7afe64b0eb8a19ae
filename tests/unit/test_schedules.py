"""Schedules of pipelines, without JAX: every stage does each microbatch once, in an order that data allow."""

import pytest

from jaxdist.parallel.schedules import Schedule

SIZES = [(1, 1, 1), (1, 5, 1), (2, 1, 1), (2, 4, 1), (4, 2, 1), (4, 9, 1), (3, 8, 1)]
CHUNKS = [(1, 4, 2), (2, 4, 2), (4, 4, 2), (4, 12, 3), (3, 3, 4), (2, 6, 5)]


@pytest.mark.parametrize('name', ['1f1b', 'gpipe'])
@pytest.mark.parametrize('stages, microbatches, chunks', SIZES + CHUNKS)
def test_a_schedule_is_one_that_data_allow(stages: int, microbatches: int, chunks: int, name: str) -> None:
    plan = Schedule(stages, microbatches, name, chunks)  # type: ignore[arg-type]
    at = {(op.slot, op.chunk * stages + op.stage, op.microbatch): t for t in range(plan.ticks) for op in plan.tick(t)}
    parts = stages * chunks
    assert len(at) == 2 * parts * microbatches
    for k in range(microbatches):
        for part in range(parts - 1):  # what a stage sends at a tick arrives at the next one
            assert at['forward', part, k] + 1 == at['forward', part + 1, k]
            assert at['backward', part + 1, k] + 1 == at['backward', part, k]
        assert at['forward', parts - 1, k] <= at['backward', parts - 1, k]  # a tick has its forward slot first
    slots = sum((t < plan.passes) + (t >= plan.fill) for t in range(plan.ticks))
    assert slots == 2 * plan.passes
    assert 1 - plan.bubble == pytest.approx(2 * chunks * microbatches / slots)


@pytest.mark.parametrize('name', ['1f1b', 'gpipe'])
@pytest.mark.parametrize('stages, microbatches, chunks', SIZES + CHUNKS)
def test_an_input_is_kept_until_its_backward_pass(stages: int, microbatches: int, chunks: int, name: str) -> None:
    """The input of pass k is in slot k mod `held`, and no other is written there before it was used.

    The first stage does not use the inputs of its first chunk.
    """
    plan = Schedule(stages, microbatches, name, chunks)  # type: ignore[arg-type]
    for stage in range(stages):
        slots: dict[int, tuple[int, int]] = {}
        for t in range(plan.ticks):
            for op in (op for op in plan.tick(t) if op.stage == stage):
                place = plan.pass_of(op.microbatch, op.chunk) % plan.held
                if op.slot == 'forward':
                    slots[place] = (op.microbatch, op.chunk)
                elif stage or op.chunk:
                    assert slots[place] == (op.microbatch, op.chunk)


@pytest.mark.parametrize('stages, microbatches, chunks', CHUNKS)
def test_a_pass_is_that_of_a_microbatch_and_a_chunk(stages: int, microbatches: int, chunks: int) -> None:
    plan = Schedule(stages, microbatches, chunks=chunks)
    assert [plan.pass_of(*plan.place(k)) for k in range(plan.work)] == list(range(plan.work))


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
    lines = Schedule(2, 2, chunks=2).picture().splitlines()
    assert [' '.join(line.split()) for line in lines] == [
        'stage 0 | F0a . | F1a . | F0b . | F1b . | . B0b | . B1b | . B0a | . B1a',
        'stage 1 | . . | F0a . | F1a . | F0b B0b | F1b B1b | . B0a | . B1a | . .',
    ]
    short = Schedule(2, 100).picture(widest=40).splitlines()
    assert all(len(line) < 60 and line.endswith('more ticks') for line in short)


@pytest.mark.parametrize(
    'arguments, problem',
    [
        ((0, 4), '1 stage, 1 microbatch and 1 chunk or more, not 0, 4, 1'),
        ((4, 0), 'not 4, 0'),
        ((4, 6, '1f1b', 2), '6 microbatches: with 2 chunks on each of 4 stages they go in groups of 4'),
        ((2, 2, 'zb'), "there is no schedule 'zb'; there are 1f1b, gpipe"),
    ],
)
def test_what_is_no_schedule(arguments: tuple[int, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Schedule(*arguments)
