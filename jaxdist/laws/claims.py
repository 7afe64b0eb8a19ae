"""Laws on how an algorithm transforms the updates that it is given."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.trial import Path, Trial, largest, mean_residual, mean_rows


def agrees() -> Law:
    """The updates of all workers have the same bits at every step, and the parameters are typed as replicated.

    >>> agrees().name
    'workers agree bit for bit'
    """

    def check(trial: Trial) -> None:
        layout = jax.tree_util.tree_flatten_with_path(trial.simulated.layout[0])[0]
        varying = [jax.tree_util.keystr(path) for path, varies in layout if varies]
        if varying:
            raise LawBroken(f'by their types the parameters {varying} may differ between workers')
        for t in range(len(jax.tree.leaves(trial.path.updates)[0])):
            rows = jax.tree.map(lambda u, t=t: u[t], trial.path.updates)
            first = jax.tree.map(lambda u: np.broadcast_to(u[:1], u.shape), rows)
            same_bits(rows, first, f'the updates of all workers at step {t} and those of worker 0')

    return Law('workers agree bit for bit', check)


def exact_mean() -> Law:
    """Each worker's update is the mean over workers, to rounding.

    >>> exact_mean().name
    'exact mean'
    """
    return Law(
        'exact mean', lambda trial: close(trial.path.updates, mean_rows(trial.path.gradients), 'the mean over workers')
    )


def near_mean(tolerance: float) -> Law:
    """Each update differs from the mean over workers by at most `tolerance` times the largest magnitude of a gradient.

    >>> near_mean(0.01).name
    'within 0.01 of the mean'
    """

    def check(trial: Trial) -> None:
        scale = largest(trial.path.gradients)
        off = largest(jax.tree.map(np.subtract, trial.path.updates, mean_rows(trial.path.gradients)))
        # Written so that NaN breaks the law too.
        if not off <= tolerance * scale * (1 + 1e-5):
            raise LawBroken(f'off the mean by {off:.4g}, expected at most {tolerance:.4g} of {scale:.4g}')

    return Law(f'within {tolerance:.4g} of the mean', check)


def keeps_still(rounding: float = 0.0) -> Law:
    """A tensor that has no gradient on any worker does not move.

    Algorithms that move parameters without a gradient, by weight decay for instance, break it.

    Args:
        rounding: the relative change that is allowed; the mean of equal parameters need not be one of them.

    >>> keeps_still().name
    'what has no gradient does not move'
    """

    def check(trial: Trial) -> None:
        for name in trial.shapes:
            gradients = trial.gradients(6)
            params = trial.run({**gradients, name: np.zeros_like(gradients[name])}).params[name]
            first = np.broadcast_to(params[:1], params.shape)
            if not np.allclose(params, first, rtol=rounding, atol=0):
                off = np.abs(params.astype(np.float64) - first.astype(np.float64)).max()
                raise LawBroken(f'{name!r} has no gradient and moves by {off:.4g} in 6 steps')

    return Law('what has no gradient does not move', check)


def conserves_feedback(residual: Callable[[Any], Any]) -> Law:
    """Error feedback: the applied updates plus the mean of the residuals are the sum of the mean gradients.

    Args:
        residual: maps the optimiser state to the residuals, in the shape of the parameters.

    >>> conserves_feedback(lambda state: state.residual).name
    'conserves feedback'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        residuals = mean_residual(residual, path)
        applied = jax.tree.map(lambda u: u[:, 0].astype(np.float64).sum(0), path.updates)
        inputs = jax.tree.map(lambda g: g.astype(np.float64).mean(1).sum(0), path.gradients)
        scale = largest(path.gradients)
        for (name, a), e, g in zip(
            jax.tree_util.tree_flatten_with_path(applied)[0],
            jax.tree.leaves(residuals),
            jax.tree.leaves(inputs),
            strict=True,
        ):
            off = largest(a + e - g)
            if not off <= 1e-5 * scale:
                raise LawBroken(
                    f'leaf {jax.tree_util.keystr(name)}: applied updates and residuals are off the sum of gradients '
                    f'by {off:.4g}; gradients are up to {scale:.4g}'
                )

    return Law('conserves feedback', check)


def matches_reference(loop: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Law:
    """The updates are those of a reference implementation: a plain NumPy loop over the workers, to rounding.

    Args:
        loop: `(incoming updates [T, W, ...], initial value [...]) -> outgoing updates [T, W, ...]` of one parameter,
            in float64.

    >>> matches_reference(lambda updates, start: updates).name
    'matches its reference'
    """

    def check(trial: Trial) -> None:
        path = trial.path
        start = jax.tree.map(lambda p: p[0, 0].astype(np.float64), path.params)
        expected = jax.tree.map(lambda g, s: loop(g.astype(np.float64), s), path.gradients, start)
        # An update may be a difference of parameters, which are rounded at their own magnitude.
        magnitudes = jax.tree.map(lambda p: np.abs(p).max(keepdims=True), path.params)
        close(path.updates, expected, 'the updates', 1e-5, magnitudes=magnitudes)

    return Law('matches its reference', check)


def equals(line: str) -> Law:
    """The updates are those of another line, to rounding.

    >>> equals('identity()').name
    "equals 'identity()'"
    """

    def check(trial: Trial) -> None:
        other = Trial(
            lines.build(line, axis=trial.axis), trial.count, trial.shapes, trial.dtype, trial.seed, trial.axis
        )
        close(trial.path.updates, other.path.updates, f'the updates of {line!r}')

    return Law(f'equals {line!r}', check)
