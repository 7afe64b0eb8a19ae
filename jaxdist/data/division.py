"""Divisions of examples among workers: even, by label, by Dirichlet draws, by given sizes."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.data.sampling import Parts

DRAWS = 100
"""Draws of `Dirichlet` until every worker has an example; then an error is raised."""


@dataclass(frozen=True)
class Even:
    """All workers draw from all examples, so the global batch does not depend on their number."""

    def parts(self, count: int, labels: np.ndarray | None, workers: int) -> Parts:
        """One part for all workers.

        >>> Even().parts(3, None, workers=2)
        (array([0, 1, 2]),)
        """
        del labels, workers
        return (np.arange(count),)


@dataclass(frozen=True)
class ByLabel:
    """Examples are sorted by label and split into shards, of which each worker has a few.

    As in McMahan et al. 2017 (arXiv 1602.05629), who assign the shards at random. Here they are assigned in turn
    (worker w has shards w, w + W, ...), so that a worker's shards are far apart and, where shards match labels, have
    different labels. The sizes of parts differ by at most one example for each shard.
    """

    labels_each: int = 2
    """Shards of each worker, which is about the number of labels in its part."""

    def parts(self, count: int, labels: np.ndarray | None, workers: int) -> Parts:
        """The parts of W workers.

        Raises:
            InputError: there are no labels, or fewer examples than shards.

        >>> ByLabel(labels_each=1).parts(4, np.array([1, 0, 1, 0]), workers=2)
        (array([1, 3]), array([0, 2]))
        """
        labels = _require(labels, 'ByLabel')
        shards = self.labels_each * workers
        if self.labels_each < 1 or shards > count:
            raise InputError(
                f'ByLabel cannot split {count} examples into {workers} x labels_each={self.labels_each} shards'
            )
        pieces = np.array_split(np.argsort(labels, kind='stable'), shards)
        return tuple(np.concatenate(pieces[worker::workers]) for worker in range(workers))


@dataclass(frozen=True)
class Dirichlet:
    """Each label's examples are split among workers in proportions drawn from a Dirichlet distribution.

    As in Yurochkin et al. 2019 (arXiv 1905.12022), so workers differ in labels and in size. Hsu et al. 2019
    (1909.06335) draw the proportions of labels for each worker instead, and all workers have equally many examples.
    Proportions are drawn again until every worker has at least one example.
    """

    alpha: float = 0.5
    """Concentration: near 0 each label belongs to one worker, large values are nearly even."""
    seed: int = 0
    """Seed of the proportions, independent of the run's seed."""

    def parts(self, count: int, labels: np.ndarray | None, workers: int) -> Parts:
        """The parts of W workers.

        Raises:
            InputError: there are fewer than two labels, or every draw leaves a worker without examples.

        >>> [len(part) for part in Dirichlet(alpha=1.0).parts(100, np.arange(100) % 10, workers=3)]
        [39, 19, 42]
        """
        labels = _require(labels, 'Dirichlet')
        kinds, counts = np.unique(labels, return_counts=True)
        if len(kinds) < 2:
            raise InputError('Dirichlet needs at least two labels (of text: two files): use Even or Sizes')
        if not self.alpha > 0:
            raise InputError(f'alpha={self.alpha} of Dirichlet must be above 0')
        groups = np.split(np.argsort(labels, kind='stable'), np.cumsum(counts)[:-1])
        for number in range(DRAWS):
            parts = self._draw(groups, workers, number)
            if min(map(len, parts)) > 0:
                return parts
        raise InputError(
            f'{DRAWS} draws of Dirichlet(alpha={self.alpha}) all left one of {workers} workers without '
            f'any of the {count} examples: use a larger alpha or fewer workers'
        )

    def _draw(self, groups: list[np.ndarray], workers: int, number: int) -> Parts:
        """One draw of proportions, and the parts that it makes."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(number,))))
        split = [_split(group, rng.dirichlet(np.full(workers, self.alpha))) for group in groups]
        return tuple(np.concatenate(pieces) for pieces in zip(*split, strict=True))


@dataclass(frozen=True)
class Sizes:
    """Each worker has consecutive examples, as many as its relative size."""

    sizes: tuple[float, ...]
    """Relative sizes of the parts, one for each worker."""

    def parts(self, count: int, labels: np.ndarray | None, workers: int) -> Parts:
        """The parts of W workers.

        Raises:
            InputError: there are not as many sizes as workers, or a size is too small for one example.

        >>> Sizes((1, 3)).parts(4, None, workers=2)
        (array([0]), array([1, 2, 3]))
        """
        del labels
        sizes = np.array(self.sizes, float)
        if len(sizes) != workers:
            raise InputError(
                f'Sizes needs one size for each worker: there are {len(sizes)} sizes and {workers} workers'
            )
        if not (np.isfinite(sizes).all() and (sizes > 0).all()):
            raise InputError(f'every size must be above 0: {self}')
        parts = tuple(_split(np.arange(count), sizes / sizes.sum()))
        empty = [worker for worker, part in enumerate(parts) if not len(part)]
        if empty:
            raise InputError(f'{self} leaves none of the {count} examples for workers {empty}')
        return parts


class Division(Protocol):
    """How examples are divided among workers: one of those above, or a frozen dataclass of your own."""

    def parts(self, count: int, labels: np.ndarray | None, workers: int) -> Parts:
        """The indices, below `count`, of the examples of each worker; or of a single part for all workers.

        `labels` [count] are None if the data have none.
        """


def _require(labels: np.ndarray | None, name: str) -> np.ndarray:
    """The labels; raises InputError if there are none."""
    if labels is None:
        raise InputError(f'{name} divides by labels, and this data set has real numbers to predict: use Even or Sizes')
    return labels


def _split(rows: np.ndarray, proportions: np.ndarray) -> list[np.ndarray]:
    """The rows, split into consecutive pieces of these proportions, which sum to one."""
    ends = np.rint(np.cumsum(proportions)[:-1] * len(rows)).astype(int)
    return np.split(rows, ends)
