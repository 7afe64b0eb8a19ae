"""Laws on algorithms in which workers mix with their neighbours."""

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
        start = MOVES * cycle
        gradients = trial.gradients(start + 3 * cycle)
        for g in jax.tree.leaves(gradients):
            g[start:] = 0
        params = jax.tree.leaves(trial.run(gradients).params)
        rows = np.concatenate([p.reshape(*p.shape[:2], -1).astype(np.float64) for p in params], axis=-1)
        apart = np.linalg.norm(rows - rows.mean(axis=1, keepdims=True), axis=(1, 2))
        bound = (1 - spectral_gap(rounds)) ** len(rounds)
        rounding = 1e-6 * np.linalg.norm(rows[0])
        for t in range(start, len(apart) - cycle, cycle):
            if apart[t + cycle] > bound * apart[t] * (1 + 1e-5) + rounding:
                raise LawBroken(
                    f'at step {t} workers are {apart[t]:.4g} apart, and {cycle} steps later {apart[t + cycle]:.4g}; '
                    f'expected at most {bound * apart[t]:.4g}, as the spectral gap is {spectral_gap(rounds):.4g}'
                )
        if bound > 0.01 and not apart[start] > 100 * rounding:
            raise LawBroken(f'workers with different updates are only {apart[start]:.4g} apart')

    return Law(f'brings workers closer by the gap of {graph.name}', check)


def tracks_mean() -> Law:
    """The mean over workers of the outgoing updates is that of the incoming ones, at every step.

    >>> tracks_mean().name
    'tracks the mean'
    """

    def check(trial: Trial) -> None:
        path: Path = trial.path
        close(mean_rows(path.updates), mean_rows(path.gradients), 'the mean of the updates', 1e-5)

    return Law('tracks the mean', check)
