"""Laws that an algorithm may claim about what it does to the updates that go through it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.trial import Path, Trial, largest, mean_residual, mean_rows


def agrees() -> Law:
    """Every worker ends each step with the same bits, and the types prove it.

    >>> agrees().name
    'agrees'
    """

    def check(trial: Trial) -> None:
        own = [
            jax.tree_util.keystr(p) for p, v in jax.tree_util.tree_flatten_with_path(trial.simulated.layout[0])[0] if v
        ]
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
    return Law(
        'exact mean', lambda trial: close(trial.path.updates, mean_rows(trial.path.gradients), 'the mean over workers')
    )


def near_mean(tolerance: float) -> Law:
    """Each update is the mean of all workers', off by `tolerance` times the largest magnitude of any worker's at most.

    >>> near_mean(0.01).name
    'within 0.01 of the mean'
    """

    def check(trial: Trial) -> None:
        most = largest(trial.path.gradients)
        off = largest(jax.tree.map(np.subtract, trial.path.updates, mean_rows(trial.path.gradients)))
        if not off <= tolerance * most * (1 + 1e-5):
            raise LawBroken(f'off the mean by {off:.4g}, promised at most {tolerance:.4g} of {most:.4g}')

    return Law(f'within {tolerance:.4g} of the mean', check)


def conserves_feedback(residual: Callable[[Any], Any]) -> Law:
    """Error feedback: what was applied, and the mean of what workers still hold, is the sum of the means put in.

    Args:
        residual: from the optimiser state, the residuals, in the shape of the parameters.

    >>> conserves_feedback(lambda state: state.residual).name
    'conserves feedback'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        held = mean_residual(residual, path)
        applied = jax.tree.map(lambda u: u[:, 0].astype(np.float64).sum(0), path.updates)
        put_in = jax.tree.map(lambda g: g.astype(np.float64).mean(1).sum(0), path.gradients)
        scale = largest(path.gradients)
        for (name, a), e, p in zip(
            jax.tree_util.tree_flatten_with_path(applied)[0],
            jax.tree.leaves(held),
            jax.tree.leaves(put_in),
            strict=True,
        ):
            off = largest(a + e - p)
            if not off <= 1e-5 * scale:
                raise LawBroken(
                    f'leaf {jax.tree_util.keystr(name)}: {off:.4g} was lost or made up, of gradients up to {scale:.4g}'
                )

    return Law('conserves feedback', check)


def matches_reference(loop: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Law:
    """It does what a plain loop over the workers does, to rounding.

    Args:
        loop: `(updates put in [T, W, ...], start [...]) -> updates that come out [T, W, ...]`, of one parameter, in
            float64.

    >>> matches_reference(lambda puts, start: puts).name
    'matches its reference'
    """

    def check(trial: Trial) -> None:
        path = trial.path
        start = jax.tree.map(lambda p: p[0, 0].astype(np.float64), path.params)
        promised = jax.tree.map(lambda g, s: loop(g.astype(np.float64), s), path.gradients, start)
        moved = jax.tree.map(lambda p: np.abs(p).max(keepdims=True), path.params)
        close(path.updates, promised, 'the updates', 1e-5, beside=moved)

    return Law('matches its reference', check)


def equals(line: str) -> Law:
    """It does what another line does, to rounding.

    >>> equals('identity()').name
    "equals 'identity()'"
    """

    def check(trial: Trial) -> None:
        other = Trial(
            lines.build(line, axis=trial.axis), trial.count, trial.shapes, trial.dtype, trial.seed, trial.axis
        )
        close(trial.path.updates, other.path.updates, f'the updates of {line!r}')

    return Law(f'equals {line!r}', check)
