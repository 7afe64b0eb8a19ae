"""Reference implementation of training by a table of arrivals: a plain loop, with a dict of versions.

A message is a gradient, or the difference after local steps. Rules of the server are applied one after another to the
weighted sum of messages [n], and give the update of the parameters.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy_arrivals import Row
from numpy_training import Array, Transformation

Message = Callable[[Array, int, int], Array]
"""A worker's message [n] from the parameters that it reads [n], its number and its turn."""


class Context(NamedTuple):
    """What a rule of the server knows of the arrival that closes an update.

    Attributes:
        staleness: updates applied since the worker read the parameters.
        read: the parameters that the worker read, [n].
        params: the present parameters, [n].
        worker: its number.
    """

    staleness: int
    read: Array
    params: Array
    worker: int


ServerRule = Callable[[Array, Context], Array]


# Messages.


class LocalSteps:
    """The difference after local steps, start minus end; each worker's optimiser keeps its state between messages.

    `gradient(params, worker, step)` counts the steps of all turns, those of cancelled ones too; they leave no trace in
    the optimiser's state.
    """

    def __init__(self, gradient: Message, optimiser: Callable[[], Transformation], steps: Callable[[int], int]) -> None:
        self.gradient, self.optimiser, self.steps = gradient, optimiser, steps
        self.optimisers: dict[int, Transformation] = {}

    def __call__(self, params: Array, worker: int, turn: int) -> Array:
        optimiser = self.optimisers.setdefault(worker, self.optimiser())
        local, steps = params, self.steps(worker)
        for step in range(turn * steps, (turn + 1) * steps):
            values = self.gradient(local, worker, step)
            local = local + optimiser(values[None], np.ones(1), local[None])[0]
        return params - local


# Weights by staleness, of each message.


def inverse(staleness: int) -> float:
    """Staleness-aware SGD (Zhang et al. 2016, arXiv 1511.05950)."""
    return 1 / max(1, staleness)


def inverse_root(staleness: int) -> float:
    """FedBuff (Nguyen et al. 2022, arXiv 2106.06639). Checked: a message without staleness has weight 1."""
    return 1 / np.sqrt(1 + staleness)


def threshold(limit: float) -> Callable[[int], float]:
    """min(1, limit / staleness) (Koloskova et al. 2022, arXiv 2206.08307). Checked: 1 up to the limit."""
    return lambda staleness: min(1.0, limit / staleness) if staleness else 1.0


# Rules of the server.


class Optimiser:
    """An optimiser for all workers of `numpy_training`, as that of the server alone."""

    def __init__(self, transformation: Transformation) -> None:
        self.transformation = transformation

    def __call__(self, values: Array, context: Context) -> Array:
        return self.transformation(values[None], np.ones(1), context.params[None])[0]


class DelayCompensation:
    """DC-ASGD (Zheng et al. 2017, arXiv 1609.08326): g + lambda g g (x - read); with `adaptive`, DC-ASGD-a."""

    def __init__(self, strength: float, adaptive: bool = False, decay: float = 0.95, eps: float = 1e-7) -> None:
        self.strength, self.adaptive, self.decay, self.eps = strength, adaptive, decay, eps
        self.square = np.zeros(())

    def __call__(self, values: Array, context: Context) -> Array:
        strength = np.full_like(values, self.strength)
        if self.adaptive:
            self.square = self.decay * self.square + (1 - self.decay) * values**2
            strength = self.strength / np.sqrt(self.square + self.eps)
        return values + strength * values**2 * (context.params - context.read)


class DelayedNesterov:
    """Momentum that changes at every n-th arrival (Liu et al. 2024, arXiv 2401.09135 algorithm 3); 0 <= c <= 1/n.

    Checked: n = 1 is Nesterov's momentum for every c, n arrivals from momentum zero and with c = 0 are one of their
    mean, and over n arrivals the momentum's coefficients sum to 1.
    """

    def __init__(self, rate: float, momentum: float, n: int, c: float = 0.0) -> None:
        self.rate, self.momentum, self.n, self.c = rate, momentum, n, c
        self.arrivals = 0
        self.velocity = np.zeros(())
        self.buffer = np.zeros(())

    def __call__(self, values: Array, context: Context) -> Array:
        self.arrivals += 1
        self.buffer = self.buffer + values
        coefficient = self.c
        if self.arrivals % self.n == 0:
            self.velocity = self.momentum * self.velocity + self.buffer / self.n
            self.buffer = np.zeros(())
            coefficient = 1 - self.c * self.n + self.c
        return -self.rate * (coefficient * self.momentum * self.velocity + values / self.n)


