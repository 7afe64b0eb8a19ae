"""The NumPy reference implementation of codecs, exchanges and error feedback, written from the papers without JAX.

Values of W workers are [W, ...], in float64; a codec's scales are float32, as in messages. For each entry the distance
to the nearest decision boundary between two codes is recorded: `margin` is the least of these distances, except at
boundaries whose two codes decode to nearly the same value.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray
Parts = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
HARMLESS = 1e-6  # a difference of decoded values below the tolerances of the tests


class Codec:
    """A codec as the map from a vector to its decoded message; a subclass defines it for `blocks`, [count, block].

    Padding is NaN until it comes to `blocks`, which see zeros there and `real`, the mask of all other entries.
    """

    def __init__(self, block: int = 1) -> None:
        self.block, self.margin, self.votes = block, np.inf, False

    def note(self, distance: Array, jump: Array | float, exact: bool = False) -> None:
        """Records distances to boundaries with a `jump` of the decoded value; if `exact`, a distance of 0 is safe."""
        distance, jump = np.broadcast_arrays(distance, jump)
        near = (jump > HARMLESS) & ((distance > 0) | (not exact))
        self.margin = min(self.margin, float(np.min(distance[near], initial=np.inf)))

    def nearest(self, position: Array, step: Array) -> Array:
        """The nearest integers; `step` is the difference of decoded values between neighbouring integers."""
        self.note(np.abs(position - np.floor(position) - 0.5) * step, step)
        return np.floor(position + 0.5)

    def roundtrip(self, x: Array) -> Array:
        """`x`, of any length, as the receiver decodes it; padding to whole blocks is removed."""
        padded = np.pad(x, (0, -len(x) % self.block), constant_values=np.nan).reshape(-1, self.block)
        self.real = ~np.isnan(padded)
        return self.blocks(np.where(self.real, padded, 0.0)).reshape(-1)[: len(x)]

    def mean_magnitude(self, x: Array) -> Array:
        """The mean magnitude of each block's real entries, [count, 1]."""
        return np.abs(x).sum(1, keepdims=True) / np.maximum(self.real.sum(1, keepdims=True), 1)


def largest(x: Array, parts: int = 1) -> Array:
    """Each block's largest magnitude over `parts`, rounded to float32 as in a message; [blocks, 1]."""
    return (np.abs(x).max(-1, keepdims=True).astype(np.float32) / np.float32(parts)).astype(np.float64)


def ratio(x: Array, scale: Array) -> Array:
    """`x / scale`, and 0 where the scale is 0."""
    return x / np.where(scale == 0, np.inf, scale)


class Int(Codec):
    """Integers -L to L times the largest magnitude over L: 127 for 8 bits, 7 for 4 (arXiv 1610.02132)."""

    def __init__(self, bits: int, block: int) -> None:
        super().__init__(block)
        self.bits = bits

    def blocks(self, x: Array) -> Array:
        top = 2 ** (self.bits - 1) - 1
        scale = largest(x, top)
        return scale * np.clip(self.nearest(ratio(x, scale), scale), -top, top)


class Int2(Codec):
    """Codes 1, or 3 from 1.25 mean magnitudes on, with signs, times the least-squares scale."""

    def blocks(self, x: Array) -> Array:
        size, mean = np.abs(x), self.mean_magnitude(x)
        self.note(np.abs(size - 1.25 * mean), np.where(x == 0, 0.0, mean))
        codes = np.where(size >= 1.25 * mean, 3.0, 1.0) * self.real
        scale = ((size * codes).sum(1, keepdims=True) / np.maximum((codes**2).sum(1, keepdims=True), 1)).astype(
            np.float32
        )
        return np.where(x >= 0, codes, -codes) * scale.astype(np.float64)


class Sign(Codec):
    """The sign times the mean magnitude of the block (arXiv 1901.09847); zero counts as positive.

    If not `scaled`, the sign only; the sign of the mean of signs is a majority vote (arXiv 1802.04434, algorithm 3).
    """

    def __init__(self, block: int, scaled: bool = True) -> None:
        super().__init__(block)
        self.votes = not scaled

    def blocks(self, x: Array) -> Array:
        mean = self.mean_magnitude(x).astype(np.float32)
        scale = np.ones_like(mean) if self.votes else mean.astype(np.float64)
        self.note(np.abs(x), scale, exact=True)
        return np.where(x >= 0, scale, -scale)


def ranked(x: Array) -> tuple[Array, Array]:
    """The indices that sort each block by falling magnitude (stable), and the sorted magnitudes."""
    order = np.argsort(-np.abs(x), axis=1, kind='stable')
    return order, np.take_along_axis(np.abs(x), order, 1)


def placed(order: Array, values: Array, x: Array) -> Array:
    """Blocks like `x` with `values` at the indices `order`, and zeros elsewhere."""
    out = np.zeros_like(x)
    np.put_along_axis(out, order, values, 1)
    return out


class TopK(Codec):
    """The k largest of each block (arXiv 1809.07599); `values` is the codec of these, None for float32."""

    def __init__(self, k: int, block: int, values: Codec | None = None) -> None:
        super().__init__(block)
        self.k, self.values = k, values

    def blocks(self, x: Array) -> Array:
        order, sizes = ranked(x)
        # The kept set depends on the gap after the k-th entry only; with `values`, the order of the kept matters too.
        gaps = slice(0 if self.values else self.k - 1, self.k)
        self.note((sizes[:, :-1] - sizes[:, 1:])[:, gaps], sizes[:, 1:][:, gaps])
        order = order[:, : self.k]
        kept = np.take_along_axis(x, order, 1)
        if self.values:
            kept = self.values.roundtrip(kept.reshape(-1)).reshape(kept.shape)
            self.margin = min(self.margin, self.values.margin)
        return placed(order, kept, x)


class Threshold(Codec):
    """`at` times the sign of entries of at least that magnitude, at most `most` per block (Strom 2015)."""

    def __init__(self, at: float, most: int, block: int) -> None:
        super().__init__(block)
        self.at, self.most = at, most

    def blocks(self, x: Array) -> Array:
        order, sizes = ranked(x)
        self.note(np.abs(sizes - self.at), self.at, exact=True)
        last, out = sizes[:, self.most - 1 : -1], sizes[:, self.most :]
        self.note(last[:, :1] - out[:, :1], np.where(out[:, :1] >= self.at, self.at, 0.0), exact=True)
        order = order[:, : self.most]
        kept = np.take_along_axis(x, order, 1)
        return placed(order, np.where(np.abs(kept) >= self.at, np.sign(kept) * self.at, 0.0), x)


class Cast(Codec):
    """The nearest float with `bits` fraction bits and exponents from `least` to `most`."""

    def __init__(self, bits: int, least: int, most: int) -> None:
        super().__init__(64)  # only the length of chunks depends on it
        self.bits, self.least, self.top = bits, least, (2 - 2.0**-bits) * 2.0**most

    def blocks(self, x: Array) -> Array:
        step = np.exp2(np.maximum(np.frexp(x)[1] - 1, self.least) - self.bits)
        rounded = np.rint(x / step) * step  # ties to even: the mean of two such floats often lies halfway
        self.note(step / 2 - np.abs(x - rounded), step, exact=True)
        return np.clip(rounded, -self.top, self.top)


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
