"""Laws on decoded vectors and matrices: which entries remain, which values they take, which rank is exact."""

import numpy as np

from jaxdist.laws.codecs import CodecTrial
from jaxdist.laws.law import Law, LawBroken, close


def keeps(k: int, block: int, run: int = 1) -> Law:
    """Of each block that is not all zeros exactly k entries remain, in runs of `run` entries; the others are zero.

    >>> keeps(2, 8).name
    'keeps 2 of 8'
    """

    def check(trial: CodecTrial) -> None:
        for key in range(5):
            decoded = trial.decoded(trial.vector, key).reshape(-1, block)
            kept = (decoded != 0) & (trial.vector.reshape(-1, block) != 0)
            counts = kept.sum(1)[np.any(trial.vector.reshape(-1, block) != 0, axis=1)]
            if np.any(counts != k) or np.any(decoded[~kept]):
                raise LawBroken(f'{sorted(set(counts.tolist()))} entries of a block remain, expected {k}')
            runs = kept.reshape(len(kept), -1, run)
            if np.any(runs.any(2) != runs.all(2)):
                raise LawBroken(f'the remaining entries are not whole runs of {run}')

    return Law(f'keeps {k} of {block}', check)


def signs() -> Law:
    """Every entry that is not zero decodes to its sign, -1 or 1.

    >>> signs().name
    'decodes to signs'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector
        wrong = int(np.sum(trial.decoded(x)[x != 0] != np.sign(x[x != 0])))
        if wrong:
            raise LawBroken(f'{wrong} of {x.size} entries do not decode to their signs')

    return Law('decodes to signs', check)


def levels(at: float) -> Law:
    """Every entry decodes to zero or, if its magnitude is at least `at`, to `at` with its sign; not all decode to zero.

    >>> levels(0.5).name
    'decodes to 0 and +-0.5'
    """

    def check(trial: CodecTrial) -> None:
        x = trial.vector
        decoded = trial.decoded(x)
        if not np.any(decoded):
            raise LawBroken(f'all entries decode to zero; the largest is {np.abs(x).max():.3g}')
        if not np.all((decoded == 0) | ((np.abs(x) >= at) & (decoded == np.sign(x) * np.float32(at)))):
            raise LawBroken(
                f'entries decode to {np.unique(decoded)[:4]}, expected 0, and +-{at} only for entries that large'
            )

    return Law(f'decodes to 0 and +-{at:.4g}', check)


def exact_up_to_rank(rank: int) -> Law:
    """A matrix of this rank decodes to itself, to a thousandth; one of a rank higher does not.

    >>> exact_up_to_rank(2).name
    'exact up to rank 2'
    """

    def check(trial: CodecTrial) -> None:
        rng = np.random.default_rng(trial.seed)
        product = lambda r: (rng.normal(size=(48, r)) @ rng.normal(size=(r, 40))).astype(np.float32)  # noqa: E731
        low, high = product(rank), product(rank + 1)
        close(trial.decoded(low), low, f'a matrix of rank {rank}', 1e-3)
        if np.abs(trial.decoded(high) - high).max() < 1e-2:
            raise LawBroken(f'a matrix of rank {rank + 1} decodes to itself: it was not approximated')

    return Law(f'exact up to rank {rank}', check)
