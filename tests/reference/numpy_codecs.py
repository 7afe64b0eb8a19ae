"""A NumPy twin of jaxdist's codecs, exchanges and feedback, written from the papers, and without JAX.

Values of W workers are [W, ...], in float64; a codec's scales are float32, as on the wire. Wherever an entry could get
one code or another, how far it was from the edge between them is noted: `margin` is the least of these distances, save
those where another code would decode to nearly the same.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Array = np.ndarray
Parts = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]
HARMLESS = 1e-6  # a jump from one decoded value to another that no test could see


class Codec:
    """What a message becomes on its way; a subclass says what `blocks`, [count, block], are decoded to."""

    def __init__(self, block: int = 1) -> None:
        self.block, self.margin, self.votes = block, np.inf, False

    def note(self, distance: Array, jump: Array | float, exact: bool = False) -> None:
        """Entries were so far from edges, with `jump` across; if `exact`, those on one are there on every machine."""
        distance, jump = np.broadcast_arrays(distance, jump)
        near = (jump > HARMLESS) & ((distance > 0) | (not exact))
        self.margin = min(self.margin, float(np.min(distance[near], initial=np.inf)))

    def nearest(self, position: Array, step: Array) -> Array:
        """The nearest integers; `step` is what one more or less is after decoding."""
        self.note(np.abs(position - np.floor(position) - 0.5) * step, step)
        return np.floor(position + 0.5)

    def sent(self, x: Array) -> Array:
        """`x`, of any length, as the receiver decodes it: zeros make its last block whole, and are cut off."""
        padded = np.pad(x, (0, -len(x) % self.block)).reshape(-1, self.block)
        return self.blocks(padded).reshape(-1)[: len(x)]


def largest(x: Array, parts: int = 1) -> Array:
    """Each block's largest magnitude over `parts`, in float32 as it travels; [blocks, 1]."""
    return (np.abs(x).max(-1, keepdims=True).astype(np.float32) / np.float32(parts)).astype(np.float64)


def over(x: Array, scale: Array) -> Array:
    """The ratio, and zeros where the scale is zero."""
    return x / np.where(scale == 0, np.inf, scale)


class Int(Codec):
    """Integers -L to L times the largest magnitude over L: 127 for 8 bits, 7 for 4 (arXiv 1610.02132)."""

    def __init__(self, bits: int, block: int) -> None:
        super().__init__(block)
        self.bits = bits

    def blocks(self, x: Array) -> Array:
        top = 2 ** (self.bits - 1) - 1
        scale = largest(x, top)
        return scale * np.clip(self.nearest(over(x, scale), scale), -top, top)


class Int2(Codec):
    """Codes of 1, or 3 from 1.25 mean magnitudes on, with their signs, times the scale that fits them best."""

    def blocks(self, x: Array) -> Array:
        size, mean = np.abs(x), np.abs(x).mean(1, keepdims=True)
        self.note(np.abs(size - 1.25 * mean), np.where(x == 0, 0.0, mean))
        codes = np.where(size >= 1.25 * mean, 3.0, 1.0)
        scale = ((size * codes).sum(1, keepdims=True) / (codes**2).sum(1, keepdims=True)).astype(np.float32)
        return np.where(x >= 0, codes, -codes) * scale.astype(np.float64)


class Sign(Codec):
    """The sign times the mean magnitude of the block (arXiv 1901.09847); zero counts as positive.

    If not `scaled`, the sign alone, and that of the mean of signs is a majority vote (arXiv 1802.04434, algorithm 3).
    """

    def __init__(self, block: int, scaled: bool = True) -> None:
        super().__init__(block)
        self.votes = not scaled

    def blocks(self, x: Array) -> Array:
        mean = np.abs(x).mean(1, keepdims=True).astype(np.float32)
        scale = np.ones_like(mean) if self.votes else mean.astype(np.float64)
        self.note(np.abs(x), scale, exact=True)
        return np.where(x >= 0, scale, -scale)


def ranked(x: Array) -> tuple[Array, Array]:
    """Where each block's entries are by magnitude, the largest and the first of equals first; and the magnitudes."""
    order = np.argsort(-np.abs(x), axis=1, kind='stable')
    return order, np.take_along_axis(np.abs(x), order, 1)


