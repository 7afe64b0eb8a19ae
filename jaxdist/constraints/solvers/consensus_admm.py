"""Consensus by the alternating direction method of multipliers: each worker fits its own data, and all come to agree
(Boyd et al. 2011, Distributed Optimization and Statistical Learning via ADMM, section 7.1).
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
from jaxdist.constraints.solvers.iteration import Iteration, Residuals, Tolerances, allowed, check_tolerances
from jaxdist.constraints.solvers.proximal import Prox
from jaxdist.core import collectives
from jaxdist.core.errors import InputError

Solve = Callable[[Any, jax.Array, Any, Any], Any]
"""`(v, rho, part, x) -> argmin f(x) + rho/2 |x - v|^2`, of a worker's f on its part of the data; x is the last one."""


class Balance(NamedTuple):
    """How rho follows the residuals (section 3.4.1).

    Attributes:
        ratio: rho grows when the primal residual is this many times the dual one, and falls in the other case.
        factor: what it is multiplied with, or divided by.
        until: iterations that it may move in; that it stays in the end is what convergence needs.
    """

    ratio: float = 10.0
    factor: float = 2.0
    until: int = 100


class ConsensusState(NamedTuple):
    """Where the workers are.

    Attributes:
        x: each worker's own parameters.
        u: each worker's own scaled multiplier of x = z; the multiplier is rho u.
        z: what they agree on, which all share.
        rho: the penalty, a scalar.
        steps: iterations done, an int32 scalar.
        memory: what the codec remembers.
    """

    x: Any
    u: Any
    z: Any
    rho: jax.Array
    steps: jax.Array
    memory: CompressionState


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
    """Minimises the sum over workers of f_i(z), and g(z): worker i keeps x_i = z by a multiplier of its own.

    In scaled form x_i <- solve(z - u_i), h_i = relax x_i + (1 - relax) z, z <- prox(mean(h_i + u_i), 1 / (W rho)),
    u_i <- u_i + h_i - z. What crosses is the mean of h_i + u_i and three scalars. Without `prox` the u_i sum to 0 at
    every iteration; with it, the sum of the multipliers rho u_i is a subgradient of g at z.

    The primal residual has the x_i - z of all workers, the dual one rho times the move of z, once for each
    (section 7.1).
    `start` is z, of any structure.

    Args:
        solve: this worker's problem; see `least_squares` and `by_steps`.
        rho: the penalty, which is the multipliers' step too.
        relax: over-relaxation, between 0 and 2 (section 3.4.3); 1.5 to 1.8 is advised there.
        prox: of g, once over all workers; None for no g.
        balance: how rho moves; None for a rho that stays.
        tolerances: absolute and relative, of the stopping rule.
        codec: how h_i + u_i - z is sent, or None for exact numbers. What a codec rounds is left in z: `feedback`
            'ef21', which sends what changes, lets it vanish.
        feedback: whether, or what part of, what a message leaves out is added to the next one.
        seed: of the codec's random rounding.
        axis: the worker axis.

    Raises:
        InputError: rho that is not above 0, relax outside of (0, 2), a balance or tolerances out of range, feedback
            without a codec; or `solve` returns another structure, shape or dtype than `start` has.

    >>> from jaxdist.core import workers
    >>> from jaxdist.constraints.solvers.iteration import run
    >>> nearest = lambda v, rho, part, x: (part.mean() + rho * v) / (1 + rho)  # f = 1/2 (x - mean of the part)^2
    >>> method = consensus_admm(nearest, tolerances=(1e-5, 0.0))
    >>> outcome = run(method, jnp.zeros(()), jnp.array([1.0, 2.0, 3.0, 6.0]), workers.simulated(2))
    >>> round(float(outcome.state.z), 3), outcome.converged
    (3.0, True)
    """
    _check(rho, relax, balance)
    check_tolerances('consensus_admm', tolerances)
    channel = Channel(axis, codec, feedback, None, seed)

    def init(start: Any, part: Any) -> ConsensusState:
        del part
        zero = jax.tree.map(jnp.zeros_like, start)
        x, u = collectives.pvary((start, zero), axis)
        penalty = jnp.asarray(rho, jnp.result_type(float, *jax.tree.leaves(start)))
        return ConsensusState(x, u, start, penalty, jnp.zeros((), jnp.int32), compressed.init(start, channel))

    def step(state: ConsensusState, part: Any) -> tuple[ConsensusState, Residuals]:
        w = collectives.axis_size(axis)
        v = collectives.pvary(optax.tree.sub(state.z, state.u), axis)
        x = solve(v, state.rho, part, state.x)
        _check_alike(x, state.z)
        relaxed = jax.tree.map(lambda a, b: relax * a + (1 - relax) * b, x, state.z)
        ahead = optax.tree.sub(optax.tree.add(relaxed, state.u), state.z) if codec else optax.tree.add(relaxed, state.u)
        mean, memory = compressed.mean(ahead, state.memory, channel)
        mean = optax.tree.add(state.z, mean) if codec else mean
        z = mean if prox is None else _cast(prox(mean, 1 / (w * state.rho)), mean)
        u = optax.tree.sub(optax.tree.add(state.u, relaxed), z)
        residuals = _residuals(x, u, z, state, tolerances, axis)
        new, scale = _balanced(state, residuals, balance)
        return ConsensusState(x, optax.tree.scale(scale, u), z, new, state.steps + 1, memory), residuals

    return Iteration(init, step)


