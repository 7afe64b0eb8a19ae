"""The server's adaptive optimisers FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, arXiv 2003.00295).

They are outer optimisers, as in `diloco(every=50, outer=fed_adam(0.01))`. optax's `adam` and `yogi` differ from them:
they correct the bias of the moments, and start from other second moments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import laws
from jaxdist.core.errors import InputError
from jaxdist.core.parameters import check_real
from jaxdist.core.registry import algorithm

PAPER = 'Reddi et al. 2021, Adaptive Federated Optimization, arXiv 2003.00295'
SecondMoment = Callable[[Any, Any], Any]
"""`(v, g) -> v`: the second moment after a gradient."""


class FedOptState(NamedTuple):
    """The moments of the outer gradients.

    Attributes:
        mu: the first moment m, an average of the gradients; gradients have the opposite sign of the paper's Delta.
        nu: the second moment v.
    """

    mu: optax.Updates
    nu: optax.Updates


def _reference(second: SecondMoment, rate: float, b1: float, tau: float) -> Callable[[np.ndarray, np.ndarray], Any]:
    """The paper's algorithm 2 in plain NumPy, for laws: gradients [T, W, ...] to updates [T, W, ...]."""

    def loop(gradients: np.ndarray, start: np.ndarray) -> np.ndarray:
        del start
        m, v, updates = np.zeros(gradients.shape[1:]), np.full(gradients.shape[1:], tau**2), []
        for delta in -gradients:
            m, v = b1 * m + (1 - b1) * delta, second(v, delta)
            updates.append(rate * m / (np.sqrt(v) + tau))
        return np.stack(updates)

    return loop


@algorithm(
    paper=PAPER,
    examples={
        'fed_adagrad(0.1, b1=0.5, tau=0.01)': (
            laws.matches_reference(_reference(lambda v, d: v + d**2, 0.1, 0.5, 0.01)),
            laws.sends_nothing(),
        ),
    },
)
def fed_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.0,
    tau: float = 1e-3,
    initial_accumulator_value: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """FedAdagrad: each entry's rate falls with the sum of its squared gradients.

    With g the outer gradient, m <- b1 m + (1 - b1) g, v <- v + g^2, and the parameters move by - learning_rate m /
    (sqrt(v) + tau). The outer gradient is the paper's Delta with the opposite sign. As an outer optimiser,
    `diloco(every=50, outer=fed_adagrad(0.1))`, it steps once a round.

    Args:
        learning_rate: the server's learning rate eta, or a schedule of the steps that it has taken.
        b1: decay of the first moment; 0, as in the paper, for none.
        tau: the degree of adaptivity, added to the root of v.
        initial_accumulator_value: v before the first step; None for tau^2, the least that the paper allows.

    Raises:
        InputError: `b1` is not in [0, 1), `tau` is not above 0, `initial_accumulator_value` is below 0, or a parameter
            is complex.

    >>> outer = fed_adagrad(learning_rate=1.0, tau=1.0, initial_accumulator_value=0.0)
    >>> outer.update(jnp.array([3.0]), outer.init(jnp.zeros(1)))[0]
    Array([-0.75], dtype=float32)
    """
    return _adaptive('fed_adagrad', lambda v, g: v + g**2, learning_rate, b1, 0.0, tau, initial_accumulator_value)


@algorithm(
    paper=PAPER,
    examples={
        'fed_adam(0.1, b1=0.8, b2=0.9, tau=0.01)': (
            laws.matches_reference(_reference(lambda v, d: 0.9 * v + 0.1 * d**2, 0.1, 0.8, 0.01)),
            laws.sends_nothing(),
        ),
    },
)
def fed_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_accumulator_value: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """FedAdam: Adam without bias correction, and with v = tau^2 before the first step.

    With g the outer gradient, m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, and the parameters move by -
    learning_rate m / (sqrt(v) + tau). The outer gradient is the paper's Delta with the opposite sign. As an outer
    optimiser, `diloco(every=50, outer=fed_adam(0.01))`, it steps once a round.

    Args:
        learning_rate: the server's learning rate eta, or a schedule of the steps that it has taken.
        b1: decay of the first moment.
        b2: decay of the second moment.
        tau: the degree of adaptivity, added to the root of v.
        initial_accumulator_value: v before the first step; None for tau^2, the least that the paper allows.

    Raises:
        InputError: `b1` or `b2` is not in [0, 1), `tau` is not above 0, `initial_accumulator_value` is below 0, or a
            parameter is complex.

    >>> outer = fed_adam(learning_rate=1.0, b1=0.5, b2=0.75, tau=0.5, initial_accumulator_value=0.0)
    >>> outer.update(jnp.array([3.0]), outer.init(jnp.zeros(1)))[0]
    Array([-0.75], dtype=float32)
    """
    second = lambda v, g: b2 * v + (1 - b2) * g**2  # noqa: E731
    return _adaptive('fed_adam', second, learning_rate, b1, b2, tau, initial_accumulator_value)


