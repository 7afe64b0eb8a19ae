"""Pipeline schedules as offsets: which microbatch each stage works on at each tick. Pure Python.

All stages walk in step. Stage s does the forward pass of microbatch k at tick k + s, and its backward pass at tick
k + S - 1 + (S - 1 - s): as soon as the last stage has done its forward pass. A tick has a slot for each, and is as long
as both where there are both. 1F1B is that of PipeDream-flush and Megatron-LM (Narayanan et al. 2021, arXiv 2104.04473,
section 2.2), in lockstep; GPipe (Huang et al. 2019, arXiv 1811.06965) does all forward passes first.
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
    """

    stage: int
    slot: Literal['forward', 'backward']
    microbatch: int


@dataclass(frozen=True)
class Schedule:
    """The schedule of a pipeline.

    Attributes:
        stages: the number of stages S.
        microbatches: the number of microbatches m that a worker's batch is divided into.
        name: `1f1b` or `gpipe`.

    Raises:
        InputError: a number is below 1, or there is no such schedule.
    """

    stages: int
    microbatches: int
    name: ScheduleName = '1f1b'

    def __post_init__(self) -> None:
        if min(self.stages, self.microbatches) < 1:
            raise InputError(f'a pipeline has 1 stage and 1 microbatch or more, not {self.stages}, {self.microbatches}')
        if self.name not in get_args(ScheduleName):
            raise InputError(f'there is no schedule {self.name!r}; there are {", ".join(get_args(ScheduleName))}')

    @property
    def fill(self) -> int:
        """Ticks before the first backward pass."""
        return self.stages - 1 if self.name == '1f1b' else self.microbatches + self.stages - 1

    @property
    def passes(self) -> int:
        """Ticks with a forward slot, and as many with a backward slot: m + S - 1."""
        return self.microbatches + self.stages - 1

    @property
    def ticks(self) -> int:
        """All ticks."""
        return self.fill + self.passes

    @property
    def bubble(self) -> Fraction:
        """The share of slots in which a stage has nothing to do: (S - 1) / (m + S - 1).

        >>> Schedule(stages=4, microbatches=9).bubble
        Fraction(1, 4)
        """
        return Fraction(self.stages - 1, self.passes)

    @property
    def held(self) -> int:
        """Inputs of microbatches that a stage keeps: at most 2 S - 3 with 1F1B in lockstep; all m with GPipe.

        An input waits for 2 (S - 1 - s) ticks on stage s, and stage 0 makes its inputs from the batch.

        >>> [Schedule(stages=4, microbatches=m).held for m in (2, 8, 64)]
        [2, 5, 5]
        """
        return min(self.microbatches, max(2 * self.stages - 3, 1)) if self.name == '1f1b' else self.microbatches

    def forward(self, stage: Any, tick: Any) -> Any:
        """The microbatch of a stage's forward slot; below 0, or m and more, if it has none.

        >>> Schedule(stages=4, microbatches=9).forward(stage=3, tick=3)
        0
        """
        return tick - stage

    def backward(self, stage: Any, tick: Any) -> Any:
        """The microbatch of a stage's backward slot; below 0, or m and more, if it has none.

        >>> Schedule(stages=4, microbatches=9).backward(stage=3, tick=3)
        0
        """
        return tick - self.fill - (self.stages - 1 - stage)

    def tick(self, tick: int) -> list[Op]:
        """What is done at a tick.

        >>> Schedule(stages=2, microbatches=4).tick(1)
        [Op(stage=0, slot='forward', microbatch=1), Op(stage=1, slot='forward', microbatch=0), Op(stage=1,
        slot='backward', microbatch=0)]
        """
        ops = []
        for stage in range(self.stages):
            for slot, microbatch in (('forward', self.forward(stage, tick)), ('backward', self.backward(stage, tick))):
                if 0 <= microbatch < self.microbatches:
                    ops.append(Op(stage, slot, microbatch))  # type: ignore[arg-type]
        return ops

    def picture(self, widest: int = 100) -> str:
        """The schedule as text, a line for each stage, with a column for each slot of a tick.

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
        forward, backward = self.forward(stage, tick), self.backward(stage, tick)
        has = lambda microbatch: 0 <= microbatch < self.microbatches  # noqa: E731
        digits = len(str(self.microbatches - 1)) + 1
        return f'{f"F{forward}" if has(forward) else ".":<{digits}} {f"B{backward}" if has(backward) else "."}'
