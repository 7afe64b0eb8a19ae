"""Consensus ADMM: each worker fits its own data, and all parameters converge to one value (Boyd et al. 2011,
Distributed Optimization and Statistical Learning via the Alternating Direction Method of Multipliers, section 7.1).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist.codecs import _compressed_mean as compressed
from jaxdist.codecs._compressed_mean import Channel, CompressionState, Feedback
from jaxdist.codecs.codec import AnyCodec
from jaxdist.constraints.solvers.iteration import Data, Iteration, Residuals, Tolerances, check_tolerances, threshold
from jaxdist.constraints.solvers.proximal import Prox
from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.types import Params

Solve = Callable[[Params, jax.Array, Data, Params], Params]
"""`(v, rho, part, x) -> argmin f(x) + rho/2 |x - v|^2`, for a worker's f on its part of the data; x is the last one."""


class Balance(NamedTuple):
    """Residual balancing: rho is adapted to the residuals (section 3.4.1).

    Attributes:
        ratio: rho grows when the primal residual exceeds the dual one by this factor, and falls in the opposite case.
        factor: the factor by which rho is multiplied or divided.
        until: the number of iterations in which rho is adapted; convergence needs a rho that is constant in the end.
    """

    ratio: float = 10.0
    factor: float = 2.0
    until: int = 100


class ConsensusState(NamedTuple):
    """The state of the iteration.

    Attributes:
        x: each worker's parameters.
        u: each worker's scaled multiplier of x = z; the multiplier is rho u.
        z: the consensus variable; replicated.
        rho: the penalty, a scalar.
        steps: iterations done, an int32 scalar.
        compression: the state of the compressed mean.
    """

    x: Params
    u: Params
    z: Params
    rho: jax.Array
    steps: jax.Array
    compression: CompressionState


def consensus_admm(
    solve: Solve,
    *,
    rho: float = 1.0,
    relax: float = 1.0,
    prox: Prox | None = None,
    balance: Balance | None = None,
    tolerances: Tolerances = (1e-4, 1e-2),
    codec: AnyCodec | None = None,
    feedback: Feedback = False,
    seed: int = 0,
    axis: str = collectives.AXIS,
) -> Iteration:
    """Minimises sum_i f_i(z) + g(z) over W workers: worker i has parameters x_i, and a multiplier of x_i = z.

    In scaled form x_i <- solve(z - u_i), h_i = relax x_i + (1 - relax) z, z <- prox(mean(h_i + u_i), 1 / (W rho)),
    u_i <- u_i + h_i - z. Communication per iteration: an all-reduce of h_i + u_i and three scalars. Without `prox` the
    u_i sum to 0 at every iteration; with it, the sum of the multipliers rho u_i is a subgradient of g at z.

    The primal residual is x_i - z of all workers. The dual residual is rho times the change of z, once for each worker
    (section 7.1).

    `start` is the initial z, any pytree; x_i starts there too.

    Args:
        solve: this worker's subproblem; see `least_squares` and `by_steps`.
        rho: the initial penalty, which is also the step size of the multipliers.
        relax: over-relaxation, between 0 and 2 (section 3.4.3); the section advises 1.5 to 1.8.
        prox: the proximal operator of g, which counts once for all workers; None for g = 0.
        balance: residual balancing of rho; None for a constant rho.
        tolerances: absolute and relative, of the stopping rule.
        codec: how h_i + u_i - z is encoded; None for exact numbers. The compression error enters z: with `feedback`
            'ef21', which sends changes, it vanishes in the limit.
        feedback: error feedback of the compressed mean; see `Channel`.
        seed: the seed of the codec's random rounding.
        axis: the worker axis.

    Raises:
        InputError: rho that is not above 0, relax outside of (0, 2), a balance or tolerances out of range, feedback
            without a codec; or `solve` returns another structure, shape or dtype than `start` has.

    >>> import numpy as np
    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> nearest = lambda v, rho, part, x: (part.mean() + rho * v) / (1 + rho)  # f = 1/2 (x - mean of the part)^2
    >>> method = consensus_admm(nearest, tolerances=(1e-5, 0.0))
    >>> outcome = run(method, np.float32(0.0), np.array([1.0, 2.0, 3.0, 6.0], np.float32), workers.simulated(2))
    >>> round(float(outcome.state.z), 3), outcome.converged
    (3.0, True)
    """
    _check(rho, relax, balance)
    check_tolerances('consensus_admm', tolerances)
    channel = Channel(axis, codec, feedback, None, seed)

    def init(start: Params, part: Data) -> ConsensusState:
        del part
        zero = jax.tree.map(jnp.zeros_like, start)
        x, u = collectives.pvary((start, zero), axis)
        penalty = jnp.asarray(rho, jnp.result_type(float, *jax.tree.leaves(start)))
        return ConsensusState(x, u, start, penalty, jnp.zeros((), jnp.int32), compressed.init(start, channel))

    def step(state: ConsensusState, part: Data) -> tuple[ConsensusState, Residuals]:
        w = collectives.axis_size(axis)
        v = collectives.pvary(optax.tree.sub(state.z, state.u), axis)
        x = solve(v, state.rho, part, state.x)
        _check_alike(x, state.z)
        relaxed = jax.tree.map(lambda a, b: relax * a + (1 - relax) * b, x, state.z)
        message = optax.tree.add(relaxed, state.u)
        # A codec gets the difference from z, which every worker has: it shrinks, and the compression error with it.
        message = optax.tree.sub(message, state.z) if codec else message
        mean, compression = compressed.mean(message, state.compression, channel)
        mean = optax.tree.add(state.z, mean) if codec else mean
        z = mean if prox is None else _cast(prox(mean, 1 / (w * state.rho)), mean)
        u = optax.tree.sub(optax.tree.add(state.u, relaxed), z)
        residuals = _residuals(x, u, z, state, tolerances, axis)
        new_rho, scale = _balanced(state, residuals, balance)
        return ConsensusState(x, optax.tree.scale(scale, u), z, new_rho, state.steps + 1, compression), residuals

    return Iteration(init, step)


