"""The NumPy reference implementation of exchanges and error feedback, written from the papers without JAX.

Values of W workers are [W, ...], in float64.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy_codecs import Array, Codec, largest, ratio

Parts = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]


class Gather:
    """Every worker sends its whole message to every other worker.

    Like every exchange it maps workers' vectors [W, n] to the decoded mean, [n], and each worker's compression error,
    [W, n].
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def mean(self, x: Array) -> tuple[Array, Array]:
        decoded = np.array([self.codec.roundtrip(each) for each in x])
        return decoded.mean(0), x - decoded


class TwoPhases(Gather):
    """Worker j averages chunk j of all workers and sends the mean, encoded again, to all (arXiv 2306.10209).

    The compression error of the second message is one of the mean, so it counts W-fold in its sender's residual.
    """

    def mean(self, x: Array) -> tuple[Array, Array]:
        workers, size = x.shape
        chunk = -(-size // (workers * self.codec.block)) * self.codec.block
        chunks = np.pad(x, [(0, 0), (0, workers * chunk - size)], constant_values=np.nan)
        chunks = chunks.reshape(workers, workers, chunk)
        error, means = chunks.copy(), np.zeros((workers, chunk))
        for owner in range(workers):
            received = np.array([self.codec.roundtrip(chunks[worker, owner]) for worker in range(workers)])
            if not self.codec.votes:  # a majority vote counts the sign of the own chunk too
                received[owner] = chunks[owner, owner]  # not sent, so not compressed
            average = received.mean(0)
            means[owner] = self.codec.roundtrip(average)
            error[:, owner] -= received
            error[owner, owner] += workers * (average - means[owner])
        return means.reshape(-1)[:size], error.reshape(workers, -1)[:, :size]


class AllReduce(Gather):
    """Integers whose sum over workers fits the codec's bits, with the same scale on all workers."""

    def mean(self, x: Array) -> tuple[Array, Array]:
        workers, size = x.shape
        top = (2**self.codec.bits - 1) // (2 * workers)
        padded = np.pad(x, [(0, 0), (0, -size % self.codec.block)]).reshape(workers, -1, self.codec.block)
        scale = largest(padded).max(0)
        codes = np.clip(self.codec.nearest(ratio(padded, scale) * top, scale / top), -top, top)
        error = padded - codes * scale / top
        return (codes.sum(0) * scale / (top * workers)).reshape(-1)[:size], error.reshape(workers, -1)[:, :size]


class PowerSgd:
    """One step of subspace iteration on the mean of a matrix, with a warm start (arXiv 1905.13727)."""

    def __init__(self, shape: tuple[int, int], start: Array) -> None:
        self.codec = Codec()  # only for its margin
        self.shape, self.right = shape, start.astype(np.float64)

    def mean(self, x: Array) -> tuple[Array, Array]:
        matrices = x.reshape(len(x), *self.shape)
        left = np.linalg.qr(np.mean(matrices @ self.right, axis=0))[0]
        self.right = np.mean(matrices.transpose(0, 2, 1) @ left, axis=0)
        mean = (left @ self.right.T).reshape(-1)
        return mean, x - mean


def as_matrix(shape: Sequence[int], rank: int) -> tuple[int, int] | None:
    """Rows and columns of the matrix to which PowerSGD reshapes a tensor; None where its factors are not smaller."""
    matrices = [(int(np.prod(shape[:i])), int(np.prod(shape[i:]))) for i in range(1, len(shape))]
    rows, columns = min(matrices, key=sum, default=(1, 1))
    return None if rank * (rows + columns) >= rows * columns else (rows, columns)


# The exchange of each tensor; None is the exact mean. Tensors with the same exchange share one vector.

TensorExchange = Gather | PowerSgd | None
Exchanges = Mapping[str, TensorExchange]


def power_sgd(shapes: Shapes, rank: int, warm: Mapping[str, Array | None]) -> Exchanges:
    """The exchanges of `power_sgd`; `warm` is the right factor [1, m, r] of each tensor at the start."""
    matrices = {name: as_matrix(shape, rank) for name, shape in shapes.items()}
    return {name: PowerSgd(shape, warm[name][0]) if shape else None for name, shape in matrices.items()}


def by_size(shapes: Shapes, large: TensorExchange, below: int, small: TensorExchange = None) -> Exchanges:
    """The exchange `large` for tensors of `below` entries or more, and `small` for the others."""
    return {name: small if np.prod(shape) < below else large for name, shape in shapes.items()}


def by_path(shapes: Shapes, rules: Exchanges, rest: TensorExchange = None) -> Exchanges:
    """The exchange of the first rule whose pattern matches the tensor's whole name."""
    return {name: next((each for rule, each in rules.items() if re.fullmatch(rule, name)), rest) for name in shapes}


class Mean:
    """The mean over workers, {name: [W, ...]} -> {name: [...]}, with error feedback.

    Attributes:
        residual: {name: [W, ...]}: the compression error so far (`feedback=True`, arXiv 1901.09847), or the estimate of
            each worker's value (`'ef21'`, arXiv 2106.05203); without entries for tensors whose mean is exact.
    """

    def __init__(self, exchanges: Exchanges, feedback: bool | str = False) -> None:
        self.exchanges, self.feedback = exchanges, feedback
        self.residual: dict[str, Array] = {}
        self.total: dict[str, Array] = {}

    @property
    def margin(self) -> float:
        return min((exchange.codec.margin for exchange in self.exchanges.values() if exchange), default=np.inf)

    def __call__(self, values: Parts) -> dict[str, Array]:
        out = {name: values[name].mean(0) for name, exchange in self.exchanges.items() if not exchange}
        for exchange in {id(each): each for each in self.exchanges.values() if each}.values():
            names = sorted(name for name in self.exchanges if self.exchanges[name] is exchange)
            factor = {False: 0, True: 1, 'ef21': -1}[self.feedback]
            inputs = [values[name] + factor * self.residual.get(name, 0.0) for name in names]
            vector, errors = exchange.mean(np.concatenate([each.reshape(len(each), -1) for each in inputs], 1))
            ends = np.cumsum([each[0].size for each in inputs])[:-1]
            for name, mean, residual in zip(names, np.split(vector, ends), np.split(errors, ends, 1), strict=True):
                mean, residual = mean.reshape(values[name].shape[1:]), residual.reshape(values[name].shape)
                if self.feedback == 'ef21':
                    mean, residual = mean + self.total.get(name, 0.0), values[name] - residual
                out[name] = self.total[name] = mean
                if self.feedback:
                    self.residual[name] = residual
        return out


class Average:
    """Local SGD (arXiv 1805.09767), (updates {name: [W, ...]}, params {name: [W, ...]}) -> updates."""

    def __init__(self, every: int, mean: Callable[[Parts], Parts], start: Parts) -> None:
        self.every, self.mean, self.anchor, self.time = every, mean, start, 0

    def __call__(self, updates: Parts, params: Parts) -> Parts:
        self.time += 1
        if self.time % self.every:
            return updates
        mean = self.mean({name: params[name] + updates[name] - self.anchor[name] for name in updates})
        self.anchor = {name: self.anchor[name] + mean[name] for name in mean}
        return {name: self.anchor[name] - params[name] for name in mean}
