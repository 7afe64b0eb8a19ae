"""A NumPy twin of jaxdist: W separate workers in a plain loop, written from the papers, and without JAX.

A line is a list of links. A link sees the values of all workers, [W, n], where jaxdist's program sees one worker's.
Numbers are float64, a model's parameters one vector of them; a codec's scales are float32, as on the wire.
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
    """The arrays that `join` made `vector` of."""
    parts, at = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        parts[name] = vector[at : at + size].reshape(shapes[name])
        at += size
    return parts


# Models: the sum of the loss over a batch, and its gradient by hand.


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


# The wire.


class Int8:
    """Codes floor(x / scale + 1/2) with scale = max |x| / 127 for each block.

    `margin` is how far, at least, a number was from one that gets another code.
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
        to_edge = np.abs(position - np.floor(position) - 0.5)
        self.margin = min(self.margin, float(to_edge.min() * scale))
        return scale * np.floor(position + 0.5)


class Exchange(Protocol):
    """How workers find the mean of their vectors: [W, n] -> [n]."""

    def mean(self, vectors: Array) -> Array: ...


class Exact:
    """Nothing is lost on the way."""

    def mean(self, vectors: Array) -> Array:
        """The mean over workers."""
        return vectors.mean(0)


class TwoPhases:
    """Worker j decodes everybody's part j, takes the mean and sends it, encoded again, to all.

    With feedback each worker adds what its earlier messages left out to the next ones (arXiv 1901.09847). The mean
    divides by W, so what the second message left out weighs W-fold in the memory of the one worker that sent it. Its
    own part it does not send, and so does not round.
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
        left, answers = parts.copy(), []
        for owner in range(workers):
            received = np.array([self.codec.sent(parts[worker, owner]) for worker in range(workers)])
            received[owner] = parts[owner, owner]
            mean = received.mean(0)
            answers.append(self.codec.sent(mean))
            left[:, owner] -= received
            left[owner, owner] += workers * (mean - answers[owner])
        if self.feedback:
            self.residual = left.reshape(workers, -1)[:, :size]
        return np.concatenate(answers)[:size]


# Links: every worker's values, its count of examples and its parameters in; its values out.


class Link(Protocol):
    """`(values [W, n], counts [W], params [W, n]) -> values [W, n]`."""

    def __call__(self, values: Array, counts: Array, params: Array) -> Array: ...


class Mean:
    """All get the mean over all examples: each worker's value counts as often as it has examples."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        weights = len(counts) * counts / counts.sum()
        return np.tile(self.exchange.mean(weights[:, None] * values), (len(values), 1))


class Delay:
    """What goes in comes out `steps` steps later; zeros before (Zinkevich et al. 2009).

    Counts are not delayed: before `Mean` they have to be the same at every step.
    """

    def __init__(self, steps: int) -> None:
        self.waiting: deque[Array] = deque()
        self.steps = steps

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.waiting.append(values)
        return self.waiting.popleft() if len(self.waiting) > self.steps else np.zeros_like(values)


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
    """Local SGD (arXiv 1805.09767): alone for `every` - 1 steps, then all move to the mean of their parameters.

    What is exchanged is how far each has come since the last meeting, which is the same for an exact mean.
    """

    def __init__(self, every: int, exchange: Exchange) -> None:
        self.every, self.exchange = every, exchange
        self.time = 0
        self.met: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.met is None:
            self.met = params[0]
        self.time += 1
        if self.time % self.every:
            return values
        self.met = self.met + self.exchange.mean(params + values - self.met)
        return self.met - params


# The loop.


class Trajectory(NamedTuple):
    """What happened: parameters after each step [T, W, n], sums of the loss [T, W] and counts [T, W] before it."""

    params: Array
    losses: Array
    counts: Array


def examples_of(worker: int, workers: int, batch: Batch) -> Batch:
    """A worker's examples: the batch is cut in W equal parts, in order."""
    share = len(batch['x']) // workers
    return {name: array[worker * share : (worker + 1) * share] for name, array in batch.items()}


def gradient(model: Model, params: Array, mine: Batch) -> tuple[Array, float, float]:
    """One worker's gradient of the mean loss over its examples, the sum of the loss, and their count."""
    weight = mine['weight'] if 'weight' in mine else np.ones(len(mine['x']))
    loss, sums = model.loss(split(params, model.shapes), mine, weight)
    count = float(weight.sum())
    return join(sums) / count if count else np.zeros_like(params), loss, count


def train(model: Model, start: Array, line: Sequence[Link], batches: Sequence[Batch], workers: int) -> Trajectory:
    """Trains `workers` workers from the same `start` [n], one step a batch."""
    params = np.tile(start, (workers, 1))
    steps = []
    for batch in batches:
        each = [gradient(model, params[i], examples_of(i, workers, batch)) for i in range(workers)]
        values, losses, counts = (np.array(column) for column in zip(*each, strict=True))
        for link in line:
            values = link(values, counts, params)
        params = params + values
        steps.append((params, losses, counts))
    return Trajectory(*(np.array(column) for column in zip(*steps, strict=True)))
