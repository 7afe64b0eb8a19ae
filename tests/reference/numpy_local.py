"""Reference implementations in NumPy of local training: local SGD, SlowMo, DiLoCo and its variants, DES-LOC.

Transformations as in `numpy_training`. Each counts its calls, t = 1, 2, ...; `local` are the parameters after the
local step, params + values. All workers have to start from the same params.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy_training import Array, Exchange, Transformation

Schedule = Callable[[int], float]
Sent = Callable[[Array], Array]


# Outer optimisers: from a pseudo-gradient [n] and the anchor [n] to the outer updates [n].


class Outer(Protocol):
    """`step(gradient [n], params [n]) -> updates [n]`; it has state."""

    def step(self, gradient: Array, params: Array) -> Array: ...


class OuterSgd:
    """Gradient descent with the momentum of Sutskever et al. 2013, in the form of PyTorch and optax."""

    def __init__(self, rate: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.rate, self.momentum, self.nesterov = rate, momentum, nesterov
        self.velocity = np.zeros(())

    def step(self, gradient: Array, params: Array) -> Array:
        """The updates."""
        self.velocity = self.momentum * self.velocity + gradient
        ahead = gradient + self.momentum * self.velocity if self.nesterov else self.velocity
        return -self.rate * ahead


class OuterAdam:
    """Adam (arXiv 1412.6980 algorithm 1)."""

    def __init__(self, rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
        self.rate, self.b1, self.b2, self.eps = rate, b1, b2, eps
        self.first = np.zeros(())
        self.second = np.zeros(())
        self.time = 0

    def step(self, gradient: Array, params: Array) -> Array:
        """The updates."""
        self.time += 1
        self.first = self.b1 * self.first + (1 - self.b1) * gradient
        self.second = self.b2 * self.second + (1 - self.b2) * gradient**2
        first = self.first / (1 - self.b1**self.time)
        second = self.second / (1 - self.b2**self.time)
        return -self.rate * first / (np.sqrt(second) + self.eps)


class OuterFederated:
    """FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, arXiv 2003.00295 algorithm 2), by the name of the variant."""

    def __init__(self, variant: str, rate: float, b1: float, b2: float, tau: float) -> None:
        self.variant, self.rate, self.b1, self.b2, self.tau = variant, rate, b1, b2, tau
        self.first = np.zeros(())
        self.second = np.full((), tau**2)

    def step(self, gradient: Array, params: Array) -> Array:
        """The updates; the paper's Delta, the mean over clients of new minus old parameters, is minus the gradient."""
        delta = -gradient
        square = delta * delta
        self.first = self.b1 * self.first + (1 - self.b1) * delta
        if self.variant == 'adagrad':
            self.second = self.second + square
        elif self.variant == 'adam':
            self.second = self.b2 * self.second + (1 - self.b2) * square
        else:
            self.second = self.second - (1 - self.b2) * square * np.sign(self.second - square)
        return self.rate * self.first / (np.sqrt(self.second) + self.tau)


# Sparse communication with error feedback.


def top_k(k: int, block: int) -> Sent:
    """Keeps the k largest magnitudes of each block, the first of equal ones; the last block is padded with zeros."""

    def sent(x: Array) -> Array:
        blocks = np.append(x, np.zeros(-len(x) % block)).reshape(-1, block)
        kept = np.argsort(-np.abs(blocks), axis=1, kind='stable')[:, :k]
        sparse = np.zeros_like(blocks)
        np.put_along_axis(sparse, kept, np.take_along_axis(blocks, kept, 1), 1)
        return sparse.ravel()[: len(x)]

    return sent


class DecayingFeedback:
    """Error feedback whose residual decays by `beta` (SparseLoCo, arXiv 2508.15706): the mean of decoded messages."""

    def __init__(self, sent: Sent, beta: float) -> None:
        self.sent, self.beta = sent, beta
        self.error = np.zeros(())  # [W, n] after the first exchange

    def mean(self, vectors: Array) -> Array:
        """The mean over workers, as all of them decode it."""
        whole = self.beta * self.error + vectors
        messages = np.array([self.sent(vector) for vector in whole])
        self.error = whole - messages
        return messages.mean(0)


# Transformations.


class Average:
    """Local SGD (arXiv 1805.09767) with a schedule: a round `every(t - 1)` steps or more after the last round.

    `every` is rounded to the nearest whole number (a half to the even one) and is at least 1.
    """

    def __init__(self, every: Schedule, exchange: Exchange) -> None:
        self.every, self.exchange = every, exchange
        self.time = self.since = 0
        self.anchor: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor = params[0]
        period = max(1, round(float(self.every(self.time))))
        self.time += 1
        self.since += 1
        if self.since < period:
            return values
        self.since = 0
        self.anchor = self.anchor + self.exchange.mean(params + values - self.anchor)
        return self.anchor - params


class PostLocal:
    """Post-local SGD (Lin et al. 2020, arXiv 1808.07217): the mean of gradients for `start` steps, then local SGD."""

    def __init__(
        self, optimiser: Transformation, start: int, every: int, gradients: Exchange, parameters: Exchange
    ) -> None:
        self.optimiser, self.start, self.every = optimiser, start, every
        self.gradients, self.parameters = gradients, parameters
        self.time = 0
        self.anchor = np.zeros(())

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.time += 1
        if self.time <= self.start:
            values = np.tile(self.gradients.mean(values), (len(values), 1))
            updates = self.optimiser(values, counts, params)
            self.anchor = (params + updates)[0]
            return updates
        updates = self.optimiser(values, counts, params)
        if (self.time - self.start) % self.every:
            return updates
        self.anchor = self.anchor + self.parameters.mean(params + updates - self.anchor)
        return self.anchor - params


