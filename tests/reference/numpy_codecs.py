"""The NumPy reference implementation of codecs, written from the papers without JAX.

Values of W workers are [W, ...], in float64; a codec's scales are float32, as in messages. For each entry the distance
to the nearest decision boundary between two codes is recorded: `margin` is the least of these distances, except at
boundaries whose two codes decode to nearly the same value.
"""

import numpy as np

Array = np.ndarray
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
