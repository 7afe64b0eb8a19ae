"""Laws on what a codec makes of a vector: which entries are left, at which levels, of which rank."""

import numpy as np

from jaxdist.laws.codecs import CodecTrial
from jaxdist.laws.law import Law, LawBroken, close


def keeps(k: int, block: int, run: int = 1) -> Law:
    """Of each block that is not zero exactly k entries are left, in runs of `run`; the rest is zero.

    >>> keeps(2, 8).name
    'keeps 2 of 8'
    """

    def check(trial: CodecTrial) -> None:
        for key in range(5):
            back = trial.there_and_back(trial.vector, key).reshape(-1, block)
            left = (back != 0) & (trial.vector.reshape(-1, block) != 0)
            counts = left.sum(1)[np.any(trial.vector.reshape(-1, block) != 0, axis=1)]
            if np.any(counts != k) or np.any(back[~left]):
                raise LawBroken(f'{sorted(set(counts.tolist()))} entries of a block are left, promised {k}')
            runs = left.reshape(len(left), -1, run)
            if np.any(runs.any(2) != runs.all(2)):
                raise LawBroken(f'entries are not left in whole runs of {run}')

    return Law(f'keeps {k} of {block}', check)


def signs() -> Law:
    """Every entry that is not zero comes back as its sign, -1 or 1.

    >>> signs().name
    'signs'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector
        wrong = int(np.sum(trial.there_and_back(x)[x != 0] != np.sign(x[x != 0])))
        if wrong:
            raise LawBroken(f'{wrong} of {x.size} entries do not come back as their signs')

    return Law('signs', check)


def levels(at: float) -> Law:
    """An entry comes back as plus or minus `at`, with its sign, if it is that large, or as zero; some do.

    >>> levels(0.5).name
    'levels of 0.5'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector
        back = trial.there_and_back(x)
        if not np.any(back):
            raise LawBroken(f'all comes back as zero; the largest entry is {np.abs(x).max():.3g}')
        if not np.all((back == 0) | ((np.abs(x) >= at) & (back == np.sign(x) * np.float32(at)))):
            raise LawBroken(f'entries come back as {np.unique(back)[:4]}, promised 0 and +-{at} of those as large')

    return Law(f'levels of {at:.4g}', check)


def exact_up_to_rank(rank: int) -> Law:
    """A matrix of so low a rank comes back as it was, to a thousandth; one of a rank higher does not.

    >>> exact_up_to_rank(2).name
    'exact up to rank 2'
    """

    def check(trial: CodecTrial) -> None:
        rng = np.random.default_rng(trial.seed)
        product = lambda r: (rng.normal(size=(48, r)) @ rng.normal(size=(r, 40))).astype(np.float32)  # noqa: E731
        low, high = product(rank), product(rank + 1)
        close(trial.there_and_back(low), low, f'a matrix of rank {rank}', 1e-3)
        if np.abs(trial.there_and_back(high) - high).max() < 1e-2:
            raise LawBroken(f'a matrix of rank {rank + 1} comes back whole: it was not approximated')

    return Law(f'exact up to rank {rank}', check)
