"""Small constrained problems in two forms: with derivatives by hand for the NumPy reference, and as functions for JAX.

NumPy's parameters are w [d], JAX's {'w': [d]}. Each `TwoForms` has a constraint of the reference, and the same measure,
`then` and proxy for JAX; kind, bound, reduction and per_worker are those of the reference. Run the file to print the
largest difference between the gradients and finite differences.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy_constraints import Reference, Shards
from numpy_measures import Array, Constraint, Loss, Pair, Shard, weight_of

Batch = Mapping[str, Any]
Params = Mapping[str, Any]
FEATURES = 4
SOFT = 0.1  # smoothing of the absolute value at 0
STEEP = 2.0  # slope of the sigmoid that replaces a threshold


# Losses.


def squares(w: Array, shard: Shard) -> Pair:
    """Half the squared errors of x w against y."""
    error = shard['x'] @ w - shard['y']
    weighted = weight_of(shard) * error
    return 0.5 * np.sum(weighted * error), weighted @ shard['x']


def jax_squares(params: Params, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The same for JAX."""
    weight = jax_weight(batch)
    return {'loss': 0.5 * jnp.sum(weight * (batch['x'] @ params['w'] - batch['y']) ** 2)}, jnp.sum(weight)


def logistic(w: Array, shard: Shard) -> Pair:
    """Logistic regression of y > 0 on x."""
    sign = np.where(shard['y'] > 0, 1.0, -1.0)
    margin, weight = sign * (shard['x'] @ w), weight_of(shard)
    return np.sum(weight * np.logaddexp(0, -margin)), (-weight * sign * sigmoid(-margin)) @ shard['x']