def least_squares(scale: float = 1.0) -> Solve:
    """The closed form for f = scale/2 sum weight (x' w - y)^2: (scale X'X + rho I) w = scale X'y + rho v.

    A worker's part of the data has `x` [B, d], `y` [B] or [B, k], and `weight` [B] if examples count unequally; w is
    [d] or [d, k]. With fewer rows than columns a system of size B x B is solved. The matrix is factored in every
    iteration: for a large one and a constant rho, write a solver that reads the factors from its part of the data.

    Args:
        scale: above 0; with 1 / n, for n examples of all workers, the sum over workers is the mean loss.

    Raises:
        InputError: a scale that is not above 0.

    >>> import numpy as np
    >>> part = {'x': np.array([[1.0], [1.0]], np.float32), 'y': np.array([1.0, 3.0], np.float32)}
    >>> least_squares()(np.zeros(1, np.float32), np.float32(2.0), part, None)
    Array([1.], dtype=float32)
    """
    if not scale > 0:
        raise InputError(f'least_squares: scale={scale} must be more than 0')

    def solve(v: jax.Array, rho: jax.Array, part: Data, x: Params) -> jax.Array:
        del x
        rows, targets = part['x'], part['y']
        root = jnp.sqrt(scale * part.get('weight', jnp.ones(rows.shape[0], rows.dtype)))
        a, b = rows * root[:, None], (targets.T * root).T
        right = a.T @ b + rho * v
        if a.shape[0] >= a.shape[1]:
            return _solve_positive(a.T @ a + rho * jnp.eye(a.shape[1], dtype=a.dtype), right)
        # The matrix inversion lemma: a system of size B in place of d.
        small = a @ a.T + rho * jnp.eye(a.shape[0], dtype=a.dtype)
        return (right - a.T @ _solve_positive(small, a @ right)) / rho

    return solve


