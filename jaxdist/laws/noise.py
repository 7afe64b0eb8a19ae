"""Laws on stochastic rounding: it is unbiased, independent on each worker, and its random keys are not used twice."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist.laws.law import Law, LawBroken, to_numpy
from jaxdist.laws.trial import Trial, mean_rows


def centred(draws: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Asserts that random vectors have the expected mean, entry by entry and in sums over all entries.

    An entry may be off by 8 standard errors (pooled over the entries), a sum by 6 standard errors of the sum. Sums show
    a small bias that all entries have. They are unweighted, with the expected signs, and weighted by the expected
    values: the last two show rounding towards zero.

    Args:
        draws: independent draws of the vector, [draws, n].
        expected: the expected mean, [n].
        name: the vector's name, for the message.

    Raises:
        LawBroken: with the bias and its standard error.

    >>> centred(np.array([[0.0, 2.0], [2.0, 0.0]]), np.ones(2), 'the sums')
    """
    error = draws.astype(np.float64) - expected
    root = np.sqrt(len(draws))
    bias = np.abs(error.mean(0)).max(initial=0)
    standard_error = np.sqrt(error.var(0).sum() / max(expected.size, 1)) / root
    if bias > 8 * standard_error + 1e-5 * np.abs(expected).max(initial=0):
        raise LawBroken(
            f'{name}: the average of {len(draws)} draws is off by {bias:.4g}, one standard error is '
            f'{standard_error:.4g}'
        )
    for kind, weights in {'': np.ones_like(expected), 'signed ': np.sign(expected), 'weighted ': expected}.items():
        sums = error @ weights
        bias, standard_error = abs(sums.mean()), sums.std() / root
        if bias > 6 * standard_error + 1e-6 * np.abs(expected) @ np.abs(weights):
            raise LawBroken(
                f'{name}: the {kind}sum of all entries is off by {bias:.4g} on average of {len(draws)} draws, '
                f'one standard error is {standard_error:.4g}'
            )


def unbiased(draws: int = 400) -> Law:
    """Over many steps with the same gradients, the average update is their mean over workers; tested by `centred`.

    >>> unbiased().name
    'unbiased'
    """

    def check(trial: Trial) -> None:
        gradients = trial.gradients(1)
        repeated = jax.tree.map(lambda g: np.broadcast_to(g, (draws, *g.shape[1:])), gradients)
        updates = jax.tree_util.tree_flatten_with_path(trial.run(repeated).updates)[0]
        for (path, u), mean in zip(updates, jax.tree.leaves(mean_rows(gradients)), strict=True):
            centred(u[:, 0].reshape(draws, -1), mean[0, 0].reshape(-1), f'leaf {jax.tree_util.keystr(path)}')

    return Law('unbiased', check)


def independent_noise(residual: Callable[[Any], Any]) -> Law:
    """Workers round independently: from the same gradients they get different residuals.

    For independent residuals e of W workers, |sum e|^2 is near the sum of |e|^2; for equal ones it is W times that.
    The law is broken from half-way on. One worker always keeps it.

    Args:
        residual: maps the optimiser state to the residuals, [W, ...] each.

    >>> independent_noise(lambda state: state.residual).name
    'independent noise'
    """

    def check(trial: Trial) -> None:
        same = jax.tree.map(lambda g: np.broadcast_to(g[:, :1], g.shape), trial.gradients(1))
        leaves = jax.tree.leaves(to_numpy(residual(trial.run(same).state[1])))
        residuals = np.concatenate([np.asarray(e, np.float64).reshape(trial.count, -1) for e in leaves], axis=1)
        sum_of_squares, square_of_sum = np.sum(residuals**2), np.sum(residuals.sum(0) ** 2)
        if trial.count > 1 and not 0 < square_of_sum < (1 + trial.count) / 2 * sum_of_squares:
            raise LawBroken(
                f'{trial.count} workers with the same gradients: their residuals e have |sum e|^2 = '
                f'{square_of_sum:.4g} and sum |e|^2 = {sum_of_squares:.4g}; expected are nearly equal values above zero'
            )

    return Law('independent noise', check)


def fresh_keys(every: int = 1) -> Law:
    """Every random key of the state is a new one after every `every` steps; none is used twice.

    >>> fresh_keys().name
    'fresh keys'
    """

    def check(trial: Trial) -> None:
        state, history = trial.simulated.init(), []
        for t in range(3 * every + 1):
            if t % every == 0:
                history.append([jax.random.key_data(x) for x in jax.tree.leaves(state) if _is_key(x)])
            state, _ = trial.counted_step(state, trial.batch(t))
        if not history[0]:
            raise LawBroken('the state has no random key (jax.random.key), expected one')
        for i, keys in enumerate(zip(*history, strict=True)):
            if len({np.asarray(key).tobytes() for key in keys}) != len(keys):
                raise LawBroken(f'key {i} of the state is the same after {every} steps, expected a new one')

    return Law('fresh keys' if every == 1 else f'fresh keys every {every}', check)


def _is_key(x: jax.Array) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
