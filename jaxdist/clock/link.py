"""The time that a collective takes: latency x rounds + bytes / bandwidth, the alpha-beta model.

With a factor for each kind of collective, by which links differ (Thakur, Rabenseifner and Gropp 2005 have the rounds).
"""

from dataclasses import dataclass

from jaxdist.core.errors import InputError

KINDS = ('all_reduce', 'all_gather', 'reduce_scatter', 'all_to_all', 'permute')


@dataclass(frozen=True)
class Link:
    """A link between workers."""

    latency: float = 0.0
    """Seconds of a message beside its bytes."""
    bandwidth: float = 0.0
    """Bytes a second that a worker sends; 0 for a free network."""
    all_reduce: float = 1.0
    """Factor of the time that the bytes of an all_reduce take; the same below for the other kinds."""
    all_gather: float = 1.0
    reduce_scatter: float = 1.0
    all_to_all: float = 1.0
    permute: float = 1.0

    def check(self, name: str) -> None:
        """Checks the numbers.

        Raises:
            InputError: one is negative, or a factor is 0.

        >>> Link(latency=-1.0).check('clock.link')
        Traceback (most recent call last):
        jaxdist.InputError: clock.link.latency=-1.0 must be 0 or more
        """
        for field in ('latency', 'bandwidth'):
            if not 0 <= getattr(self, field) < float('inf'):
                raise InputError(f'{name}.{field}={getattr(self, field)} must be 0 or more')
        for field in KINDS:
            if not 0 < getattr(self, field) < float('inf'):
                raise InputError(f'{name}.{field}={getattr(self, field)} must be above 0')

    def seconds(self, kind: str, sent: float, workers: int) -> float:
        """Seconds of one collective.

        Args:
            kind: as in `jaxdist.ledger.Collective`.
            sent: bytes that one worker sends in it.
            workers: how many workers take part.

        >>> Link(latency=0.001, bandwidth=1e6).seconds('all_reduce', 14_000, workers=8)
        0.028
        """
        rounds = {'all_reduce': 2 * (workers - 1), 'permute': 1}.get(kind, workers - 1)
        size = getattr(self, kind, 1.0) * sent / self.bandwidth if self.bandwidth else 0.0
        return self.latency * rounds + size

    def message(self, size: float) -> float:
        """Seconds that a message of this many bytes takes the link, beside its latency.

        >>> Link(bandwidth=100.0).message(50)
        0.5
        """
        return size / self.bandwidth if self.bandwidth else 0.0