def placed(order: Array, values: Array, x: Array) -> Array:
    """Blocks like `x` that hold `values` at `order`, and zeros."""
    out = np.zeros_like(x)
    np.put_along_axis(out, order, values, 1)
    return out


class TopK(Codec):
    """The k largest of each block (arXiv 1809.07599); `values` is how they are written, float32 without it."""

    def __init__(self, k: int, block: int, values: Codec | None = None) -> None:
        super().__init__(block)
        self.k, self.values = k, values

    def blocks(self, x: Array) -> Array:
        order, sizes = ranked(x)
        # Who is kept depends on the gap after the k-th alone; in which block of `values` each is, on those before too.
        gaps = slice(0 if self.values else self.k - 1, self.k)
        self.note((sizes[:, :-1] - sizes[:, 1:])[:, gaps], sizes[:, 1:][:, gaps])
        order = order[:, : self.k]
        kept = np.take_along_axis(x, order, 1)
        if self.values:
            kept = self.values.sent(kept.reshape(-1)).reshape(kept.shape)
            self.margin = min(self.margin, self.values.margin)
        return placed(order, kept, x)


class Threshold(Codec):
    """`at` with its sign for entries of at least that magnitude, the `most` largest of each block (Strom 2015)."""

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
    """The nearest float with so many bits after the leading one and exponents from `least` to `most`."""

    def __init__(self, bits: int, least: int, most: int) -> None:
        super().__init__(64)  # says only where chunks end
        self.bits, self.least, self.top = bits, least, (2 - 2.0**-bits) * 2.0**most

    def blocks(self, x: Array) -> Array:
        step = np.exp2(np.maximum(np.frexp(x)[1] - 1, self.least) - self.bits)
        rounded = np.rint(x / step) * step  # ties to even: the mean of two such floats often lies halfway
        self.note(step / 2 - np.abs(x - rounded), step, exact=True)
        return np.clip(rounded, -self.top, self.top)


class Gather:
    """All send everything to all.

    Like every exchange it maps workers' vectors [W, n] to the mean [n] that all decode, and what each one's messages
    left out, [W, n].
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def mean(self, x: Array) -> tuple[Array, Array]:
        sent = np.array([self.codec.sent(each) for each in x])
        return sent.mean(0), x - sent


class TwoPhases(Gather):
    """Worker j decodes everybody's chunk j and sends the mean, encoded again, to all (arXiv 2306.10209).

    What the second message left out is the whole mean's, so it weighs W-fold in the memory of the one who sent it.
    """

    def mean(self, x: Array) -> tuple[Array, Array]:
        workers, size = x.shape
        chunk = -(-size // (workers * self.codec.block)) * self.codec.block
        chunks = np.pad(x, [(0, 0), (0, workers * chunk - size)]).reshape(workers, workers, chunk)
        left, answers = chunks.copy(), np.zeros((workers, chunk))
        for owner in range(workers):
            received = np.array([self.codec.sent(chunks[worker, owner]) for worker in range(workers)])
            if not self.codec.votes:  # a vote is one of signs
                received[owner] = chunks[owner, owner]  # its own it does not send
            average = received.mean(0)
            answers[owner] = self.codec.sent(average)
            left[:, owner] -= received
            left[owner, owner] += workers * (average - answers[owner])
        return answers.reshape(-1)[:size], left.reshape(workers, -1)[:, :size]


class AllReduce(Gather):
    """Integers so small that their sum over workers fits in the codec's bits, with one scale for all workers."""

    def mean(self, x: Array) -> tuple[Array, Array]:
        workers, size = x.shape
        top = (2**self.codec.bits - 1) // (2 * workers)
        padded = np.pad(x, [(0, 0), (0, -size % self.codec.block)]).reshape(workers, -1, self.codec.block)
        scale = largest(padded).max(0)
        codes = np.clip(self.codec.nearest(over(padded, scale) * top, scale / top), -top, top)
        left = padded - codes * scale / top
        return (codes.sum(0) * scale / (top * workers)).reshape(-1)[:size], left.reshape(workers, -1)[:, :size]


