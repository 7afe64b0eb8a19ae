"""What learners hand in, and what has been merged of it: the numbers, by which no token counts twice."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxdist.core.errors import InputError
from jaxdist.learners.messages import Message

Counts = tuple[tuple[int, ...], ...]
"""A number for each learner and fragment."""


class Quorum(NamedTuple):
    """When a round closes.

    Attributes:
        learners: how many learners there are.
        quorum: how many must have handed in.
        grace: seconds that the others have from then on.
    """

    learners: int
    quorum: int
    grace: float = 0.5


class Arrival(NamedTuple):
    """What a learner hands in.

    Attributes:
        learner: its index.
        start: which of its starts this is, from 1.
        fragment: the fragment.
        version: the rounds of the fragment that had closed when it adopted its anchor.
        first: its steps before the first that counts.
        end: its steps until now.
        tokens: the tokens (for other data the examples) of the steps in between.
        message: the pseudo-gradient, encoded.
        loss: the mean loss of these steps.
        seconds: the time that these steps took.
        share: the learner's share of the data, relative to an equal one.
        journal: what the learner did since its last merged arrival, in order, for a replay; see `Learner`.
        begins: the number of entries of its journal before these.
    """

    learner: int
    start: int
    fragment: int
    version: int
    first: int
    end: int
    tokens: int
    message: Message
    loss: float
    seconds: float
    share: float = 1.0
    journal: tuple[Any, ...] = ()
    begins: int = 0


class Progress(NamedTuple):
    """What has been merged; it makes that no token counts twice.

    Attributes:
        versions: the closed rounds of each fragment.
        reached: the steps of each learner up to which it is merged, for each fragment.
        tokens: the merged tokens of each learner and fragment.
        starts: how often each learner was started.
        saved: the step at which each learner has last saved its own state, -1 for none.
    """

    versions: tuple[int, ...]
    reached: Counts
    tokens: Counts
    starts: tuple[int, ...]
    saved: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """Closed rounds of all fragments."""
        return sum(self.versions)


def first_progress(learners: int, fragments: int) -> Progress:
    """The progress before the first round.

    >>> first_progress(2, 1).reached
    ((0,), (0,))
    """
    zeros = ((0,) * fragments,) * learners
    return Progress((0,) * fragments, zeros, zeros, (0,) * learners, (-1,) * learners)


def resized(progress: Progress, learners: int) -> Progress:
    """The progress for another number of learners: a new one begins where the furthest is.

    >>> resized(Progress((3,), ((8,), (5,)), ((16,), (10,)), (1, 1), (4, 4)), 3).reached
    ((8,), (5,), (8,))
    """
    more = learners - len(progress.starts)
    furthest, none = tuple(map(max, zip(*progress.reached, strict=True))), (0,) * len(progress.versions)
    return Progress(
        progress.versions,
        (progress.reached + (furthest,) * more)[:learners],
        (progress.tokens + (none,) * more)[:learners],
        (progress.starts + (0,) * more)[:learners],
        (progress.saved + (-1,) * more)[:learners],
    )


Place = Literal['merged', 'closed', 'open']


def place_of(arrival: Arrival, progress: Progress) -> Place:
    """Where an arrival belongs: it is merged already, its round has closed, or it joins the open round.

    Raises:
        InputError: its steps overlap with merged ones.

    >>> arrival = Arrival(0, 1, 0, version=0, first=0, end=4, tokens=8, message=(), loss=1.0, seconds=1.0)
    >>> progress = first_progress(2, 1)._replace(starts=(1, 1))
    >>> place_of(arrival, progress), place_of(arrival, progress._replace(versions=(1,)))
    ('open', 'closed')
    >>> place_of(arrival, progress._replace(versions=(1,), reached=((4,), (4,))))
    'merged'
    """
    reached = progress.reached[arrival.learner][arrival.fragment]
    if arrival.start != progress.starts[arrival.learner]:
        return 'closed'  # of a process that is gone
    if arrival.end <= reached:
        return 'merged'
    if arrival.first < reached:
        raise InputError(
            f'learner {arrival.learner} hands in its steps from {arrival.first} to {arrival.end}, and those to '
            f'{reached} are merged already'
        )
    return 'closed' if arrival.version < progress.versions[arrival.fragment] else 'open'


def closes(arrived: int, full_since: float | None, now: float, rule: Quorum) -> bool:
    """Whether a round closes now.

    Args:
        arrived: how many learners have handed in.
        full_since: when the quorum was reached; None if it is not.
        now: the time.
        rule: when rounds close.

    >>> rule = Quorum(learners=4, quorum=3, grace=0.5)
    >>> closes(3, 10.0, 10.2, rule), closes(3, 10.0, 10.5, rule), closes(4, 10.1, 10.2, rule)
    (False, True, True)
    """
    return arrived >= rule.learners or (full_since is not None and now >= full_since + rule.grace)


def weights(arrivals: Sequence[Arrival]) -> list[float]:
    """The weight of each learner in the mean: its share of the data x tokens x tokens / steps; they add up to 1.

    >>> step = lambda n, tokens: Arrival(0, 1, 0, 0, 0, n, tokens, (), 1.0, 1.0)
    >>> weights([step(4, 40), step(2, 40)])  # with twice the tokens in a step
    [0.3333333333333333, 0.6666666666666666]
    """
    each = [a.share * a.tokens**2 / (a.end - a.first) for a in arrivals]
    return [weight / sum(each) for weight in each]


def mean_loss(arrivals: Sequence[Arrival]) -> float:
    """The mean loss of the merged steps, weighted as their learners.

    >>> mean_loss([Arrival(k, 1, 0, 0, 0, 4, 8, (), loss=float(k), seconds=1.0) for k in range(3)])
    1.0
    """
    return sum(weight * arrival.loss for weight, arrival in zip(weights(arrivals), arrivals, strict=True))


def counted(progress: Progress, arrivals: Sequence[Arrival]) -> Progress:
    """The progress after a round of these arrivals, all of one fragment.

    >>> arrival = Arrival(1, 1, 0, version=0, first=0, end=4, tokens=8, message=(), loss=1.0, seconds=1.0)
    >>> counted(first_progress(2, 1), [arrival]).reached
    ((0,), (4,))
    """
    (fragment,) = {arrival.fragment for arrival in arrivals}
    reached, tokens = [list(row) for row in progress.reached], [list(row) for row in progress.tokens]
    saved = list(progress.saved)
    for arrival in arrivals:
        reached[arrival.learner][fragment] = arrival.end
        tokens[arrival.learner][fragment] += arrival.tokens
        saved[arrival.learner] = max([step for name, *step in arrival.journal if name == 'save'], default=[-1])[0]
        saved[arrival.learner] = max(saved[arrival.learner], progress.saved[arrival.learner])
    versions = tuple(v + (p == fragment) for p, v in enumerate(progress.versions))
    rows = lambda table: tuple(map(tuple, table))  # noqa: E731
    return progress._replace(versions=versions, reached=rows(reached), tokens=rows(tokens), saved=tuple(saved))


def total_tokens(progress: Progress) -> int:
    """Merged tokens of all learners, of the fragment with the most.

    >>> total_tokens(Progress((1, 1), ((2, 1), (2, 1)), ((8, 4), (8, 4)), (1, 1), (-1, -1)))
    16
    """
    return max(map(sum, zip(*progress.tokens, strict=True)))


def to_json(progress: Progress) -> Mapping[str, Any]:
    """The progress as JSON data.

    >>> from_json(to_json(first_progress(2, 1))) == first_progress(2, 1)
    True
    """
    return {name: [list(x) if isinstance(x, tuple) else x for x in field] for name, field in progress._asdict().items()}


def from_json(data: Mapping[str, Any]) -> Progress:
    """The progress that `to_json` wrote.

    >>> from_json(to_json(first_progress(1, 2))).versions
    (0, 0)
    """
    rows = lambda field: tuple(tuple(x) if isinstance(x, list) else x for x in field)  # noqa: E731
    fields: Any = {name: rows(data[name]) for name in Progress._fields}
    return Progress(**fields)