@algorithm(
    paper=PAPER,
    examples={
        'fed_yogi(0.1, b1=0.8, b2=0.9, tau=0.01)': (
            laws.matches_reference(_reference(lambda v, d: v - 0.1 * d**2 * np.sign(v - d**2), 0.1, 0.8, 0.01)),
            laws.sends_nothing(),
        ),
    },
)
def fed_yogi(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_accumulator_value: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """FedYogi: as FedAdam, but the second moment moves towards g^2 by steps of (1 - b2) g^2, whatever its distance.

    With g the outer gradient, m <- b1 m + (1 - b1) g, v <- v - (1 - b2) g^2 sign(v - g^2), and the parameters move by -
    learning_rate m / (sqrt(v) + tau). The outer gradient is the paper's Delta with the opposite sign. As an outer
    optimiser, `diloco(every=50, outer=fed_yogi(0.01))`, it steps once a round.

    Args:
        learning_rate: the server's learning rate eta, or a schedule of the steps that it has taken.
        b1: decay of the first moment.
        b2: 1 less the rate of the second moment.
        tau: the degree of adaptivity, added to the root of v.
        initial_accumulator_value: v before the first step; None for tau^2, the least that the paper allows.

    Raises:
        InputError: `b1` or `b2` is not in [0, 1), `tau` is not above 0, `initial_accumulator_value` is below 0, or a
            parameter is complex.

    >>> outer = fed_yogi(learning_rate=1.0, b1=0.5, b2=0.75, tau=0.5, initial_accumulator_value=0.0)
    >>> outer.update(jnp.array([3.0]), outer.init(jnp.zeros(1)))[0]
    Array([-0.75], dtype=float32)
    """
    second = lambda v, g: v - (1 - b2) * jnp.sign(v - g**2) * g**2  # noqa: E731
    return _adaptive('fed_yogi', second, learning_rate, b1, b2, tau, initial_accumulator_value)


def _adaptive(
    name: str,
    second: SecondMoment,
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    tau: float,
    initial: float | None,
) -> optax.GradientTransformationExtraArgs:
    """The paper's algorithm 2 with the rule `second` of the second moment."""
    for argument, decay in (('b1', b1), ('b2', b2)):
        if not 0 <= decay < 1:
            raise InputError(f'{name}: {argument}={decay} must be 0 or more, and less than 1')
    if not tau > 0:
        raise InputError(f'{name}: tau={tau} must be above 0: an entry without any gradient would be divided by 0')
    first = tau**2 if initial is None else initial
    if not first >= 0:
        raise InputError(f'{name}: initial_accumulator_value={initial} must be 0 or more: it is a second moment')

    def init(params: optax.Params) -> FedOptState:
        cure = f'contrib.split_real_and_imaginary({name}(...)) steps their real and imaginary parts'
        check_real(f'{name}: second moments are of real numbers', params, cure)
        return FedOptState(
            jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda p: jnp.full_like(p, first), params)
        )

    def update(updates: optax.Updates, state: FedOptState, params: Any = None) -> tuple[optax.Updates, FedOptState]:
        del params
        # The paper has no bias correction, and adds tau outside of the root.
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)
        nu = jax.tree.map(lambda v, g: second(v, g).astype(v.dtype), state.nu, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), mu, nu), FedOptState(mu, nu)

    scaled = optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))
    return optax.with_extra_args_support(scaled)
