"""Reference implementation in NumPy: W separate workers in a plain loop, written from the papers and without JAX.

A line is a list of transformations. Each maps the values of all workers, [W, n], where jaxdist's program has those of
one. Values are float64 and a model's parameters are one vector; a codec's scales are float32, as they are sent.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Array = np.ndarray
Parts = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
Batch = Mapping[str, Array]


def join(parts: Parts) -> Array:
    """One vector of all arrays, in the order of their names, which is JAX's order of a dict's leaves."""
    return np.concatenate([parts[name].ravel() for name in sorted(parts)])


def split(vector: Array, shapes: Shapes) -> dict[str, Array]:
    """The arrays that `join` has concatenated to `vector`."""
    parts, at = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        parts[name] = vector[at : at + size].reshape(shapes[name])
        at += size
    return parts


# Models: the sum of the loss over a batch, and its gradient written by hand.


def plane(params: Parts, batch: Batch, weight: Array) -> tuple[float, dict[str, Array]]:
    """Least squares with many targets: x w + b against y."""
    error = batch['x'] @ params['w'] + params['b'] - batch['y']
    weighted = weight[:, None] * error
    return 0.5 * np.sum(weighted * error), {'b': weighted.sum(0), 'w': batch['x'].T @ weighted}


def network(params: Parts, batch: Batch, weight: Array) -> tuple[float, dict[str, Array]]:
    """Least squares after one hidden layer: tanh(x w1 + b1) w2 + b2 against y."""
    hidden = np.tanh(batch['x'] @ params['w1'] + params['b1'])
    error = hidden @ params['w2'] + params['b2'] - batch['y']
    weighted = weight[:, None] * error
    back = weighted @ params['w2'].T * (1 - hidden**2)
    gradient = {
        'b1': back.sum(0),
        'b2': weighted.sum(0),
        'w1': batch['x'].T @ back,
        'w2': hidden.T @ weighted,
    }
    return 0.5 * np.sum(weighted * error), gradient


class Model(NamedTuple):
    """A loss and the shapes of its parameters."""

    loss: Callable[[Parts, Batch, Array], tuple[float, dict[str, Array]]]
    shapes: Shapes


# Communication.


class Int8:
    """Codes floor(x / scale + 1/2) with scale = max |x| / 127 for each block.

    `margin` is the smallest distance so far of a number from one with another code.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self.margin = np.inf

    def sent(self, x: Array) -> Array:
        """`x` as the receiver decodes it."""
        return np.concatenate([self._block(block) for block in np.split(x, len(x) // self.block)])

    def _block(self, x: Array) -> Array:
        scale = float(np.float32(np.abs(x).max()) / np.float32(127))
        if scale == 0:
            return np.zeros(len(x))
        position = x / scale
        distance = np.abs(position - np.floor(position) - 0.5)
        self.margin = min(self.margin, float(distance.min() * scale))
        return scale * np.floor(position + 0.5)


class Exchange(Protocol):
    """How the mean of the workers' vectors is communicated: [W, n] -> [n]."""

    def mean(self, vectors: Array) -> Array: ...


class Exact:
    """The exact mean."""

    def mean(self, vectors: Array) -> Array:
        """The mean over workers."""
        return vectors.mean(0)


class TwoPhases:
    """Worker j decodes part j of all workers, takes the mean and sends it, encoded again, to all.

    With feedback each worker adds the compression error of its messages to the next ones (arXiv 1901.09847). The mean
    divides by W, so the error of the second message counts W-fold in the residual of the one worker that sent it. A
    worker does not send its own part to itself, so that part is not rounded in the first phase.
    """

    def __init__(self, codec: Int8, feedback: bool) -> None:
        self.codec = codec
        self.feedback = feedback
        self.residual = np.zeros(())  # [W, n] after the first exchange

    def mean(self, vectors: Array) -> Array:
        """The mean over workers, as all of them decode it."""
        workers, size = vectors.shape
        whole = vectors + self.residual
        part = -(-size // (workers * self.codec.block)) * self.codec.block
        padding = np.zeros((workers, workers * part - size))
        parts = np.concatenate([whole, padding], 1).reshape(workers, workers, part)  # [from, to, part]
        residual, means = parts.copy(), []
        for owner in range(workers):
            received = np.array([self.codec.sent(parts[worker, owner]) for worker in range(workers)])
            received[owner] = parts[owner, owner]
            mean = received.mean(0)
            means.append(self.codec.sent(mean))
            residual[:, owner] -= received
            residual[owner, owner] += workers * (mean - means[owner])
        if self.feedback:
            self.residual = residual.reshape(workers, -1)[:, :size]
        return np.concatenate(means)[:size]


# Transformations of all workers' values, given their example counts and parameters.


class Transformation(Protocol):
    """`(values [W, n], counts [W], params [W, n]) -> values [W, n]`."""

    def __call__(self, values: Array, counts: Array, params: Array) -> Array: ...


class Mean:
    """The mean over all examples, for all workers: each worker's value is weighted by its number of examples."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        weights = len(counts) * counts / counts.sum()
        return np.tile(self.exchange.mean(weights[:, None] * values), (len(values), 1))


class Delay:
    """Returns the values of `steps` steps before; zeros at first (Zinkevich et al. 2009).

    Counts are not delayed: before `Mean` they have to be the same at every step.
    """

    def __init__(self, steps: int) -> None:
        self.queue: deque[Array] = deque()
        self.steps = steps

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.queue.append(values)
        return self.queue.popleft() if len(self.queue) > self.steps else np.zeros_like(values)


class Sgd:
    """Gradient descent on each worker, with the momentum of Sutskever et al. 2013."""

    def __init__(self, rate: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.rate, self.momentum, self.nesterov = rate, momentum, nesterov
        self.velocity = np.zeros(())

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.velocity = self.momentum * self.velocity + values
        ahead = values + self.momentum * self.velocity if self.nesterov else self.velocity
        return -self.rate * ahead


class AdamW:
    """Adam with decoupled weight decay on each worker (arXiv 1412.6980 algorithm 1, 1711.05101 algorithm 2)."""

    def __init__(self, rate: float, decay: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
        self.rate, self.decay, self.b1, self.b2, self.eps = rate, decay, b1, b2, eps
        self.first = np.zeros(())
        self.second = np.zeros(())
        self.time = 0

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.time += 1
        self.first = self.b1 * self.first + (1 - self.b1) * values
        self.second = self.b2 * self.second + (1 - self.b2) * values**2
        first = self.first / (1 - self.b1**self.time)
        second = self.second / (1 - self.b2**self.time)
        return -self.rate * (first / (np.sqrt(second) + self.eps) + self.decay * params)


class Average:
    """Local SGD (arXiv 1805.09767): every `every` steps all workers move to the mean of their parameters.

    The displacements since the last round are averaged, which for an exact mean is the same.
    """

    def __init__(self, every: int, exchange: Exchange) -> None:
        self.every, self.exchange = every, exchange
        self.time = 0
        self.anchor: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.anchor is None:
            self.anchor = params[0]
        self.time += 1
        if self.time % self.every:
            return values
        self.anchor = self.anchor + self.exchange.mean(params + values - self.anchor)
        return self.anchor - params


# The loop.


class Trajectory(NamedTuple):
    """A run: parameters after each step [T, W, n], and sums of the loss [T, W] and counts [T, W] before it."""

    params: Array
    losses: Array
    counts: Array


def examples_of(worker: int, workers: int, batch: Batch) -> Batch:
    """A worker's examples: the batch is split into W equal parts, in order."""
    share = len(batch['x']) // workers
    return {name: array[worker * share : (worker + 1) * share] for name, array in batch.items()}


def gradient(model: Model, params: Array, batch: Batch) -> tuple[Array, float, float]:
    """One worker's gradient of the mean loss over its part of the batch, the sum of the loss, and its count."""
    weight = batch['weight'] if 'weight' in batch else np.ones(len(batch['x']))
    loss, sums = model.loss(split(params, model.shapes), batch, weight)
    count = float(weight.sum())
    return join(sums) / count if count else np.zeros_like(params), loss, count


def train(
    model: Model, start: Array, line: Sequence[Transformation], batches: Sequence[Batch], workers: int
) -> Trajectory:
    """Trains `workers` workers from the same `start` [n], one step for each batch."""
    params = np.tile(start, (workers, 1))
    steps = []
    for batch in batches:
        each = [gradient(model, params[i], examples_of(i, workers, batch)) for i in range(workers)]
        values, losses, counts = (np.array(column) for column in zip(*each, strict=True))
        for transformation in line:
            values = transformation(values, counts, params)
        params = params + values
        steps.append((params, losses, counts))
    return Trajectory(*(np.array(column) for column in zip(*steps, strict=True)))
