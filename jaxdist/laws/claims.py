"""Laws that an algorithm may claim about what it does to the updates that go through it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, LawBroken, close, same_bits, to_numpy
from jaxdist.laws.trial import Path, Trial, mean_rows


def agrees() -> Law:
    """Every worker ends each step with the same bits, and the types prove it.

    >>> agrees().name
    'agrees'
    """

    def check(trial: Trial) -> None:
        own = [jax.tree_util.keystr(p) for p, v in jax.tree_util.tree_flatten_with_path(trial.simulated.layout[0])[0] if v]
        if own:
            raise LawBroken(f'by their types the parameters {own} may differ between workers')
        for t in range(len(jax.tree.leaves(trial.path.updates)[0])):
            rows = jax.tree.map(lambda u, t=t: u[t], trial.path.updates)
            first = jax.tree.map(lambda u: np.broadcast_to(u[:1], u.shape), rows)
            same_bits(rows, first, f'the updates of all workers at step {t} and those of worker 0')

    return Law('agrees', check)


def exact_mean() -> Law:
    """Each worker's update is the mean of all workers', to rounding.

    >>> exact_mean().name
    'exact mean'
    """
    return Law('exact mean', lambda trial: close(trial.path.updates, mean_rows(trial.path.gradients), 'the mean over workers'))


def weighted_mean() -> Law:
    """Given each worker's `weight`, the update is the mean weighted by it; a worker may weigh nothing.

    >>> weighted_mean().name
    'weighted mean'
    """

    def check(trial: Trial) -> None:
        gradients = trial.gradients(4)
        weights = np.random.default_rng(trial.seed).integers(1, 9, (4, trial.count)).astype(np.float32)
        weights[0, : trial.count - 1] = 0
        seen = trial.run(gradients, weights).updates

        def promised(g: np.ndarray) -> np.ndarray:
            w = weights.reshape(*weights.shape, *(1,) * (g.ndim - 2)).astype(np.float64)
            return np.broadcast_to((g * w).sum(1, keepdims=True) / w.sum(1, keepdims=True), g.shape)

        close(seen, jax.tree.map(promised, gradients), 'the weighted mean over workers')

    return Law('weighted mean', check)


def near_mean(tolerance: float) -> Law:
    """Each update is the mean of all workers', off by `tolerance` times the largest magnitude of any worker's at most.

    >>> near_mean(0.01).name
    'within 0.01 of the mean'
    """

    def check(trial: Trial) -> None:
        largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(trial.path.gradients))
        pairs = zip(jax.tree.leaves(trial.path.updates), jax.tree.leaves(mean_rows(trial.path.gradients)), strict=True)
        off = max(float(np.abs(u - m).max()) for u, m in pairs)
        if not off <= tolerance * largest * (1 + 1e-5):
            raise LawBroken(f'off the mean by {off:.4g}, promised at most {tolerance:.4g} of {largest:.4g}')

    return Law(f'within {tolerance:.4g} of the mean', check)


def unbiased(draws: int = 400) -> Law:
    """Over many steps with the same gradients the updates are the mean on average: 8 standard errors at most.

    >>> unbiased().name
    'unbiased'
    """

    def check(trial: Trial) -> None:
        once = trial.gradients(1)
        same = jax.tree.map(lambda g: np.broadcast_to(g, (draws, *g.shape[1:])), once)
        seen = trial.run(same).updates
        for (path, u), mean in zip(
            jax.tree_util.tree_flatten_with_path(seen)[0], jax.tree.leaves(mean_rows(once)), strict=True
        ):
            off = float(np.abs(u.astype(np.float64).mean(0) - mean[0]).max())
            error = float(np.sqrt(u.astype(np.float64).var(0).mean() / draws))
            if off > 8 * error + 1e-5 * np.abs(mean).max():
                name = jax.tree_util.keystr(path)
                raise LawBroken(f'leaf {name}: the average of {draws} draws is off by {off:.4g}, one standard error is {error:.4g}')

    return Law('unbiased', check)


def loses_nothing(residual: Callable[[Any], Any]) -> Law:
    """Error feedback: what was applied, and the mean of what workers still hold, is the sum of the means put in.

    Args:
        residual: from the optimiser state, the residuals, in the shape of the parameters.

    >>> loses_nothing(lambda state: state.residual).name
    'feedback loses nothing'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        held = jax.tree.map(lambda e: np.asarray(e, np.float64).mean(0), to_numpy(residual(path.state[1])))
        applied = jax.tree.map(lambda u: u[:, 0].astype(np.float64).sum(0), path.updates)
        put_in = jax.tree.map(lambda g: g.astype(np.float64).mean(1).sum(0), path.gradients)
        scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(path.gradients))
        for (name, a), e, p in zip(
            jax.tree_util.tree_flatten_with_path(applied)[0], jax.tree.leaves(held), jax.tree.leaves(put_in), strict=True
        ):
            off = float(np.abs(a + e - p).max())
            if not off <= 1e-5 * scale:
                raise LawBroken(f'leaf {jax.tree_util.keystr(name)}: {off:.4g} was lost or made up, of gradients up to {scale:.4g}')

    return Law('feedback loses nothing', check)


