"""Laws on algorithms that let updates come late."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, close, same_bits
from jaxdist.laws.trial import STEPS, Trial


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


def arrives(steps: Callable[[int, int], int], workers: int | None = None) -> Law:
    """An update comes out as many steps after it went in as is said; what comes together is added up.

    Args:
        steps: `(worker, steps taken before) -> the delay` of what a worker puts in.
        workers: how many there are, if not any number.

    >>> arrives(lambda worker, step: worker).name
    'arrives in time'
    """

    def check(trial: Trial) -> None:
        path = trial.path

        def late(g: np.ndarray) -> np.ndarray:
            out = np.zeros_like(g)
            for t, worker in np.ndindex(*g.shape[:2]):
                due = t + steps(worker, t)
                if due < len(g):
                    out[due, worker] += g[t, worker]
            return out

        close(path.updates, jax.tree.map(late, path.gradients), 'the updates that are due')

    return Law('arrives in time', check, workers)


def stale_by(steps: int, line: str) -> Law:
    """At one step in `steps` + 1 the parameters are what another line makes them, and they stay in between.

    >>> stale_by(2, 'mean() | sgd(0.1)').name
    "is 'mean() | sgd(0.1)', stale by 2"
    """

    def check(trial: Trial) -> None:
        fresh = replace(trial, update=lines.build(line, axis=trial.axis)).path.params
        seen = [t // (steps + 1) * (steps + 1) for t in range(STEPS + 1)]
        close(trial.path.params, jax.tree.map(lambda p: p[seen], fresh), f'the parameters of {line!r}, stale')

    return Law(f'is {line!r}, stale by {steps}', check)


def compensates(steps: int, strength: float, decay: float | None = None, eps: float = 1e-7) -> Law:
    """A gradient g comes out `steps` steps late, as g + lambda g g (x - x_old) with the parameters now and then.

    Args:
        steps: the delay.
        strength: lambda, or with `decay` lambda_0 of the adaptive one, lambda_0 / sqrt(m + eps).
        decay: of the running mean m of squared gradients.
        eps: under the root.

    >>> compensates(3, 0.5).name
    'compensates a delay of 3'
    """

    def check(trial: Trial) -> None:
        path = trial.path

        def promised(g: np.ndarray, x: np.ndarray) -> np.ndarray:
            g, x, out, m = g.astype(np.float64), x.astype(np.float64), np.zeros(g.shape), np.zeros(g.shape[1:])
            for t in range(steps, len(g)):
                old = g[t - steps]
                m = m if decay is None else decay * m + (1 - decay) * old**2
                rate = strength if decay is None else strength / np.sqrt(m + eps)
                out[t] = old + rate * old**2 * (x[t] - x[t - steps])
            return out

        close(path.updates, jax.tree.map(promised, path.gradients, path.params), 'the compensated updates', 1e-5)

    return Law(f'compensates a delay of {steps}', check)
