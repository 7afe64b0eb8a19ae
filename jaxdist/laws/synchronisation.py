"""Laws on algorithms that let workers train alone between meetings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxdist.laws.law import Law, LawBroken, close, same_bits
from jaxdist.laws.trial import Path, Trial, largest, mean_residual, mean_rows


def synchronises(every: int) -> Law:
    """Every `every` steps all workers have the same parameters, to rounding; in between updates pass untouched.

    >>> synchronises(4).name
    'synchronises every 4'
    """

    def check(trial: Trial) -> None:
        _check_meetings(trial.lasting(2 * every + 1), lambda t: t % every == 0)

    return Law(f'synchronises every {every}', check)


def synchronises_at(steps: Sequence[int]) -> Law:
    """As `synchronises`, at these steps (the first is 1) and at no other up to the last of them.

    >>> synchronises_at((1, 2, 4)).name
    'synchronises at 1, 2, 4'
    """

    def check(trial: Trial) -> None:
        path = trial.lasting(max(steps))
        until = jax.tree.map(lambda x: x[: max(steps)], path._replace(state=(), params=()))
        _check_meetings(until._replace(params=path.params), lambda t: t in steps)

    return Law(f'synchronises at {", ".join(map(str, steps))}', check)


def _check_meetings(path: Path, due: Callable[[int], bool]) -> None:
    for t in range(len(jax.tree.leaves(path.updates)[0])):
        if not due(t + 1):
            seen, put_in = (jax.tree.map(lambda x, t=t: x[t], tree) for tree in (path.updates, path.gradients))
            same_bits(seen, put_in, f'updates at step {t}, between meetings')
        else:
            before, params = (jax.tree.map(lambda p, i=i: p[i], path.params) for i in (t, t + 1))
            first = jax.tree.map(lambda p: np.broadcast_to(p[:1], p.shape), params)
            what = f'the parameters of all workers after the meeting at step {t}'
            close(params, first, what, beside=before)


def synchronises_in_turn(every: int) -> Law:
    """Each parameter is the same on all workers once in `every` steps, and moves by the updates put in otherwise.

    Of one worker this says nothing: it is the same always.

    >>> synchronises_in_turn(6).name
    'synchronises in turn, each every 6'
    """

    def check(trial: Trial) -> None:
        path = trial.lasting(2 * every)
        if trial.count == 1:
            return
        for (name, p), u, g in zip(
            jax.tree_util.tree_flatten_with_path(path.params)[0],
            jax.tree.leaves(path.updates),
            jax.tree.leaves(path.gradients),
            strict=True,
        ):
            met = [t for t in range(1, len(p)) if np.ptp(p[t], axis=0).max() <= 1e-6 * np.abs(p[t]).max()]
            if [t % every for t in met] != [met[0] % every] * (len(u) // every):
                raise LawBroken(f'{jax.tree_util.keystr(name)} is the same on all workers after the steps {met}')
            apart = [t - 1 for t in range(1, len(p)) if t not in met]
            same_bits(u[apart], g[apart], f'updates of {jax.tree_util.keystr(name)} between meetings')

    return Law(f'synchronises in turn, each every {every}', check)


def synchronises_near(every: int, tolerance: float) -> Law:
    """Every `every` steps workers meet at the mean of where they would be, off by `tolerance` times how far any came.

    How far is the largest distance of an entry from the last meeting. An anchor that stays behind breaks this, and a
    codec whose error does not shrink with the steps.

    >>> synchronises_near(4, 0.01).name
    'synchronises every 4 within 0.01'
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
            off = largest(jax.tree.map(lambda a, x: a - x.mean(0), after, local))
            far = largest(jax.tree.map(np.subtract, local, start))
            if not off <= tolerance * far + 1e-6 * largest(after):
                raise LawBroken(
                    f'the meeting at step {t} is off the mean by {off:.4g}; the farthest came {far:.4g}, '
                    f'promised are {tolerance:.4g} of that at most'
                )

    return Law(f'synchronises every {every} within {tolerance:.4g}', check)


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
            held = mean_residual(residual, path)
            seen, moved = jax.tree.map(lambda p, e: p[-1] + e, seen, held), jax.tree.map(lambda p: p[-1], moved)
        close(seen, moved, "the mean of the workers' parameters", 1e-5)

    return Law('conserves the mean', check)


def alike_equals_one() -> Law:
    """Workers that put in the same are all where one worker alone would be.

    >>> alike_equals_one().name
    'alike workers equal one'
    """

    def check(trial: Trial) -> None:
        alike = jax.tree.map(lambda g: np.broadcast_to(g[:, :1], g.shape), trial.path.gradients)
        one = replace(trial, count=1)
        # Of another number of workers the start is another one.
        moved = lambda path: jax.tree.map(lambda p: p.astype(np.float64) - p[0], path.params)  # noqa: E731
        alone, seen = moved(one.run(jax.tree.map(lambda g: g[:, :1], alike))), moved(trial.run(alike))
        promised = jax.tree.map(lambda p, like: np.broadcast_to(p, like.shape), alone, seen)
        close(seen, promised, 'how far workers come that are alike', 1e-5, beside=trial.path.params)

    return Law('alike workers equal one', check)


def conserves_sum(centre: Callable[[Any], Any]) -> Law:
    """The sum of the workers' parameters and of a centre grows by what the workers put in, and by nothing else.

    Args:
        centre: from the optimiser state, the centre, in the shape of the parameters.

    >>> conserves_sum(lambda state: state.centre).name
    'conserves the sum'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        seen = jax.tree.map(lambda p, c: p[-1].sum(0) + np.asarray(c), path.params, centre(path.state[1]))
        put_in = jax.tree.map(lambda p, g: (trial.count + 1) * p[0, 0] + g.sum((0, 1)), path.params, path.gradients)
        close(seen, put_in, "the sum of the workers' parameters and the centre", 1e-5, beside=path.params)

    return Law('conserves the sum', check)