class SlowMo:
    """Slow momentum over local SGD (Wang et al. 2020, arXiv 1910.00643 algorithm 1).

    The pseudo-gradients, x0 - local, are averaged; `rate` is evaluated at the number of steps taken before this one.
    """

    def __init__(self, every: int, alpha: float, beta: float, rate: Schedule, exchange: Exchange) -> None:
        self.every, self.alpha, self.beta, self.rate, self.exchange = every, alpha, beta, rate, exchange
        self.time = 0
        self.slow = np.zeros(())
        self.anchor: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor = params[0]
        self.time += 1
        if self.time % self.every:
            return values
        gamma = self.rate(self.time - 1)
        self.slow = self.beta * self.slow + self.exchange.mean(self.anchor - params - values) / gamma
        self.anchor = self.anchor - self.alpha * gamma * self.slow
        return self.anchor - params


class DiLoCo:
    """An outer optimiser steps along the mean pseudo-gradient (Douillard et al. 2023, arXiv 2311.08105)."""

    def __init__(self, every: int, outer: Outer, exchange: Exchange) -> None:
        self.every, self.outer, self.exchange = every, outer, exchange
        self.time = 0
        self.anchor: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor = params[0]
        self.time += 1
        if self.time % self.every:
            return values
        self.anchor = self.anchor + self.outer.step(self.exchange.mean(self.anchor - params - values), self.anchor)
        return self.anchor - params


class Streaming:
    """Streaming DiLoCo (arXiv 2501.18512): fragments are synchronised in turn, while local training continues.

    The pseudo-gradients of fragment p are taken at its turn and averaged `overlap` steps later; each worker then keeps
    its own parameters with weight `mixing`. `exchange_of(p)` returns the exchange of fragment p.
    """

    def __init__(
        self,
        every: int,
        outers: Sequence[Outer],
        fragments: Sequence[Array],
        overlap: int,
        mixing: float,
        exchange_of: Callable[[int], Exchange],
    ) -> None:
        if not 0 <= overlap < every:
            raise ValueError(f'overlap is {overlap}, has to be from 0 to {every - 1}')
        self.every, self.outers, self.fragments, self.overlap, self.mixing = every, outers, fragments, overlap, mixing
        self.exchanges = [exchange_of(p) for p in range(len(fragments))]
        self.time = 0
        self.anchor: Array | None = None
        self.in_flight: dict[int, Array] = {}  # fragment: pseudo-gradients [W, its size]

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor = params[0].copy()
        self.time += 1
        local, updates = params + values, values.copy()
        for p, fragment in enumerate(self.fragments):
            turn = p * self.every // len(self.fragments)
            if (self.time - turn) % self.every == 0:
                self.in_flight[p] = self.anchor[fragment] - local[:, fragment]
            if (self.time - turn - self.overlap) % self.every == 0 and p in self.in_flight:
                mean = self.exchanges[p].mean(self.in_flight.pop(p))
                self.anchor[fragment] += self.outers[p].step(mean, self.anchor[fragment])
                mixed = self.mixing * local[:, fragment] + (1 - self.mixing) * self.anchor[fragment]
                updates[:, fragment] = mixed - params[:, fragment]
        return updates


class Eager:
    """DiLoCo with eager updates (Kale et al. 2025, arXiv 2502.12996): pseudo-gradients of others come a round later."""

    def __init__(self, every: int, outers: Sequence[Outer], exchange: Exchange) -> None:
        self.every, self.outers, self.exchange = every, outers, exchange
        self.time = 0
        self.anchor: Array | None = None  # [W, n], one for each worker
        self.last = np.zeros(())  # [W, n], each worker's last pseudo-gradient

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor, self.last = params.copy(), np.zeros_like(params)
        self.time += 1
        if self.time % self.every:
            return values
        new = self.anchor - params - values
        estimates = self.exchange.mean(self.last) + (new - self.last) / len(values)
        steps = [outer.step(*pair) for outer, *pair in zip(self.outers, estimates, self.anchor, strict=True)]
        self.anchor, self.last = self.anchor + np.array(steps), new
        return self.anchor - params


class Desynced:
    """DES-LOC (arXiv 2505.22549) for any optimiser: parameters and each moment are averaged at separate periods.

    `averages` maps attributes [W, n] of `optimiser` to their periods: at the end of each period they are averaged
    exactly over workers. The moments are raw, so an average does not affect the bias correction.
    """

    def __init__(self, optimiser: Transformation, every: int, averages: Mapping[str, int]) -> None:
        self.optimiser, self.every, self.averages = optimiser, every, averages
        self.time = 0

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.time += 1
        updates = self.optimiser(values, counts, params)
        for name, period in self.averages.items():
            if self.time % period == 0:
                moment = getattr(self.optimiser, name)
                setattr(self.optimiser, name, np.tile(moment.mean(0), (len(moment), 1)))
        return updates if self.time % self.every else (params + updates).mean(0) - params


class DesLoc(Desynced):
    """DES-LOC with Adam (arXiv 2505.22549): `adam` is an `AdamW`, `first` and `second` the periods of its moments."""

    def __init__(self, adam: Transformation, every: int, first: int, second: int) -> None:
        super().__init__(adam, every, {'first': first, 'second': second})