class HeLoCo:
    """Corrects a pseudo-gradient d by the outer momentum m, tensor by tensor (arXiv 2606.00271), then steps.

    Without a direction of d or of m, as at the first arrival, d is not corrected.

    Args:
        rate, mu: of the step: m <- mu m + (1 - mu) d, then -rate (d + mu m).
        tensors: the entries of each tensor.
        keep: the cosine from which d is not corrected.
        shrink, shrink_limit: how much of a component against m is taken away.
        turn: how far a d that is not aligned is turned to m, with its norm.
        kappa: how much the norm of m lowers the trust in a direction.
    """

    def __init__(
        self,
        rate: float,
        mu: float,
        tensors: Iterable[Array],
        keep: float,
        shrink: float,
        shrink_limit: float,
        turn: float,
        kappa: float,
    ) -> None:
        self.rate, self.mu, self.tensors, self.keep = rate, mu, list(tensors), keep
        self.shrink, self.shrink_limit, self.turn, self.kappa = shrink, shrink_limit, turn, kappa
        self.momentum: Array | None = None

    def __call__(self, values: Array, context: Context) -> Array:
        momentum = np.zeros_like(values) if self.momentum is None else self.momentum
        corrected = values.copy()
        for tensor in self.tensors:
            corrected[tensor] = self.correct(values[tensor], momentum[tensor])
        self.momentum = self.mu * momentum + (1 - self.mu) * corrected
        return -self.rate * (corrected + self.mu * self.momentum)

    def correct(self, d: Array, m: Array) -> Array:
        """One tensor's pseudo-gradient after the correction."""
        size, trend = float(np.linalg.norm(d)), float(np.linalg.norm(m))
        if size == 0 or trend == 0:
            return d
        u, v = d / size, m / trend
        cosine, trust = float(u @ v), size / (size + self.kappa * trend)
        if cosine >= self.keep:
            return d
        if cosine < 0:
            return d - min(-self.shrink * cosine * trust, self.shrink_limit) * cosine * size * v
        part = min(self.turn * (1 - cosine) * trust, 1)
        turned = (1 - part) * u + part * v
        return size * turned / np.linalg.norm(turned)


# The loops.


def train(
    rows: Sequence[Row],
    start: Array,
    message: Message,
    server: Sequence[ServerRule],
    weigh: Callable[[int], float] = lambda staleness: 1.0,
) -> Array:
    """The parameters of each version, [V + 1, n]; `weigh` is a message's weight by staleness, beside the row's."""
    versions = {0: start}
    total = np.zeros_like(start)
    for row in rows:
        read = versions[row.read]
        total = total + row.weight * weigh(row.staleness) * message(read, row.worker, row.turn)
        if row.closes:
            params = versions[row.version]
            for rule in server:
                total = rule(total, Context(row.staleness, read, params, row.worker))
            versions[row.version + 1] = params + total
            total = np.zeros_like(start)
    return np.array([versions[version] for version in sorted(versions)])


def train_pairs(
    rows: Sequence[Row], start: Array, message: Message, optimiser: Callable[[], Transformation], workers: int
) -> Array:
    """AD-PSGD: the parameters of all workers after each arrival, [E + 1, W, n].

    The worker and its partner take the mean of their parameters; then the worker alone moves, by an update from the
    parameters that it read. Checked: the mean over workers moves by 1/W of the update.
    """
    optimisers = [optimiser() for _ in range(workers)]
    versions = {0: np.tile(start, (workers, 1))}
    for row in rows:
        values = message(versions[row.read][row.worker], row.worker, row.turn)
        params = versions[row.version].copy()
        mean = (params[row.worker] + params[row.partner]) / 2
        params[row.partner] = mean
        params[row.worker] = mean + optimisers[row.worker](values[None], np.ones(1), mean[None])[0]
        versions[row.version + 1] = params
    return np.array([versions[version] for version in sorted(versions)])
