"""Laws on algorithms that train locally between synchronisation rounds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.trial import Path, Trial, largest, mean_residual, mean_rows


def synchronises(every: int) -> Law:
    """Every `every` steps all workers have the same parameters, to rounding; between rounds updates pass unchanged.

    >>> synchronises(4).name
    'synchronises every 4'
    """

    def check(trial: Trial) -> None:
        _check_rounds(trial.long_path(2 * every + 1), lambda t: t % every == 0)

    return Law(f'synchronises every {every}', check)


def synchronises_at(steps: Sequence[int]) -> Law:
    """Like `synchronises`, at these steps (counted from 1) and at no other step up to the last of them.

    >>> synchronises_at((1, 2, 4)).name
    'synchronises at 1, 2, 4'
    """

    def check(trial: Trial) -> None:
        path = trial.long_path(max(steps))
        until = jax.tree.map(lambda x: x[: max(steps)], path._replace(state=(), params=()))
        _check_rounds(until._replace(params=path.params), lambda t: t in steps)

    return Law(f'synchronises at {", ".join(map(str, steps))}', check)


def _check_rounds(path: Path, due: Callable[[int], bool]) -> None:
    """Checks a path whose step t, counted from 1, ends with a round if `due(t)`."""
    for t in range(len(jax.tree.leaves(path.updates)[0])):
        if not due(t + 1):
            updates, gradients = (jax.tree.map(lambda x, t=t: x[t], tree) for tree in (path.updates, path.gradients))
            same_bits(updates, gradients, f'updates at step {t}, between rounds')
        else:
            before, params = (jax.tree.map(lambda p, i=i: p[i], path.params) for i in (t, t + 1))
            first = jax.tree.map(lambda p: np.broadcast_to(p[:1], p.shape), params)
            close(params, first, f'the parameters of all workers after the round at step {t}', magnitudes=before)


def synchronises_in_turn(every: int) -> Law:
    """Each parameter is the same on all workers at one step in `every`, and moves by the incoming updates otherwise.

    With one worker the law always holds.

    >>> synchronises_in_turn(6).name
    'synchronises in turn, each every 6'
    """

    def check(trial: Trial) -> None:
        path = trial.long_path(2 * every)
        if trial.count == 1:
            return
        for (key_path, p), u, g in zip(
            jax.tree_util.tree_flatten_with_path(path.params)[0],
            jax.tree.leaves(path.updates),
            jax.tree.leaves(path.gradients),
            strict=True,
        ):
            name = jax.tree_util.keystr(key_path)
            rounds = [t for t in range(1, len(p)) if np.ptp(p[t], axis=0).max() <= 1e-6 * np.abs(p[t]).max()]
            if [t % every for t in rounds] != [rounds[0] % every] * (len(u) // every):
                raise LawBroken(f'{name} is the same on all workers after the steps {rounds}')
            local_steps = [t - 1 for t in range(1, len(p)) if t not in rounds]
            same_bits(u[local_steps], g[local_steps], f'updates of {name} between rounds')

    return Law(f'synchronises in turn, each every {every}', check)


def synchronises_near(every: int, tolerance: float) -> Law:
    """Every `every` steps workers synchronise at the mean of their parameters, to `tolerance` of the displacement.

    The displacement is the largest distance of an entry from the last round. An anchor that is not updated breaks the
    law, and so does a codec whose error does not shrink with the steps.

    >>> synchronises_near(4, 0.01).name
    'synchronises every 4 within 0.01'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.long_path(16 * every)  # the effect of a stale anchor grows with the distance from it
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
            off = largest(jax.tree.map(lambda a, x: a - x.mean(0), after, local))
            displacement = largest(jax.tree.map(np.subtract, local, start))
            if not off <= tolerance * displacement + 1e-6 * largest(after):
                raise LawBroken(
                    f'after the round at step {t} parameters are off the mean by {off:.4g}; the largest '
                    f'displacement is {displacement:.4g}, expected at most {tolerance:.4g} of it'
                )

    return Law(f'synchronises every {every} within {tolerance:.4g}', check)


def conserves_mean(residual: Callable[[Any], Any] | None = None) -> Law:
    """The mean of the workers' parameters moves by the mean of their incoming updates: rounds do not change it.

    Args:
        residual: where workers store a compression error: maps the optimiser state to the residuals, [W, ...] each.
            Their mean is then added to that of the parameters at the end.

    >>> conserves_mean().name
    'conserves the mean'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        expected = jax.tree.map(lambda g, p: p[:1] + g.cumsum(0), mean_rows(path.gradients), mean_rows(path.params))
        actual = jax.tree.map(lambda p: p[1:], mean_rows(path.params))
        if residual is not None:
            actual = jax.tree.map(lambda p, e: p[-1] + e, actual, mean_residual(residual, path))
            expected = jax.tree.map(lambda p: p[-1], expected)
        close(actual, expected, "the mean of the workers' parameters", 1e-5)

    return Law('conserves the mean', check)


def alike_equals_one() -> Law:
    """Workers with the same incoming updates all move as one worker does with these.

    >>> alike_equals_one().name
    'alike workers equal one'
    """

    def check(trial: Trial) -> None:
        alike = jax.tree.map(lambda g: np.broadcast_to(g[:, :1], g.shape), trial.path.gradients)
        one = replace(trial, count=1)
        # Displacements are compared, because the random start depends on the number of workers.
        displacements = lambda path: jax.tree.map(lambda p: p.astype(np.float64) - p[0], path.params)  # noqa: E731
        of_one = displacements(one.run(jax.tree.map(lambda g: g[:, :1], alike)))
        actual = displacements(trial.run(alike))
        expected = jax.tree.map(lambda p, like: np.broadcast_to(p, like.shape), of_one, actual)
        close(actual, expected, 'the displacements of alike workers', 1e-5, magnitudes=trial.path.params)

    return Law('alike workers equal one', check)


def conserves_sum(centre: Callable[[Any], Any]) -> Law:
    """The sum of the workers' parameters and of a centre grows by the sum of the incoming updates, and by nothing else.

    Args:
        centre: maps the optimiser state to the centre, in the shape of the parameters.

    >>> conserves_sum(lambda state: state.centre).name
    'conserves the sum'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        actual = jax.tree.map(lambda p, c: p[-1].sum(0) + np.asarray(c), path.params, centre(path.state[1]))
        expected = jax.tree.map(lambda p, g: (trial.count + 1) * p[0, 0] + g.sum((0, 1)), path.params, path.gradients)
        close(actual, expected, "the sum of the workers' parameters and the centre", 1e-5, magnitudes=path.params)

    return Law('conserves the sum', check)
