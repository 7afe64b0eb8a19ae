"""The batches that a run skips after loss spikes, and so which batch each step reads."""

from typing import Any, NamedTuple, Self


class Skipped(NamedTuple):
    """The batches that a run skips: a part of it, saved with each checkpoint and recorded when it goes back.

    Attributes:
        rewinds: how often the run has gone back.
        batches: ranges `(first, end)` of batches, counted from 0, ascending; `end` is the first that is read again.
    """

    rewinds: int = 0
    batches: tuple[tuple[int, int], ...] = ()

    def batch(self, step: int) -> int:
        """The batch that is read after `step` steps.

        >>> skipped = Skipped(1, ((3, 5),))
        >>> [skipped.batch(step) for step in range(5)]
        [0, 1, 2, 5, 6]
        """
        for first, end in self.batches:
            if step >= first:
                step += end - first
        return step

    def rewound(self, step: int, spike: int) -> Self:
        """These batches, and those read from `step` to the step of a spike, of a run that goes back to `step`.

        >>> Skipped().rewound(3, spike=5).rewound(2, spike=4)
        Skipped(rewinds=2, batches=((2, 6),))
        """
        first, end = self.batch(step), self.batch(spike - 1) + 1
        kept = tuple(each for each in self.batches if each[0] < first)
        return type(self)(self.rewinds + 1, (*kept, (first, end)))

    def to_json(self) -> dict[str, Any]:
        """As JSON data.

        >>> Skipped(1, ((3, 5),)).to_json()
        {'rewinds': 1, 'batches': [[3, 5]]}
        """
        return {'rewinds': self.rewinds, 'batches': [list(each) for each in self.batches]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """From JSON data, which may have more entries.

        >>> Skipped.from_json({'rewinds': 1, 'batches': [[3, 5]], 'loss': 9.5})
        Skipped(rewinds=1, batches=((3, 5),))
        """
        return cls(int(data['rewinds']), tuple((int(first), int(end)) for first, end in data['batches']))


def skipped_by(records: list[dict[str, Any]], meta: dict[str, Any]) -> Skipped:
    """The batches that a run skips which resumes.

    The checkpoint may have been saved before the run went back to it, and then only the record knows.

    Args:
        records: the run's records until the checkpoint.
        meta: the checkpoint's meta; {} without one.

    >>> skipped_by([{'step': 3, 'rewind': {'rewinds': 1, 'batches': [[3, 5]]}}], {})
    Skipped(rewinds=1, batches=((3, 5),))
    """
    recorded = (record['rewind'] for record in reversed(records) if 'rewind' in record)
    data = next(recorded, meta.get('skipped'))
    return Skipped.from_json(data) if data else Skipped()
