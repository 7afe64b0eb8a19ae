"""Fits the links of a clock to the step times that `measure.py` measured, and predicts each line from the others.

    python experiments/link/calibrate.py

The time of a line's collectives is its step on the slowed link without that on the unslowed one. The fit is the least
squares of relative errors, with a factor for each kind of collective; latency is not found, as the times of the
smallest messages are noise.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from link import MBIT
from worker import MODEL, TASK

from jaxdist import line
from jaxdist.clock.link import KINDS, Link
from jaxdist.training.plan import update_traffic

BANDWIDTH = MBIT * 1e6 / 8
HERE = Path(__file__).parent


def sent_by_kind(update: str, params: Any) -> np.ndarray:
    """Bytes that a worker sends in a step, by kind of collective."""
    rows = update_traffic(line.build(update), params, 2)
    return np.array([float(sum(row.bytes_per_step or 0 for row in rows if row.kind == kind)) for kind in KINDS])


def fitted(sent: np.ndarray, seconds: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """The factor of each kind that some line sends.

    Args:
        sent: bytes by line and kind.
        seconds: of the collectives of each line.
        steps: seconds of its steps, to which errors are relative.
    """
    used = sent.any(axis=0)
    factors, *_ = np.linalg.lstsq(sent[:, used] / BANDWIDTH / steps[:, None], seconds / steps)
    return {kind: float(factor) for kind, factor in zip(np.array(KINDS)[used], factors, strict=True)}


def main() -> None:
    """Prints the fit, and a row for each line."""
    measured = json.loads((HERE / 'results.json').read_text())['lines']
    params = jax.eval_shape(MODEL.build(TASK).init, jax.random.key(0))
    sent = np.stack([sent_by_kind(each['line'], params) for each in measured])
    steps = np.array([each['step_ms'][1] for each in measured]) / 1e3
    computed = np.array([each['unslowed_ms'][1] for each in measured]) / 1e3
    factors = fitted(sent, steps - computed, steps)
    print('all lines: ' + ', '.join(f'{kind} {factor:.2f}' for kind, factor in factors.items()))
    print('\n| line | step | predicted from the other lines | error | by bytes alone |\n|---|---|---|---|---|')
    errors = []
    for i, each in enumerate(measured):
        others = np.arange(len(measured)) != i
        factors = fitted(sent[others], (steps - computed)[others], steps[others])
        links = Link(bandwidth=BANDWIDTH, **factors), Link(bandwidth=BANDWIDTH)
        predicted = [computed[i] + sum(map(link.seconds, KINDS, sent[i], [2] * len(KINDS))) for link in links]
        errors.append(np.array(predicted) / steps[i] - 1)
        times = f'{1e3 * steps[i]:.1f} ms | {1e3 * predicted[0]:.1f} ms'
        print(
            f'| `{each["line"].removesuffix(" | sgd(0.1)")}` | {times} | {errors[-1][0]:+.0%} | {errors[-1][1]:+.0%} |'
        )
    typical = np.median(np.abs(errors), axis=0)
    print(f'\nmedian error {typical[0]:.0%}, of bytes alone {typical[1]:.0%}')


if __name__ == '__main__':
    main()