def least_squares(scale: float = 1.0) -> Solve:
    """The closed form for f = scale/2 sum weight (x' w - y)^2: (scale X'X + rho I) w = scale X'y + rho v.

    The part of the data has `x` [B, d], `y` [B] or [B, k], and `weight` [B] if examples count unequally; a w is [d] or
    [d, k]. Of fewer rows than columns a system of B x B is solved. It is factored at every iteration: for a large one,
    and a rho that stays, write a solver that finds the factors among its part of the data.

    Args:
        scale: above 0; 1 / n, with n the examples of all workers, makes of the sum over workers the mean loss.

    Raises:
        InputError: a scale that is not above 0.

    >>> part = {'x': jnp.array([[1.0], [1.0]]), 'y': jnp.array([1.0, 3.0])}
    >>> least_squares()(jnp.zeros(1), jnp.float32(2.0), part, None)
    Array([1.], dtype=float32)
    """
    if not scale > 0:
        raise InputError(f'least_squares: scale={scale} must be more than 0')

    def solve(v: jax.Array, rho: jax.Array, part: Any, x: Any) -> jax.Array:
        del x
        rows, targets = part['x'], part['y']
        root = jnp.sqrt(scale * part.get('weight', jnp.ones(rows.shape[0], rows.dtype)))
        a, b = rows * root[:, None], (targets.T * root).T
        right = a.T @ b + rho * v
        if a.shape[0] >= a.shape[1]:
            return _solve_positive(a.T @ a + rho * jnp.eye(a.shape[1], dtype=a.dtype), right)
        small = a @ a.T + rho * jnp.eye(a.shape[0], dtype=a.dtype)
        return (right - a.T @ _solve_positive(small, a @ right)) / rho

    return solve


def by_steps(
    objective: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    steps: int,
    axis: str = collectives.AXIS,
) -> Solve:
    """A worker's problem by some steps of an optimiser on f(x) + rho/2 |x - v|^2, from where its x is.

    The optimiser starts afresh at every iteration. A line search that branches, as that of `optax.lbfgs()`, has types
    that differ between its branches, and is refused by JAX inside a worker axis: give lbfgs `linesearch=None`.

    Args:
        objective: `(x, part) -> f`, a scalar, of this worker's part of the data.
        optimizer: any of optax.
        steps: how many, 1 or more.
        axis: the worker axis.

    Raises:
        InputError: fewer steps than 1.

    >>> solve = by_steps(lambda x, part: 0.5 * (x - part) ** 2, optax.sgd(0.5), steps=1)
    >>> solve(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(4.0), jnp.float32(0.0))
    Array(2., dtype=float32)
    """
    if steps < 1:
        raise InputError(f'by_steps: steps={steps} must be 1 or more')
    inner = optax.with_extra_args_support(optimizer)

    def solve(v: Any, rho: jax.Array, part: Any, x: Any) -> Any:
        def pulled(x: Any) -> jax.Array:
            return objective(x, part) + rho / 2 * optax.tree.norm(optax.tree.sub(x, v), squared=True)

        def step(_: Any, at: Any) -> Any:
            value, gradient = jax.value_and_grad(pulled)(at[0])
            moves, state = inner.update(gradient, at[1], at[0], value=value, grad=gradient, value_fn=pulled)
            return collectives.pvary((optax.apply_updates(at[0], moves), state), axis)

        return lax.fori_loop(0, steps, step, collectives.pvary((x, inner.init(x)), axis))[0]

    return solve


def _residuals(x: Any, u: Any, z: Any, before: ConsensusState, tolerances: Tolerances, axis: str) -> Residuals:
    w, n, squared = collectives.axis_size(axis), optax.tree.size(z), lambda t: optax.tree.norm(t, squared=True)
    apart, own, pull = collectives.psum([squared(optax.tree.sub(x, z)), squared(x), squared(u)], axis)
    root = w**0.5
    return Residuals(
        jnp.sqrt(apart),
        before.rho * root * optax.tree.norm(optax.tree.sub(z, before.z)),
        allowed(tolerances, w * n, jnp.sqrt(own), root * optax.tree.norm(z)),
        allowed(tolerances, w * n, before.rho * jnp.sqrt(pull)),
    )


def _balanced(state: ConsensusState, now: Residuals, balance: Balance | None) -> tuple[jax.Array, jax.Array]:
    """The new rho, and what u is scaled by, so that the multiplier rho u stays."""
    if balance is None:
        return state.rho, jnp.ones_like(state.rho)
    up, down = now.primal > balance.ratio * now.dual, now.dual > balance.ratio * now.primal
    factor = jnp.where(up, balance.factor, jnp.where(down, 1 / balance.factor, 1.0))
    factor = jnp.where(state.steps < balance.until, factor, 1.0).astype(state.rho.dtype)
    return state.rho * factor, 1 / factor


def _solve_positive(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def _check(rho: float, relax: float, balance: Balance | None) -> None:
    if not 0 < rho < float('inf'):
        raise InputError(f'consensus_admm: rho={rho} must be more than 0, and finite')
    if not 0 < relax < 2:
        raise InputError(f'consensus_admm: relax={relax} must be between 0 and 2')
    if balance is not None and not (balance.ratio >= 1 and balance.factor > 1 and balance.until >= 0):
        raise InputError(f'consensus_admm: {balance} needs ratio of 1 or more, factor above 1 and until of 0 or more')


def _check_alike(x: Any, z: Any) -> None:
    told = lambda tree: jax.tree.map(lambda a: f'{jnp.asarray(a).dtype}{jnp.shape(a)}', tree)  # noqa: E731
    if told(x) != told(z):
        raise InputError(
            f'solve returns {told(x)}, and start is {told(z)}: both must have one structure, with the same shapes and '
            'dtypes'
        )
