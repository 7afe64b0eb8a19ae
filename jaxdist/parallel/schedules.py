"""Pipeline schedules as offsets: which microbatch each stage works on at each tick. Pure Python.

All stages walk in step. Stage s does its k-th forward pass at tick k + s, and its k-th backward pass at tick
k + V S - 1 + (S - 1 - s): as soon as the last stage has done its forward pass. A tick has a slot for each, and is as
long as both where there are both. With V chunks of blocks on each stage, microbatches go through all stages V times, in
groups of S: pass k is that of microbatch and chunk in this order, chunk after chunk, and backward in reverse.

1F1B is that of PipeDream-flush, interleaved with V > 1 (Megatron-LM, Narayanan et al. 2021, arXiv 2104.04473, section
2.2), in lockstep; GPipe (Huang et al. 2019, arXiv 1811.06965) does all forward passes first.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

from jaxdist.core.errors import InputError

ScheduleName = Literal['1f1b', 'gpipe']


class Op(NamedTuple):
    """What one stage does in one slot of a tick.

    Attributes:
        stage: the stage.
        slot: `forward` or `backward`.
        microbatch: the microbatch.
        chunk: the chunk of the stage's blocks.
    """

    stage: int
    slot: Literal['forward', 'backward']
    microbatch: int
    chunk: int


@dataclass(frozen=True)
class Schedule:
    """The schedule of a pipeline.

    Attributes:
        stages: the number of stages S.
        microbatches: the number of microbatches m that a worker's batch is divided into.
        name: `1f1b` or `gpipe`.
        chunks: the number of chunks V of blocks on each stage.

    Raises:
        InputError: a number is below 1, there is no such schedule, or microbatches do not come in groups of S, as
            chunks need them.
    """

    stages: int
    microbatches: int
    name: ScheduleName = '1f1b'
    chunks: int = 1

    def __post_init__(self) -> None:
        if min(self.stages, self.microbatches, self.chunks) < 1:
            raise InputError(
                'a pipeline has 1 stage, 1 microbatch and 1 chunk or more, not '
                f'{self.stages}, {self.microbatches}, {self.chunks}'
            )
        if self.chunks > 1 and self.microbatches % self.stages:
            raise InputError(
                f'{self.microbatches} microbatches: with {self.chunks} chunks on each of {self.stages} stages they go '
                f'in groups of {self.stages}, so take a multiple of it'
            )
        if self.name not in get_args(ScheduleName):
            raise InputError(f'there is no schedule {self.name!r}; there are {", ".join(get_args(ScheduleName))}')

    @property
    def fill(self) -> int:
        """Ticks before the first backward pass."""
        return self.chunks * self.stages - 1 if self.name == '1f1b' else self.passes

    @property
    def work(self) -> int:
        """Forward passes of a stage, and as many backward: V m."""
        return self.chunks * self.microbatches

    @property
    def passes(self) -> int:
        """Ticks with a forward slot, and as many with a backward slot: V m + S - 1."""
        return self.work + self.stages - 1

    @property
    def ticks(self) -> int:
        """All ticks."""
        return self.fill + self.passes

    @property
    def bubble(self) -> Fraction:
        """The share of slots in which a stage has nothing to do: (S - 1) / (V m + S - 1).

        >>> Schedule(stages=4, microbatches=9).bubble, Schedule(stages=4, microbatches=8, chunks=3).bubble
        (Fraction(1, 4), Fraction(1, 9))
        """
        return Fraction(self.stages - 1, self.passes)

    @property
    def held(self) -> int:
        """Inputs of passes that a stage keeps: at most 2 V S - 3 with 1F1B in lockstep; all V m with GPipe.

        An input of the first chunk waits for 2 (V S - 1 - s) ticks on stage s, and stage 0 makes these from the batch.

        >>> [Schedule(stages=4, microbatches=m).held for m in (2, 8, 64)]
        [2, 5, 5]
        """
        return min(self.work, max(2 * self.chunks * self.stages - 3, 1)) if self.name == '1f1b' else self.work

    def forward(self, stage: Any, tick: Any) -> Any:
        """Which pass a stage's forward slot is; below 0, or V m and more, if it has none.

        >>> Schedule(stages=4, microbatches=9).forward(stage=3, tick=3)
        0
        """
        return tick - stage

    def backward(self, stage: Any, tick: Any) -> Any:
        """Which pass a stage's backward slot is; below 0, or V m and more, if it has none.

        >>> Schedule(stages=4, microbatches=9).backward(stage=3, tick=3)
        0
        """
        return tick - self.fill - (self.stages - 1 - stage)

    def place(self, k: Any) -> tuple[Any, Any]:
        """The microbatch and the chunk of forward pass k; of backward pass k the chunk is V - 1 less this one.

        >>> [Schedule(stages=2, microbatches=4, chunks=2).place(k) for k in range(5)]
        [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]
        """
        group, rest = k // (self.stages * self.chunks), k % (self.stages * self.chunks)
        if self.chunks == 1:
            return k, 0 * k
        return group * self.stages + rest % self.stages, rest // self.stages

    def pass_of(self, microbatch: Any, chunk: Any) -> Any:
        """The forward pass of a microbatch through a chunk.

        >>> Schedule(stages=2, microbatches=4, chunks=2).pass_of(microbatch=2, chunk=1)
        6
        """
        if self.chunks == 1:
            return microbatch
        group, rest = microbatch // self.stages, microbatch % self.stages
        return (group * self.chunks + chunk) * self.stages + rest

    def tick(self, tick: int) -> list[Op]:
        """What is done at a tick.

        >>> Schedule(stages=2, microbatches=4).tick(1)
        [Op(stage=0, slot='forward', microbatch=1, chunk=0), Op(stage=1, slot='forward', microbatch=0, chunk=0),
        Op(stage=1, slot='backward', microbatch=0, chunk=0)]
        """
        ops = []
        for stage in range(self.stages):
            if 0 <= (k := self.forward(stage, tick)) < self.work:
                ops.append(Op(stage, 'forward', *self.place(k)))
            if 0 <= (k := self.backward(stage, tick)) < self.work:
                microbatch, chunk = self.place(k)
                ops.append(Op(stage, 'backward', microbatch, self.chunks - 1 - chunk))
        return ops

    def picture(self, widest: int = 100) -> str:
        """The schedule as text, a line for each stage, with a column for each slot of a tick; chunks by letters.

        Args:
            widest: characters of a line; further ticks are left out, and counted.

        >>> print(Schedule(stages=2, microbatches=3).picture())
        stage 0 | F0 . | F1 .  | F2 B0 | .  B1 | .  B2
        stage 1 | .  . | F0 B0 | F1 B1 | F2 B2 | .  .
        """
        cells = [[self._cell(stage, tick) for tick in range(self.ticks)] for stage in range(self.stages)]
        widths = [max(len(cells[stage][tick]) for stage in range(self.stages)) for tick in range(self.ticks)]
        lines = []
        for stage in range(self.stages):
            line, shown = f'stage {stage}', 0
            for text, width in zip(cells[stage], widths, strict=True):
                if len(line) + 3 + width > widest:
                    break
                line, shown = f'{line} | {text:<{width}}', shown + 1
            left = self.ticks - shown
            lines.append(line.rstrip() + (f' | ... {left} more ticks' if left else ''))
        return '\n'.join(lines)

    def _cell(self, stage: int, tick: int) -> str:
        """The slots of a stage at a tick: `F2b` is the forward pass of microbatch 2 through the second chunk."""
        letter = lambda op: chr(ord('a') + op.chunk) if self.chunks > 1 else ''  # noqa: E731
        found = {
            op.slot: f'{op.slot[0].upper()}{op.microbatch}{letter(op)}' for op in self.tick(tick) if op.stage == stage
        }
        width = len(str(self.microbatches - 1)) + 1 + (self.chunks > 1)
        return f'{found.get("forward", "."):<{width}} {found.get("backward", ".")}'
