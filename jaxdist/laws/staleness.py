"""Laws on algorithms that delay updates or use stale parameters."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from jaxdist import line as lines
from jaxdist.laws.law import Law, close, same_bits
from jaxdist.laws.trial import STEPS, Trial


def delays(steps: int) -> Law:
    """Each update comes out `steps` steps later with the same bits; the first `steps` updates are zeros.

    >>> delays(3).name
    'delays by 3'
    """

    def check(trial: Trial) -> None:
        def delayed(g: np.ndarray) -> np.ndarray:
            return np.concatenate([np.zeros_like(g[:steps]), g[: len(g) - steps]])

        path = trial.long_path(2 * steps + 2)
        same_bits(path.updates, jax.tree.map(delayed, path.gradients), f'updates of {steps} steps ago')

    return Law(f'delays by {steps}', check)


def arrives(steps: Callable[[int, int], int], workers: int | None = None) -> Law:
    """Each update comes out after its own delay; updates that come out at the same step are added up.

    Args:
        steps: `(worker, steps taken before) -> delay` of the update that the worker puts in at this step.
        workers: the number of workers that the delays are for, or None for any.

    >>> arrives(lambda worker, step: worker).name
    'arrives after its delay'
    """

    def check(trial: Trial) -> None:
        path = trial.path

        def delayed(g: np.ndarray) -> np.ndarray:
            out = np.zeros_like(g)
            for t, worker in np.ndindex(*g.shape[:2]):
                due = t + steps(worker, t)
                if due < len(g):
                    out[due, worker] += g[t, worker]
            return out

        close(path.updates, jax.tree.map(delayed, path.gradients), 'the updates that are due')

    return Law('arrives after its delay', check, workers)


def stale_by(steps: int, line: str) -> Law:
    """The parameters equal those of another line at one step in `steps` + 1, and stay unchanged in between.

    >>> stale_by(2, 'mean() | sgd(0.1)').name
    "equals 'mean() | sgd(0.1)', stale by 2"
    """

    def check(trial: Trial) -> None:
        fresh = replace(trial, update=lines.build(line, axis=trial.axis)).path.params
        stale = [t // (steps + 1) * (steps + 1) for t in range(STEPS + 1)]
        close(trial.path.params, jax.tree.map(lambda p: p[stale], fresh), f'the parameters of {line!r}, stale')

    return Law(f'equals {line!r}, stale by {steps}', check)


def compensates(steps: int, strength: float, decay: float | None = None, eps: float = 1e-7) -> Law:
    """A gradient g comes out after `steps` steps as g + lambda g g (x - x_old), with present and old parameters.

    Args:
        steps: the delay.
        strength: lambda; with `decay`, lambda_0 of the adaptive strength lambda_0 / sqrt(m + eps).
        decay: decay of the running mean m of squared gradients; None for a constant lambda.
        eps: added under the root.

    >>> compensates(3, 0.5).name
    'compensates a delay of 3'
    """

    def check(trial: Trial) -> None:
        path = trial.path

        def compensated(g: np.ndarray, x: np.ndarray) -> np.ndarray:
            g, x, out, m = g.astype(np.float64), x.astype(np.float64), np.zeros(g.shape), np.zeros(g.shape[1:])
            for t in range(steps, len(g)):
                old = g[t - steps]
                m = m if decay is None else decay * m + (1 - decay) * old**2
                rate = strength if decay is None else strength / np.sqrt(m + eps)
                out[t] = old + rate * old**2 * (x[t] - x[t - steps])
            return out

        close(path.updates, jax.tree.map(compensated, path.gradients, path.params), 'the compensated updates', 1e-5)

    return Law(f'compensates a delay of {steps}', check)