def by_steps(
    objective: Callable[[Params, Data], jax.Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    axis: str = collectives.AXIS,
) -> Solve:
    """An inexact solver: a number of optimiser steps on f(x) + rho/2 |x - v|^2 from the worker's last x.

    The optimiser is initialised in every iteration. A line search with branches, as in `optax.lbfgs()`, has types that
    differ between its branches, and JAX rejects it inside a worker axis: give lbfgs `linesearch=None`.

    Args:
        objective: `(x, part) -> f`, a scalar, on this worker's part of the data.
        optimizer: any optax optimiser.
        steps: the number of steps, 1 or more.
        axis: the worker axis.

    Raises:
        InputError: fewer steps than 1.

    >>> import numpy as np
    >>> solve = by_steps(lambda x, part: 0.5 * (x - part) ** 2, optax.sgd(0.5), steps=1)
    >>> solve(np.float32(0.0), np.float32(1.0), np.float32(4.0), jnp.float32(0.0))
    Array(2., dtype=float32)
    """
    if steps < 1:
        raise InputError(f'by_steps: steps={steps} must be 1 or more')
    inner = optax.with_extra_args_support(optimizer)

    def solve(v: Params, rho: jax.Array, part: Data, x: Params) -> Params:
        def augmented(x: Params) -> jax.Array:
            return objective(x, part) + rho / 2 * optax.tree.norm(optax.tree.sub(x, v), squared=True)

        def step(_: Any, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
            x, state = carry
            value, gradient = jax.value_and_grad(augmented)(x)
            updates, state = inner.update(gradient, state, x, value=value, grad=gradient, value_fn=augmented)
            return collectives.pvary((optax.apply_updates(x, updates), state), axis)

        return lax.fori_loop(0, steps, step, collectives.pvary((x, inner.init(x)), axis))[0]

    return solve


def _residuals(x: Params, u: Params, z: Params, before: ConsensusState, tolerances: Tolerances, axis: str) -> Residuals:
    def squared(tree: Params) -> jax.Array:
        return optax.tree.norm(tree, squared=True)

    w, n = collectives.axis_size(axis), optax.tree.size(z)
    gap, of_x, of_u = collectives.psum([squared(optax.tree.sub(x, z)), squared(x), squared(u)], axis)
    root = w**0.5
    return Residuals(
        jnp.sqrt(gap),
        before.rho * root * optax.tree.norm(optax.tree.sub(z, before.z)),
        threshold(tolerances, w * n, jnp.sqrt(of_x), root * optax.tree.norm(z)),
        threshold(tolerances, w * n, before.rho * jnp.sqrt(of_u)),
    )


def _balanced(state: ConsensusState, now: Residuals, balance: Balance | None) -> tuple[jax.Array, jax.Array]:
    """The new rho, and the factor of u that leaves the multiplier rho u unchanged."""
    if balance is None:
        return state.rho, jnp.ones_like(state.rho)
    up, down = now.primal > balance.ratio * now.dual, now.dual > balance.ratio * now.primal
    factor = jnp.where(up, balance.factor, jnp.where(down, 1 / balance.factor, 1.0))
    factor = jnp.where(state.steps < balance.until, factor, 1.0).astype(state.rho.dtype)
    return state.rho * factor, 1 / factor


def _solve_positive(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


def _cast(tree: Params, like: Params) -> Params:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def _check(rho: float, relax: float, balance: Balance | None) -> None:
    if not 0 < rho < float('inf'):
        raise InputError(f'consensus_admm: rho={rho} must be more than 0, and finite')
    if not 0 < relax < 2:
        raise InputError(f'consensus_admm: relax={relax} must be between 0 and 2')
    if balance is not None and not (balance.ratio >= 1 and balance.factor > 1 and balance.until >= 0):
        raise InputError(f'consensus_admm: {balance} needs ratio of 1 or more, factor above 1 and until of 0 or more')


def _check_alike(x: Params, z: Params) -> None:
    describe = lambda tree: jax.tree.map(lambda a: f'{jnp.asarray(a).dtype}{jnp.shape(a)}', tree)  # noqa: E731
    if describe(x) != describe(z):
        raise InputError(
            f'solve returns {describe(x)}, and start is {describe(z)}: both must have the same structure, shapes and '
            'dtypes'
        )