class PowerSgd:
    """One step of subspace iteration on the mean of a matrix, from where the last one ended (arXiv 1905.13727)."""

    def __init__(self, view: tuple[int, int], start: Array) -> None:
        self.codec = Codec()  # for its margin
        self.view, self.right = view, start.astype(np.float64)

    def mean(self, x: Array) -> tuple[Array, Array]:
        matrices = x.reshape(len(x), *self.view)
        left = np.linalg.qr(np.mean(matrices @ self.right, axis=0))[0]
        self.right = np.mean(matrices.transpose(0, 2, 1) @ left, axis=0)
        mean = (left @ self.right.T).reshape(-1)
        return mean, x - mean


def as_matrix(shape: Sequence[int], rank: int) -> tuple[int, int] | None:
    """The rows and columns that Power-SGD sees a tensor as; None where that would not save anything."""
    views = [(int(np.prod(shape[:i])), int(np.prod(shape[i:]))) for i in range(1, len(shape))]
    rows, columns = min(views, key=sum, default=(1, 1))
    return None if rank * (rows + columns) >= rows * columns else (rows, columns)


# Which exchange each tensor goes through; None is the exact mean. Tensors with the same one share a vector.

Way = Gather | PowerSgd | None
Ways = Mapping[str, Way]


def power_sgd(shapes: Shapes, rank: int, warm: Mapping[str, Array | None]) -> Ways:
    """`warm` is the right factor [1, m, r] that the first step begins with."""
    views = {name: as_matrix(shape, rank) for name, shape in shapes.items()}
    return {name: PowerSgd(view, warm[name][0]) if view else None for name, view in views.items()}


def by_size(shapes: Shapes, large: Way, below: int, small: Way = None) -> Ways:
    return {name: small if np.prod(shape) < below else large for name, shape in shapes.items()}


def by_path(shapes: Shapes, rules: Ways, rest: Way = None) -> Ways:
    """The first rule whose pattern is the tensor's whole name decides."""
    return {name: next((way for rule, way in rules.items() if re.fullmatch(rule, name)), rest) for name in shapes}


class Mean:
    """The mean over workers, {name: [W, ...]} -> {name: [...]}, and what is remembered of the errors.

    Attributes:
        residual: {name: [W, ...]}: what messages left out so far (`feedback=True`, arXiv 1901.09847), or what each
            worker's value is known as (`'ef21'`, arXiv 2106.05203); nothing for a tensor whose mean is exact.
    """

    def __init__(self, ways: Ways, feedback: bool | str = False) -> None:
        self.ways, self.feedback = ways, feedback
        self.residual: dict[str, Array] = {}
        self.total: dict[str, Array] = {}

    @property
    def margin(self) -> float:
        return min((way.codec.margin for way in self.ways.values() if way), default=np.inf)

    def __call__(self, values: Parts) -> dict[str, Array]:
        out = {name: values[name].mean(0) for name, way in self.ways.items() if not way}
        for way in {id(way): way for way in self.ways.values() if way}.values():
            names = sorted(name for name in self.ways if self.ways[name] is way)
            factor = {False: 0, True: 1, 'ef21': -1}[self.feedback]
            given = [values[name] + factor * self.residual.get(name, 0.0) for name in names]
            mean, left = way.mean(np.concatenate([each.reshape(len(each), -1) for each in given], 1))
            ends = np.cumsum([each[0].size for each in given])[:-1]
            for name, mine, missed in zip(names, np.split(mean, ends), np.split(left, ends, 1), strict=True):
                mine, missed = mine.reshape(values[name].shape[1:]), missed.reshape(values[name].shape)
                if self.feedback == 'ef21':
                    mine, missed = mine + self.total.get(name, 0.0), values[name] - missed
                out[name] = self.total[name] = mine
                if self.feedback:
                    self.residual[name] = missed
        return out


class Average:
    """Local SGD (arXiv 1805.09767): every `every` steps all move to the mean of how far they came since the last time.

    `(updates {name: [W, ...]}, params {name: [W, ...]}) -> updates`
    """

    def __init__(self, every: int, mean: Callable[[Parts], Parts], start: Parts) -> None:
        self.every, self.mean, self.met, self.time = every, mean, start, 0

    def __call__(self, updates: Parts, params: Parts) -> Parts:
        self.time += 1
        if self.time % self.every:
            return updates
        mean = self.mean({name: params[name] + updates[name] - self.met[name] for name in updates})
        self.met = {name: self.met[name] + mean[name] for name in mean}
        return {name: self.met[name] - params[name] for name in mean}
