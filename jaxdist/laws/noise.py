"""Laws on random rounding: right on average, of its own on each worker, and drawn anew each time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist.laws.law import Law, LawBroken, to_numpy
from jaxdist.laws.trial import Trial, mean_rows


def centred(draws: np.ndarray, promised: np.ndarray, what: str) -> None:
    """Asserts that vectors average to what is promised: each entry, and the sums that a small bias of all would move.

    An entry may be off by 8 standard errors (of the entries together), a sum by 6 of its own. The sums are plain, with
    the promised signs, and weighted by the promised values: the last two see what rounds towards zero.

    Args:
        draws: independent draws of the vector, [draws, n].
        promised: its mean, [n].
        what: the vector, for the message.

    Raises:
        LawBroken: with the bias and its standard error.

    >>> centred(np.array([[0.0, 2.0], [2.0, 0.0]]), np.ones(2), 'the sums')
    """
    error = draws.astype(np.float64) - promised
    root = np.sqrt(len(draws))
    off, one = np.abs(error.mean(0)).max(initial=0), np.sqrt(error.var(0).sum() / max(promised.size, 1)) / root
    if off > 8 * one + 1e-5 * np.abs(promised).max(initial=0):
        raise LawBroken(
            f'{what}: the average of {len(draws)} draws is off by {off:.4g}, one standard error is {one:.4g}'
        )
    for name, along in {'': np.ones_like(promised), 'signed ': np.sign(promised), 'weighted ': promised}.items():
        sums = error @ along
        off, one = abs(sums.mean()), sums.std() / root
        if off > 6 * one + 1e-6 * np.abs(promised) @ np.abs(along):
            raise LawBroken(
                f'{what}: the {name}sum of all entries is off by {off:.4g} on average of {len(draws)} draws, '
                f'one standard error is {one:.4g}'
            )


def unbiased(draws: int = 400) -> Law:
    """Over many steps with the same gradients the updates are the mean on average, as `centred` judges it.

    >>> unbiased().name
    'unbiased'
    """

    def check(trial: Trial) -> None:
        once = trial.gradients(1)
        same = jax.tree.map(lambda g: np.broadcast_to(g, (draws, *g.shape[1:])), once)
        seen = jax.tree_util.tree_flatten_with_path(trial.run(same).updates)[0]
        for (path, u), mean in zip(seen, jax.tree.leaves(mean_rows(once)), strict=True):
            centred(u[:, 0].reshape(draws, -1), mean[0, 0].reshape(-1), f'leaf {jax.tree_util.keystr(path)}')

    return Law('unbiased', check)


def independent_noise(residual: Callable[[Any], Any]) -> Law:
    """Rounding errors average out over workers: given the same gradients, they are left with unlike residuals.

    Independent residuals e of W workers have |sum e|^2 near the sum of |e|^2, equal ones W times that; half way is
    broken. A worker alone keeps this law.

    Args:
        residual: from the optimiser state, the residuals, [W, ...] each.

    >>> independent_noise(lambda state: state.residual).name
    'noise of its own'
    """

    def check(trial: Trial) -> None:
        same = jax.tree.map(lambda g: np.broadcast_to(g[:, :1], g.shape), trial.gradients(1))
        leaves = jax.tree.leaves(to_numpy(residual(trial.run(same).state[1])))
        rests = np.concatenate([np.asarray(e, np.float64).reshape(trial.count, -1) for e in leaves], axis=1)
        apart, together = np.sum(rests**2), np.sum(rests.sum(0) ** 2)
        if trial.count > 1 and not 0 < together < (1 + trial.count) / 2 * apart:
            raise LawBroken(
                f'{trial.count} workers with the same gradients: their residuals e have |sum e|^2 = {together:.4g} '
                f'and sum |e|^2 = {apart:.4g}; promised are much the same, and more than zero'
            )

    return Law('noise of its own', check)


def fresh_keys(every: int = 1) -> Law:
    """No random key of the state is used twice: each is another after every `every` steps.

    >>> fresh_keys().name
    'draws anew'
    """

    def check(trial: Trial) -> None:
        state, seen = trial.simulated.init(), []
        for t in range(3 * every + 1):
            if t % every == 0:
                seen.append([jax.random.key_data(x) for x in jax.tree.leaves(state) if _is_key(x)])
            state, _ = trial.counted(state, trial.batch(t))
        if not seen[0]:
            raise LawBroken('the state has no random key (jax.random.key), promised is one')
        for i, keys in enumerate(zip(*seen, strict=True)):
            if len({np.asarray(key).tobytes() for key in keys}) != len(keys):
                raise LawBroken(f'key {i} of the state is the same after {every} steps, promised is another')

    return Law('draws anew' if every == 1 else f'draws anew every {every}', check)


def _is_key(x: jax.Array) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
