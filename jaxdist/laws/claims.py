"""Laws that an algorithm may claim about what it does to the updates that go through it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.trial import Path, Trial, mean_rows


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
        largest = _largest(trial.path.gradients)
        off = _largest(jax.tree.map(np.subtract, trial.path.updates, mean_rows(trial.path.gradients)))
        if not off <= tolerance * largest * (1 + 1e-5):
            raise LawBroken(f'off the mean by {off:.4g}, promised at most {tolerance:.4g} of {largest:.4g}')

    return Law(f'within {tolerance:.4g} of the mean', check)


def loses_nothing(residual: Callable[[Any], Any]) -> Law:
    """Error feedback: what was applied, and the mean of what workers still hold, is the sum of the means put in.

    Args:
        residual: from the optimiser state, the residuals, in the shape of the parameters.

    >>> loses_nothing(lambda state: state.residual).name
    'feedback loses nothing'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        held = _mean_held(residual, path)
        applied = jax.tree.map(lambda u: u[:, 0].astype(np.float64).sum(0), path.updates)
        put_in = jax.tree.map(lambda g: g.astype(np.float64).mean(1).sum(0), path.gradients)
        scale = _largest(path.gradients)
        for (name, a), e, p in zip(
            jax.tree_util.tree_flatten_with_path(applied)[0],
            jax.tree.leaves(held),
            jax.tree.leaves(put_in),
            strict=True,
        ):
            off = _largest(a + e - p)
            if not off <= 1e-5 * scale:
                raise LawBroken(
                    f'leaf {jax.tree_util.keystr(name)}: {off:.4g} was lost or made up, of gradients up to {scale:.4g}'
                )

    return Law('feedback loses nothing', check)


def delays(steps: int) -> Law:
    """An update comes out `steps` steps after it went in, with the same bits; before that, zeros.

    >>> delays(3).name
    'delays by 3'
    """

    def check(trial: Trial) -> None:
        def late(g: np.ndarray) -> np.ndarray:
            return np.concatenate([np.zeros_like(g[:steps]), g[: len(g) - steps]])

        path = trial.lasting(2 * steps + 2)
        same_bits(path.updates, jax.tree.map(late, path.gradients), f'updates of {steps} steps ago')

    return Law(f'delays by {steps}', check)


def meets(every: int) -> Law:
    """Every `every` steps all workers have the same parameters, to rounding; in between updates pass untouched.

    >>> meets(4).name
    'meets every 4'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.lasting(2 * every + 1)
        for t in range(len(jax.tree.leaves(path.updates)[0])):
            if (t + 1) % every:
                seen, put_in = (jax.tree.map(lambda x, t=t: x[t], tree) for tree in (path.updates, path.gradients))
                same_bits(seen, put_in, f'updates at step {t}, between meetings')
            else:
                before, params = (jax.tree.map(lambda p, i=i: p[i], path.params) for i in (t, t + 1))
                first = jax.tree.map(lambda p: np.broadcast_to(p[:1], p.shape), params)
                what = f'the parameters of all workers after the meeting at step {t}'
                close(params, first, what, beside=before)

    return Law(f'meets every {every}', check)


def near_meeting(every: int, tolerance: float) -> Law:
    """Every `every` steps workers meet at the mean of where they would be, off by `tolerance` times how far any came.

    How far is the largest distance of an entry from the last meeting. An anchor that stays behind breaks this, and a
    codec whose error does not shrink with the steps.

    >>> near_meeting(4, 0.01).name
    'meets every 4 within 0.01'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.lasting(16 * every)  # an anchor that stays behind shows the more, the farther they have come
        for t in range(every - 1, len(jax.tree.leaves(path.updates)[0]), every):
            start, before, after, moved = (
                jax.tree.map(lambda x, i=i: x[i].astype(np.float64), tree)
                for tree, i in (
                    (path.params, t + 1 - every),
                    (path.params, t),
                    (path.params, t + 1),
                    (path.gradients, t),
                )
            )
            local = jax.tree.map(np.add, before, moved)
            off = _largest(jax.tree.map(lambda a, x: a - x.mean(0), after, local))
            far = _largest(jax.tree.map(np.subtract, local, start))
            if not off <= tolerance * far + 1e-6 * _largest(after):
                raise LawBroken(
                    f'the meeting at step {t} is off the mean by {off:.4g}; the farthest came {far:.4g}, '
                    f'promised are {tolerance:.4g} of that at most'
                )

    return Law(f'meets every {every} within {tolerance:.4g}', check)


def conserves_mean(residual: Callable[[Any], Any] | None = None) -> Law:
    """The mean of the workers' parameters moves by the mean of their updates, as if nothing had been exchanged.

    Args:
        residual: where workers hold back what a codec left out: from the optimiser state, the residuals, [W, ...]
            each. At the end, their mean is counted with that of the parameters.

    >>> conserves_mean().name
    'conserves the mean'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        moved = jax.tree.map(lambda g, p: p[:1] + g.cumsum(0), mean_rows(path.gradients), mean_rows(path.params))
        seen = jax.tree.map(lambda p: p[1:], mean_rows(path.params))
        if residual is not None:
            held = _mean_held(residual, path)
            seen, moved = jax.tree.map(lambda p, e: p[-1] + e, seen, held), jax.tree.map(lambda p: p[-1], moved)
        close(seen, moved, "the mean of the workers' parameters", 1e-5)

    return Law('conserves the mean', check)


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


def _mean_held(residual: Callable[[Any], Any], path: Path) -> Any:
    """The mean over workers of what is held at the end, in the shape of the parameters; zeros where nothing is."""
    like: Any = jax.tree.structure(path.params)
    leaves = zip(like.flatten_up_to(residual(path.state[1])), jax.tree.leaves(path.params), strict=True)
    return like.unflatten(
        [np.zeros(p.shape[2:]) if e is None else np.asarray(e, np.float64).mean(0) for e, p in leaves]
    )


def _largest(tree: Any) -> float:
    """The largest magnitude in any leaf; NaN if there is one."""
    return float(np.max([np.abs(x.astype(np.float64)).max(initial=0) for x in jax.tree.leaves(tree)]))
