"""NumPy twins of the algorithms with a centre or with late gradients: EASGD, stale gradients, a parameter server.

Links as in `twin`. A link counts its calls, t = 1, 2, ...
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy_training import Array, Link, Shapes


class Easgd:
    """Synchronous elastic averaging SGD (Zhang et al. 2015, arXiv 1412.6651): a spring from each worker to a centre."""

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
        pull = self.beta / len(params) * (params - self.centre)
        self.centre = self.centre + pull.sum(0)
        return values - pull


class Arrivals:
    """Values arrive late, each with its own delay, and weigh less for it (Zhang et al. 2016, arXiv 1511.05950).

    Worker i's value of step t arrives at step t + d, d = `delays(i, t - 1)`, times max(1, d) ** -`power`. What arrives
    together is added up.
    """

    def __init__(self, delays: Callable[[int, int], int], longest: int, power: float) -> None:
        self.delays, self.longest, self.power = delays, longest, power
        self.time = 0
        self.coming: deque[Array] = deque()  # what arrives at this step, the next, ...

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        while len(self.coming) <= self.longest:
            self.coming.append(np.zeros_like(values))
        for worker, value in enumerate(values):
            delay = self.delays(worker, self.time)
            if not 0 <= delay <= self.longest:
                raise ValueError(f'a delay of {delay} steps, has to be from 0 to {self.longest}')
            self.coming[delay][worker] += max(1, delay) ** -float(self.power) * value
        self.time += 1
        return self.coming.popleft()


class DcAsgd:
    """Late gradients, moved to where params are by a diagonal guess at the Hessian (Zheng et al. 2017, 1609.08326).

    One fixed delay a worker. `decay` and `eps` are for `adaptive`, where each worker has its own mean square.
    """

    def __init__(
        self, delays: Sequence[int], strength: float, adaptive: bool, decay: float = 0.95, eps: float = 1e-7
    ) -> None:
        self.delays, self.strength, self.adaptive, self.decay, self.eps = delays, strength, adaptive, decay, eps
        self.waiting: list[deque[tuple[Array, Array]]] = [deque() for _ in delays]
        self.square: Array | None = None  # [W, n]

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.square is None:
            self.square = np.zeros_like(values)
        out = np.zeros_like(values)
        for i, (delay, waiting) in enumerate(zip(self.delays, self.waiting, strict=True)):
            waiting.append((values[i], params[i]))
            if len(waiting) <= delay:
                continue
            late, old = waiting.popleft()
            strength = self.strength
            if self.adaptive:
                self.square[i] = self.decay * self.square[i] + (1 - self.decay) * late * late
                strength = self.strength / np.sqrt(self.square[i] + self.eps)
            out[i] = late + strength * late * late * (params[i] - old)
        return out


class Codec(Protocol):
    """What a receiver decodes of a vector. With a `block`, the vector's length has to be a multiple of it."""

    def sent(self, x: Array) -> Array: ...


def _sent(codec: Codec | None, vector: Array) -> Array:
    """`vector` as the receiver decodes it, sent with as many zeros behind it as the codec's block needs."""
    if codec is None:
        return vector
    padding = np.zeros(-len(vector) % getattr(codec, 'block', 1))
    return codec.sent(np.append(vector, padding))[: len(vector)]


class Server:
    """A parameter server, each worker the server of a part of every leaf (Li et al. 2014, Ho et al. 2013).

    Gradients are pushed at each step, parameters pulled at every `staleness` + 1st, and stand still in between.
    `optimisers` are one a worker, elementwise, each for what its worker owns: one vector, leaves in order of name.
    With `feedback` a worker adds what its pushes left out to the next (arXiv 1901.09847). With `by_count` pushes are
    weighed as by `twin.Mean`.
    """

    def __init__(
        self,
        optimisers: Sequence[Link],
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
        self.left = np.zeros(())  # [from, to, part] after the first push
        self.masters: Array | None = None  # [owner, part]
        self.known: Array | None = None  # [owner, part], what all workers have

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.masters is None or self.known is None:
            self.masters = self._parts(params[0])
            self.known = self.masters.copy()
        self.time += 1
        weights = len(counts) * counts / counts.sum() if self.by_count else np.ones(len(values))
        pushed = np.array([self._parts(vector) for vector in weights[:, None] * values]) + self.left
        received = pushed.copy()
        for owner, optimiser in enumerate(self.optimisers):
            for worker in range(len(values)):
                if worker != owner:
                    received[worker, owner] = _sent(self.push, pushed[worker, owner])
            mean, master = received[:, owner].mean(0), self.masters[owner]
            self.masters[owner] = master + optimiser(mean[None], counts.sum(keepdims=True), master[None])[0]
        if self.feedback:
            self.left = pushed - received
        if self.time % (self.staleness + 1):
            return np.zeros_like(values)
        if self.pull is None:
            self.known = self.masters.copy()
        else:
            self.known = self.known + [_sent(self.pull, news) for news in self.masters - self.known]
        whole = np.zeros(params.shape[1] + 1)
        whole[self.owned] = self.known
        return whole[:-1] - params

    def _parts(self, vector: Array) -> Array:
        """What each owner has of `vector`: [n] -> [owner, part]."""
        return np.append(vector, 0.0)[self.owned]


def _owned(shapes: Shapes, workers: int) -> Array:
    """Where in the joined vector each owner's part lies: [owner, part]; n stands for the zeros that pad a leaf."""
    sizes = [int(np.prod(shapes[name])) for name in sorted(shapes)]
    parts, at = [], 0
    for size in sizes:
        each = -(-size // workers)
        padding = np.full(workers * each - size, sum(sizes))
        parts.append(np.append(np.arange(at, at + size), padding).reshape(workers, each))
        at += size
    return np.concatenate(parts, 1)
