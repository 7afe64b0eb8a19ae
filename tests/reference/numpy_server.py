"""Reference implementations in NumPy of EASGD, delayed gradients and the parameter server.

Transformations as in `numpy_training`. Each counts its calls, t = 1, 2, ...
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy_training import Array, Shapes, Transformation


class Easgd:
    """Synchronous elastic averaging SGD (Zhang et al. 2015, arXiv 1412.6651): an elastic force to a centre."""

    def __init__(self, every: int, beta: float) -> None:
        self.every, self.beta = every, beta
        self.time = 0
        self.centre: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.centre is None:
            self.centre = params[0]
        self.time += 1
        if self.time % self.every:
            return values
        force = self.beta / len(params) * (params - self.centre)
        self.centre = self.centre + force.sum(0)
        return values - force


class Arrivals:
    """Delays per worker and step, with values scaled down by their delay (Zhang et al. 2016, arXiv 1511.05950).

    Worker i's value of step t arrives at step t + d, d = `delays(i, t - 1)`, times max(1, d) ** -`power`. Values that
    arrive together are summed.
    """

    def __init__(self, delays: Callable[[int, int], int], longest: int, power: float) -> None:
        self.delays, self.longest, self.power = delays, longest, power
        self.time = 0
        self.queue: deque[Array] = deque()  # the sums that arrive at this step, at the next, ...

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        while len(self.queue) <= self.longest:
            self.queue.append(np.zeros_like(values))
        for worker, value in enumerate(values):
            delay = self.delays(worker, self.time)
            if not 0 <= delay <= self.longest:
                raise ValueError(f'a delay of {delay} steps, has to be from 0 to {self.longest}')
            self.queue[delay][worker] += max(1, delay) ** -float(self.power) * value
        self.time += 1
        return self.queue.popleft()


class DcAsgd:
    """Delayed gradients, compensated with a diagonal estimate of the Hessian (Zheng et al. 2017, arXiv 1609.08326).

    Each worker has one fixed delay. `decay` and `eps` are for `adaptive`, with a mean square per worker.
    """

    def __init__(
        self, delays: Sequence[int], strength: float, adaptive: bool, decay: float = 0.95, eps: float = 1e-7
    ) -> None:
        self.delays, self.strength, self.adaptive, self.decay, self.eps = delays, strength, adaptive, decay, eps
        self.queues: list[deque[tuple[Array, Array]]] = [deque() for _ in delays]  # (gradient, its parameters)
        self.square: Array | None = None  # [W, n]

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.square is None:
            self.square = np.zeros_like(values)
        out = np.zeros_like(values)
        for i, (delay, queue) in enumerate(zip(self.delays, self.queues, strict=True)):
            queue.append((values[i], params[i]))
            if len(queue) <= delay:
                continue
            gradient, old = queue.popleft()
            strength = self.strength
            if self.adaptive:
                self.square[i] = self.decay * self.square[i] + (1 - self.decay) * gradient * gradient
                strength = self.strength / np.sqrt(self.square[i] + self.eps)
            out[i] = gradient + strength * gradient * gradient * (params[i] - old)
        return out


class Codec(Protocol):
    """A vector as the receiver decodes it. With a `block`, the vector's length has to be a multiple of it."""

    def sent(self, x: Array) -> Array: ...


def _sent(codec: Codec | None, vector: Array) -> Array:
    """`vector` as the receiver decodes it, padded with zeros to a multiple of the codec's block."""
    if codec is None:
        return vector
    padding = np.zeros(-len(vector) % getattr(codec, 'block', 1))
    return codec.sent(np.append(vector, padding))[: len(vector)]


class Server:
    """A parameter server: each worker owns one shard of every leaf (Li et al. 2014, Ho et al. 2013).

    Gradients are pushed at each step, parameters are pulled every `staleness` + 1 steps and constant in between.
    `optimisers` has one elementwise optimiser per worker, for its shard: one vector, leaves in order of name. With
    `feedback` a worker adds the compression error of a push to the next (arXiv 1901.09847). With `by_count` pushes are
    weighted as by `numpy_training.Mean`.
    """

    def __init__(
        self,
        optimisers: Sequence[Transformation],
        staleness: int,
        push: Codec | None,
        pull: Codec | None,
        shapes: Shapes,
        feedback: bool = False,
        by_count: bool = False,
    ) -> None:
        self.optimisers, self.staleness, self.push, self.pull = optimisers, staleness, push, pull
        self.feedback, self.by_count = feedback, by_count
        self.owned = _owned(shapes, len(optimisers))
        self.time = 0
        self.residual = np.zeros(())  # [from, to, part] after the first push
        self.served: Array | None = None  # [owner, part]
        self.pulled: Array | None = None  # [owner, part], the parameters that all workers have

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.served is None or self.pulled is None:
            self.served = self._parts(params[0])
            self.pulled = self.served.copy()
        self.time += 1
        weights = len(counts) * counts / counts.sum() if self.by_count else np.ones(len(values))
        pushed = np.array([self._parts(vector) for vector in weights[:, None] * values]) + self.residual
        received = pushed.copy()
        for owner, optimiser in enumerate(self.optimisers):
            for worker in range(len(values)):
                if worker != owner:
                    received[worker, owner] = _sent(self.push, pushed[worker, owner])
            mean, owned_params = received[:, owner].mean(0), self.served[owner]
            updates = optimiser(mean[None], counts.sum(keepdims=True), owned_params[None])[0]
            self.served[owner] = owned_params + updates
        if self.feedback:
            self.residual = pushed - received
        if self.time % (self.staleness + 1):
            return np.zeros_like(values)
        if self.pull is None:
            self.pulled = self.served.copy()
        else:
            self.pulled = self.pulled + [_sent(self.pull, change) for change in self.served - self.pulled]
        whole = np.zeros(params.shape[1] + 1)
        whole[self.owned] = self.pulled
        return whole[:-1] - params

    def _parts(self, vector: Array) -> Array:
        """The shards of `vector`: [n] -> [owner, part]."""
        return np.append(vector, 0.0)[self.owned]


def _owned(shapes: Shapes, workers: int) -> Array:
    """Indices of each owner's shard in the joined vector, [owner, part]; n stands for the zeros that pad a leaf."""
    sizes = [int(np.prod(shapes[name])) for name in sorted(shapes)]
    parts, at = [], 0
    for size in sizes:
        each = -(-size // workers)
        padding = np.full(workers * each - size, sum(sizes))
        parts.append(np.append(np.arange(at, at + size), padding).reshape(workers, each))
        at += size
    return np.concatenate(parts, 1)