def own_noise(residual: Callable[[Any], Any]) -> Law:
    """Random rounding differs between workers: with the same gradients, they are left with different residuals.

    >>> own_noise(lambda state: state.residual).name
    'noise of its own'
    """

    def check(trial: Trial) -> None:
        same = jax.tree.map(lambda g: np.broadcast_to(g[:, :1], g.shape), trial.gradients(1))
        rests = jax.tree.leaves(to_numpy(residual(trial.run(same).state[1])))
        if trial.count > 1 and max(float(np.abs(e[0] - e[1]).max()) for e in rests) == 0:
            raise LawBroken('workers 0 and 1 rounded alike, so that their errors do not average out')

    return Law('noise of its own', check)


def delays(steps: int) -> Law:
    """An update comes out `steps` steps after it went in, with the same bits; before that, zeros.

    >>> delays(3).name
    'delays by 3'
    """

    def check(trial: Trial) -> None:
        def late(g: np.ndarray) -> np.ndarray:
            return np.concatenate([np.zeros_like(g[:steps]), g[: len(g) - steps]])

        same_bits(trial.path.updates, jax.tree.map(late, trial.path.gradients), f'updates of {steps} steps ago')

    return Law(f'delays by {steps}', check)


def meets(every: int) -> Law:
    """Every `every` steps all workers have the same parameters, to rounding; in between updates pass untouched.

    >>> meets(4).name
    'meets every 4'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        for t in range(len(jax.tree.leaves(path.updates)[0])):
            if (t + 1) % every:
                now = [jax.tree.map(lambda x, t=t: x[t], tree) for tree in (path.updates, path.gradients)]
                same_bits(*now, f'updates at step {t}, between meetings')
            else:
                params = jax.tree.map(lambda p, t=t: p[t + 1], path.params)
                first = jax.tree.map(lambda p: np.broadcast_to(p[:1], p.shape), params)
                close(params, first, f'the parameters of all workers after the meeting at step {t}')

    return Law(f'meets every {every}', check)


def conserves_mean() -> Law:
    """The mean of the workers' parameters moves by the mean of their updates, as if nothing had been exchanged.

    >>> conserves_mean().name
    'conserves the mean'
    """

    def check(trial: Trial) -> None:
        moved = jax.tree.map(lambda g, p: p[:1] + g.cumsum(0), mean_rows(trial.path.gradients), mean_rows(trial.path.params))
        seen = jax.tree.map(lambda p: p[1:], mean_rows(trial.path.params))
        close(seen, moved, "the mean of the workers' parameters", 1e-5)

    return Law('conserves the mean', check)


def equals(line: str) -> Law:
    """It does what another line does, to rounding.

    >>> equals('identity()').name
    "equals 'identity()'"
    """

    def check(trial: Trial) -> None:
        other = Trial(lines.build(line, axis=trial.axis), trial.count, trial.shapes, trial.dtype, trial.seed, trial.axis)
        close(trial.path.updates, other.path.updates, f'the updates of {line!r}')

    return Law(f'equals {line!r}', check)
