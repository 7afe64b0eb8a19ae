"""Consensus ADMM on a lasso with its rows divided among four workers, against scikit-learn.

python experiments/constraints/lasso.py
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from reading import HERE, write
from sklearn import datasets, linear_model

from jaxdist.constraints.solvers.consensus_admm import Balance, consensus_admm, least_squares
from jaxdist.constraints.solvers.iteration import program
from jaxdist.constraints.solvers.proximal import soft_threshold
from jaxdist.core import workers
from jaxdist.report.canvas import COLOURS

WORKERS, ALPHA, MOST = 4, 5.0, 300
RHOS = (0.1, 1.0, 10.0)
METHODS = {'plain': {}, 'over-relaxed, 1.6': {'relax': 1.6}, 'balanced': {'balance': Balance()}}
CLOSE = 1e-6


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Standardised features [442, 10] and centred targets [442]."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y - y.mean()


def padded(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The rows, padded with rows of weight 0 to the same number on every worker."""
    more = -len(y) % WORKERS
    weight = np.concatenate([np.ones(len(y)), np.zeros(more)])
    return {'x': np.concatenate([x, x[:more]]), 'y': np.concatenate([y, y[:more]]), 'weight': weight}


def objective(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """scikit-learn's objective: half the mean squared error plus alpha times the 1-norm."""
    return float(0.5 * np.mean((x @ w - y) ** 2) + ALPHA * np.abs(w).sum())


def solve(rho: float, settings: dict, x: np.ndarray, y: np.ndarray, best: np.ndarray) -> dict:
    """The gap of the objective and the residuals at every iteration, and the numbers of the table."""
    method = consensus_admm(least_squares(1 / len(y)), rho=rho, prox=soft_threshold(ALPHA), **settings)
    start, data = jax.numpy.zeros(x.shape[1]), jax.tree.map(jax.numpy.asarray, padded(x, y))
    compiled = program(method, start, data, workers.simulated(WORKERS))
    state, history = compiled.init(start), {'gap': [], 'primal': [], 'dual': []}
    stops = None
    for step in range(1, MOST + 1):
        state, residuals = compiled.step(state, data)
        z = np.asarray(state.z)
        history['gap'].append(objective(z, x, y) / objective(best, x, y) - 1)
        history['primal'].append(float(residuals.primal[0]))
        history['dual'].append(float(residuals.dual[0]))
        stops = step if stops is None and bool(residuals.small[0]) else stops
    far = np.flatnonzero(np.abs(history['gap']) > CLOSE)
    close = int(far[-1]) + 2 if len(far) and far[-1] + 1 < MOST else None
    return {**history, 'close': close, 'stops': stops, 'away': float(np.abs(z - best).max()), 'rho': float(state.rho)}


def draw(solutions: dict[str, dict[float, dict]]) -> None:
    """Plots the gap and the residuals over iterations."""
    _, grid = plt.subplots(2, len(METHODS), figsize=(12, 6), sharex=True, sharey='row', layout='constrained')
    for column, (name, by_rho) in enumerate(solutions.items()):
        above, below = grid[:, column]
        for color, (rho, solution) in zip(COLOURS, by_rho.items(), strict=False):
            steps = np.arange(1, MOST + 1)
            above.semilogy(steps, np.maximum(np.abs(solution['gap']), 1e-16), color=color, label=f'rho {rho:g}')
            below.semilogy(steps, np.maximum(solution['primal'], 1e-16), color=color)
            below.semilogy(steps, np.maximum(solution['dual'], 1e-16), color=color, linestyle=':')
        above.set(title=name, ylim=(1e-15, 1))
        below.set(xlabel='iteration', ylim=(1e-12, 1e3))
    grid[0, 0].set_ylabel('relative gap of the objective')
    grid[1, 0].set_ylabel('residual (dotted: the dual one)')
    grid[0, 0].legend()
    plt.savefig(HERE / 'lasso.png', dpi=110)


def main() -> None:
    """Writes lasso.md, lasso.json and lasso.png."""
    x, y = diabetes()
    best = linear_model.Lasso(ALPHA, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(x, y).coef_
    with jax.enable_x64(True):
        solutions = {
            name: {rho: solve(rho, settings, x, y, best) for rho in RHOS} for name, settings in METHODS.items()
        }
    rows, numbers = [], {}
    for name, by_rho in solutions.items():
        for rho, solution in by_rho.items():
            ends = {key: solution[key] for key in ('stops', 'close', 'away', 'rho')}
            numbers[f'{name}, {rho:g}'] = ends
            iterations = [str(ends[key] or f'not within {MOST}') for key in ('stops', 'close')]
            rows.append([name, f'{rho:g}', *iterations, f'{ends["away"]:.1e}', f'{ends["rho"]:g}'])
    header = [
        '',
        'rho',
        'stops at (1e-4, 1e-2)',
        'objective within 1e-6 at',
        f'off after {MOST}',
        'last rho',
    ]
    write('lasso', header, rows, numbers)
    draw(solutions)


if __name__ == '__main__':
    main()