def jax_logistic(params: Params, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The same for JAX."""
    weight, sign = jax_weight(batch), jnp.where(batch['y'] > 0, 1.0, -1.0)
    return {'loss': jnp.sum(weight * jnp.logaddexp(0, -sign * (batch['x'] @ params['w'])))}, jnp.sum(weight)


def jax_weight(batch: Batch) -> jax.Array:
    """The examples' weights, [B]; 1 by default."""
    return batch['weight'] if 'weight' in batch else jnp.ones(len(batch['x']), batch['x'].dtype)


# Measures: by hand for NumPy, and the same for JAX under `jax_`.


def sigmoid(z: Array) -> Array:
    """The logistic function."""
    return 0.5 * (1 + np.tanh(z / 2))


def norm(w: Array) -> Pair:
    """The squared 2-norm."""
    return w @ w, 2 * w


def jax_norm(params: Params) -> jax.Array:
    """The squared 2-norm."""
    return jnp.sum(params['w'] ** 2)


def weights_sum(w: Array) -> Pair:
    """The sum of the weights."""
    return w.sum(), np.ones(len(w))


def jax_weights_sum(params: Params) -> jax.Array:
    """The sum of the weights."""
    return jnp.sum(params['w'])


def first_two(w: Array) -> Pair:
    """Two of the weights, [2]."""
    return w[:2], np.eye(2, len(w))


def jax_first_two(params: Params) -> jax.Array:
    """Two of the weights, [2]."""
    return params['w'][:2]


def residual(w: Array, shard: Shard) -> Pair:
    """A smooth absolute residual of each example, [B]."""
    error = shard['x'] @ w - shard['y']
    size = np.sqrt(error**2 + SOFT**2)
    return size, (error / size)[:, None] * shard['x']


def jax_residual(params: Params, batch: Batch) -> jax.Array:
    """A smooth absolute residual of each example, [B]."""
    return jnp.sqrt((batch['x'] @ params['w'] - batch['y']) ** 2 + SOFT**2)


def moments(w: Array, shard: Shard) -> Pair:
    """The residual times each of two features, [B, 2]."""
    two = shard['x'][:, :2]
    return (shard['x'] @ w - shard['y'])[:, None] * two, two[:, :, None] * shard['x'][:, None, :]


def jax_moments(params: Params, batch: Batch) -> jax.Array:
    """The residual times each of two features, [B, 2]."""
    return (batch['x'] @ params['w'] - batch['y'])[:, None] * batch['x'][:, :2]


def spent(w: Array, shard: Shard) -> Pair:
    """A smooth count of chosen examples: the sum of sigmoid(x w)."""
    chosen, weight = sigmoid(shard['x'] @ w), weight_of(shard)
    return np.sum(weight * chosen), (weight * chosen * (1 - chosen)) @ shard['x']


def jax_spent(params: Params, batch: Batch) -> jax.Array:
    """A smooth count of chosen examples: the sum of sigmoid(x w)."""
    return jnp.sum(jax_weight(batch) * jax.nn.sigmoid(batch['x'] @ params['w']))


def members(shard: Shard) -> Array:
    """The examples' weights in each of two groups, [2, B]."""
    return weight_of(shard) * (np.arange(2)[:, None] == shard['group'])


def jax_members(batch: Batch) -> jax.Array:
    """The examples' weights in each of two groups, [2, B]."""
    return jax_weight(batch) * (jnp.arange(2)[:, None] == batch['group'])


def soft_rates(w: Array, shard: Shard) -> tuple[Pair, Pair]:
    """The sum of sigmoid(STEEP x w) in each group, and the group's size: [2] both."""
    soft, inside = sigmoid(STEEP * (shard['x'] @ w)), members(shard)
    slope = (inside * (STEEP * soft * (1 - soft))) @ shard['x']
    return (inside @ soft, slope), (inside.sum(1), np.zeros_like(slope))


def jax_soft_rates(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The sum of sigmoid(STEEP x w) in each group, and the group's size: [2] both."""
    inside = jax_members(batch)
    return inside @ jax.nn.sigmoid(STEEP * (batch['x'] @ params['w'])), jnp.sum(inside, 1)


def hard_rates(w: Array, shard: Shard) -> tuple[Pair, Pair]:
    """The number of each group's examples with x w > 0, and the group's size: [2] both; the gradient is 0."""
    inside = members(shard)
    flat = np.zeros((2, len(w)))
    return (inside @ (shard['x'] @ w > 0), flat), (inside.sum(1), flat)


def jax_hard_rates(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The number of each group's examples with x w > 0, and the group's size: [2] both; the gradient is 0."""
    inside = jax_members(batch)
    return inside @ (batch['x'] @ params['w'] > 0).astype(inside.dtype), jnp.sum(inside, 1)


def weighed(w: Array, shard: Shard) -> tuple[Pair, Pair]:
    """The residuals' mean with weights from the model, exp(x_0 w_0 / 2), so that the denominator has a gradient too."""
    own = weight_of(shard) * np.exp(0.5 * shard['x'][:, 0] * w[0])
    own_slope = np.zeros((len(own), len(w)))
    own_slope[:, 0] = 0.5 * shard['x'][:, 0] * own
    size, slope = residual(w, shard)
    return (own @ size, own @ slope + size @ own_slope), (own.sum(), own_slope.sum(0))


def jax_weighed(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The residuals' mean with weights from the model, exp(x_0 w_0 / 2)."""
    own = jax_weight(batch) * jnp.exp(0.5 * batch['x'][:, 0] * params['w'][0])
    return jnp.sum(own * jax_residual(params, batch)), jnp.sum(own)


def gap(rates: Array) -> Pair:
    """The first rate minus the second."""
    return rates[0] - rates[1], np.array([1.0, -1.0])


def jax_gap(rates: jax.Array) -> jax.Array:
    """The first rate minus the second."""
    return rates[0] - rates[1]


def square_gap(rates: Array) -> Pair:
    """The rates' squared difference, and their sum, [2]: a `then` that is not linear."""
    less = rates[0] - rates[1]
    return np.array([less**2, rates.sum()]), np.array([[2 * less, -2 * less], [1.0, 1.0]])


def jax_square_gap(rates: jax.Array) -> jax.Array:
    """The rates' squared difference, and their sum, [2]."""
    return jnp.stack([(rates[0] - rates[1]) ** 2, jnp.sum(rates)])


# Problems.


class TwoForms(NamedTuple):
    """A constraint of the reference, and the same measure, `then` and proxy for JAX."""

    reference: Constraint
    measure: Callable[..., Any]
    then: Callable[[Any], Any] | None = None
    proxy: Callable[..., Any] | None = None


class Problem(NamedTuple):
    """A loss and constraints, in both forms."""

    constraints: Mapping[str, TwoForms]
    loss: Loss = squares
    jax_loss: Callable[..., Any] = jax_squares
    start: Array = np.array([0.5, -0.25, 1.0, 0.1])

    @property
    def references(self) -> dict[str, Constraint]:
        """The constraints of the reference."""
        return {name: one.reference for name, one in self.constraints.items()}


GAP = Constraint(hard_rates, 'ratio', bound=-0.2871, then=gap, proxy=soft_rates)
CURVED = Constraint(soft_rates, 'ratio', bound=np.array([0.01, 0.8]), then=square_gap)
BY_GROUP = Constraint(soft_rates, 'ratio', bound=0.4, per_worker=True)
BOX = Constraint(first_two, 'none', bound=np.array([0.6, 0.3]))
MOMENTS = Constraint(moments, 'mean', 'equality', bound=np.array([0.02, -0.03]))
EACH = Constraint(residual, 'mean', bound=0.25, per_worker=True)
PROBLEMS = {
    'norm ball': Problem({'norm': TwoForms(Constraint(norm, 'none', bound=0.3), jax_norm)}),
    'simplex': Problem({'sum': TwoForms(Constraint(weights_sum, 'none', 'equality', 1.0), jax_weights_sum)}),
    'rate gap': Problem({'gap': TwoForms(GAP, jax_hard_rates, jax_gap, jax_soft_rates)}, logistic, jax_logistic),
    'curved gap': Problem({'gap': TwoForms(CURVED, jax_soft_rates, jax_square_gap)}, logistic, jax_logistic),
    'mean residual': Problem({'residual': TwoForms(Constraint(residual, 'mean', bound=0.25), jax_residual)}),
    'own weights': Problem({'weighed': TwoForms(Constraint(weighed, 'ratio', bound=0.4), jax_weighed)}),
    'budget': Problem({'budget': TwoForms(Constraint(spent, 'sum', bound=7.5), jax_spent)}),
    'each worker': Problem({'residual': TwoForms(EACH, jax_residual)}),
    'each worker and group': Problem({'rates': TwoForms(BY_GROUP, jax_soft_rates)}, logistic, jax_logistic),
    'each example': Problem({'residual': TwoForms(Constraint(residual, 'example', bound=0.35), jax_residual)}),
    'two vectors': Problem({'box': TwoForms(BOX, jax_first_two), 'moments': TwoForms(MOMENTS, jax_moments)}),
}


# Data and checks.


def shards(sizes: Sequence[int] = (7, 4, 6), seed: int = 0, weighted: bool = False) -> list[Shard]:
    """A shard for each size; the last of several workers has no example of group 1."""
    rng = np.random.default_rng(seed)
    parts: list[Shard] = []
    for worker, size in enumerate(sizes):
        x = rng.normal(size=(size, FEATURES))
        y = x @ np.array([1.0, 0.5, -0.5, 0.25]) + 0.5 * rng.normal(size=size)
        last = worker > 0 and worker == len(sizes) - 1
        group = np.zeros(size, int) if last else rng.integers(0, 2, size)
        shard = {'x': x, 'y': y, 'group': group}
        parts.append({**shard, 'weight': rng.uniform(0.5, 2.0, size)} if weighted else shard)
    return parts


def minibatches(whole: Shards, take: int, steps: int, seed: int = 0) -> list[list[Shard]]:
    """For each step, `take` examples of every worker (all, if it has fewer), and their `index` [B]."""
    rng = np.random.default_rng(seed)

    def some(shard: Shard) -> Shard:
        at = np.sort(rng.permutation(len(shard['x']))[:take])
        return {**{name: array[at] for name, array in shard.items()}, 'index': at}

    return [[some(shard) for shard in whole] for _ in range(steps)]


def error(problem: Problem, batch: Shards, penalty: float, seed: int = 0, step: float = 1e-6) -> float:
    """The largest difference of the Lagrangian's gradient from central differences, at random multipliers >= 0."""
    rng = np.random.default_rng(seed)
    reference = Reference(problem.loss, problem.references)
    w = problem.start + 0.3 * rng.normal(size=FEATURES)
    multipliers = {name: rng.uniform(0, 2, one.value.shape) for name, one in reference.entries(w, batch, True).items()}

    def value(at: Array) -> float:
        return float(reference.lagrangian(at, multipliers, penalty, batch)[0])

    slopes = [(value(w + step * e) - value(w - step * e)) / (2 * step) for e in np.eye(FEATURES)]
    return float(np.abs(reference.lagrangian(w, multipliers, penalty, batch)[1] - slopes).max())


if __name__ == '__main__':
    for title, each in PROBLEMS.items():
        worst = max(error(each, shards(weighted=heavy), c) for heavy in (False, True) for c in (0.0, 3.0))
        sys.stdout.write(f'{title}: {worst:.1e}\n')
