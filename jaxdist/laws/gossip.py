"""Laws on algorithms in which workers mix with their neighbours."""

from typing import Any

import jax
import numpy as np

from jaxdist.graphs.graph import Graph, spectral_gap
from jaxdist.laws.law import Law, LawBroken, close
from jaxdist.laws.trial import Path, Trial, mean_rows

MOVES = 2
"""Cycles in which workers move apart; in those after them they only mix."""


def brings_closer(graph: Graph, every: int = 1) -> Law:
    """While workers do not move by themselves, their differences shrink as fast as the graph's spectral gap says.

    Over a cycle of the graph's rounds what differs from the mean, as a norm, is at most (1 - gap) ** rounds of it.

    Args:
        graph: the graph of the communication rounds.
        every: steps from one round to the next.

    >>> from jaxdist.graphs.circulant import ring
    >>> brings_closer(ring()).name
    'brings workers closer by the gap of ring()'
    """

    def check(trial: Trial) -> None:
        rounds = graph.rounds(trial.count)
        cycle = len(rounds) * every
        bound = (1 - spectral_gap(rounds)) ** len(rounds)
        apart, rounding = _apart(trial, MOVES * cycle, 3 * cycle)
        for t in range(MOVES * cycle, len(apart) - cycle, cycle):
            if apart[t + cycle] > bound * apart[t] * (1 + 1e-5) + rounding:
                raise LawBroken(
                    f'at step {t} workers are {apart[t]:.4g} apart, and {cycle} steps later {apart[t + cycle]:.4g}; '
                    f'expected at most {bound * apart[t]:.4g}, as the spectral gap is {spectral_gap(rounds):.4g}'
                )
        if bound > 0.01 and not apart[MOVES * cycle] > 100 * rounding:
            raise LawBroken(f'workers with different updates are only {apart[MOVES * cycle]:.4g} apart')

    return Law(f'brings workers closer by the gap of {graph.name}', check)


def approaches_consensus(share: float, steps: int = 12) -> Law:
    """While workers do not move by themselves, their differences come down to this share in so many steps.

    >>> approaches_consensus(0.3).name
    'differences come down to 0.3 in 12 steps'
    """

    def check(trial: Trial) -> None:
        apart, rounding = _apart(trial, MOVES, steps)
        if not apart[-1] <= share * apart.max() + rounding:
            raise LawBroken(
                f'workers were {apart.max():.4g} apart, and after {steps} steps without updates {apart[-1]:.4g}; '
                f'expected at most {share * apart.max():.4g}'
            )

    return Law(f'differences come down to {share:g} in {steps} steps', check)


def _apart(trial: Trial, moves: int, steps: int) -> tuple[np.ndarray, float]:
    """How far workers are from their mean after each step, as a norm, and the rounding of it.

    They move by random updates in the first steps, and not by themselves in those that follow.
    """
    gradients = trial.gradients(moves + steps)
    for g in jax.tree.leaves(gradients):
        g[moves:] = 0
    params = jax.tree.leaves(trial.run(gradients).params)
    rows = np.concatenate([p.reshape(*p.shape[:2], -1).astype(np.float64) for p in params], axis=-1)
    apart = np.linalg.norm(rows - rows.mean(axis=1, keepdims=True), axis=(1, 2))
    return apart, 1e-6 * float(np.linalg.norm(rows[0]))


def tracks_mean() -> Law:
    """The mean over workers of the outgoing updates is that of the incoming ones, at every step.

    >>> tracks_mean().name
    'tracks the mean'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        close(mean_rows(path.updates), mean_rows(path.gradients), 'the mean of the updates', 1e-5)

    return Law('tracks the mean', check)


def follows_mean(share: float, steps: int = 12) -> Law:
    """While workers' incoming updates stay the same, outgoing ones come within this share of the mean of them.

    >>> follows_mean(0.1).name
    'updates come within 0.1 of the mean in 12 steps'
    """

    def check(trial: Trial) -> None:
        first = trial.gradients(1)
        path = trial.run(jax.tree.map(lambda g: np.repeat(g, steps, axis=0), first))
        off = lambda tree: float(np.sqrt(sum(np.sum((x - m) ** 2) for x, m in _with_means(tree))))  # noqa: E731
        last = jax.tree.map(lambda u: u[-1:], path.updates)
        if not off(last) <= share * off(first):
            raise LawBroken(
                f'updates are {off(last):.4g} off the mean after {steps} steps of the same gradients, which are '
                f'{off(first):.4g} off; expected at most {share * off(first):.4g}'
            )

    return Law(f'updates come within {share:g} of the mean in {steps} steps', check)


def _with_means(tree: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(jax.tree.leaves(tree), jax.tree.leaves(mean_rows(tree)), strict=True))
