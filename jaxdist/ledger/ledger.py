"""The ledger of a step: bytes sent, as rows, and bytes in memory per device."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxdist.core.errors import InputError
from jaxdist.ledger.collective import Branch, Collective, array_size, bits


@dataclass(frozen=True)
class Row:
    """Collectives of the same axes, kind, dtype and frequency.

    Attributes:
        axes: the mesh axes that they communicate over.
        kind: see `Collective`.
        dtype: of the numbers sent.
        count: how many run on a step on which they run at all.
        bytes_when_run: bytes that one device sends on such a step.
        frequency: the share of steps on which they run; in a conditional in a scan, the share of its turns. None if
            it depends on data.
        bytes_per_step: bytes that one device sends on an average step, or None.
    """

    axes: tuple[str, ...]
    kind: str
    dtype: str
    count: int
    bytes_when_run: Fraction
    frequency: Fraction | None
    bytes_per_step: Fraction | None


def per_step(collectives: Iterable[Collective], frequencies: Mapping[Branch, Fraction | None]) -> list[Row]:
    """Collectives as rows, in the order of their frequency.

    A loop whose length depends on data counts as one turn, with a frequency of None.

    Args:
        collectives: from `traced` or `compiled`.
        frequencies: of the innermost branch of each conditional collective, as from `frequencies`; None for those
            that are not in it.

    >>> branch = Branch('3', 1)
    >>> psum = Collective(('workers',), 'all_reduce', 'float32', Fraction(70), branch=(branch,))
    >>> [row] = per_step([psum, psum], {branch: Fraction(1, 5)})
    >>> row.count, row.bytes_when_run, row.frequency, row.bytes_per_step
    (2, Fraction(140, 1), Fraction(1, 5), Fraction(28, 1))
    """
    sums: dict[tuple[Any, ...], tuple[int, Fraction]] = {}
    for collective in collectives:
        frequency = frequencies.get(collective.branch[-1]) if collective.branch else Fraction(1)
        times, frequency = (1, None) if collective.times is None else (collective.times, frequency)
        key = (collective.axes, collective.kind, collective.dtype, frequency)
        count, total = sums.get(key, (0, Fraction(0)))
        sums[key] = count + times, total + collective.sent * times
    rows = [
        Row(axes, kind, dtype, count, total, frequency, None if frequency is None else total * frequency)
        for (axes, kind, dtype, frequency), (count, total) in sums.items()
    ]
    return sorted(rows, key=lambda row: (row.frequency is None, -(row.frequency or 0), row.axes, row.kind, row.dtype))


def memory_bytes(tree: Any) -> int:
    """Bytes of a pytree in the memory of the device that stores most of it.

    Args:
        tree: arrays, or their shapes and dtypes. An array without a sharding is on every device. A dtype of less
            than a byte takes a byte, as in NumPy and on CPU.

    >>> mesh = jax.sharding.AbstractMesh((4,), ('workers',))
    >>> sharding = jax.sharding.NamedSharding(mesh, jax.P('workers'))
    >>> memory_bytes([jax.ShapeDtypeStruct((8, 3), 'float32', sharding=sharding), jax.ShapeDtypeStruct((5,), 'int8')])
    29
    """
    unplaced = 0
    sums: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, 'sharding', None)
        if sharding is None or isinstance(getattr(sharding, 'mesh', None), AbstractMesh):
            unplaced += _shard_bytes(leaf, sharding)
        else:
            sums[sharding] = sums.get(sharding, 0) + _shard_bytes(leaf, sharding)
    placed: dict[jax.Device, int] = {}
    for sharding, total in sums.items():
        for device in sharding.device_set:
            placed[device] = placed.get(device, 0) + total
    return unplaced + max(placed.values(), default=0)


def _shard_bytes(leaf: Any, sharding: Any) -> int:
    leaf = leaf if hasattr(leaf, 'dtype') else jax.typeof(leaf)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    count, dtype = array_size(jax.ShapeDtypeStruct(shape, leaf.dtype))
    return count * max(8, bits(dtype)) // 8


@dataclass(frozen=True)
class Ledger:
    """What a step sends, and what a device stores.

    Attributes:
        mesh: the mesh's axes and their sizes.
        rows: the collectives, with the bytes that one device sends.
        memory: bytes in the memory of one device, by name.
    """

    mesh: Mapping[str, int]
    rows: tuple[Row, ...]
    memory: Mapping[str, int]

    def sent(self, axis: str) -> Fraction | None:
        """Bytes that one device sends on an average step in collectives over an axis; None if not known.

        A collective over several axes counts whole on each of them.

        Raises:
            InputError: the mesh has no such axis.
        """
        if axis not in self.mesh:
            raise InputError(f'the mesh has no axis {axis!r}; its axes are {list(self.mesh)}')
        total = Fraction(0)
        for row in self.rows:
            if axis in row.axes:
                if row.bytes_per_step is None:
                    return None
                total += row.bytes_per_step
        return total

    def seconds(self, links: Mapping[str, float]) -> dict[str, float | None]:
        """Seconds of an average step in which a device sends, by axis; None if its bytes are not known.

        Args:
            links: bytes/s that a device sends along each axis of the mesh.

        >>> row = Row(('workers',), 'all_reduce', 'float32', 1, Fraction(200), Fraction(1), Fraction(200))
        >>> Ledger({'workers': 2}, (row,), {}).seconds({'workers': 100.0})
        {'workers': 2.0}
        """
        sent = {axis: self.sent(axis) for axis in self.mesh}
        return {axis: None if n is None else float(n) / links[axis] for axis, n in sent.items()}

    def to_json(self) -> dict[str, Any]:
        """The ledger as dicts, lists and numbers; whole numbers of bytes are integers."""
        rows = [{name: _plain(value) for name, value in asdict(row).items()} for row in self.rows]
        sent = {axis: _plain(self.sent(axis)) for axis in self.mesh}
        return {'mesh': dict(self.mesh), 'sent': rows, 'sent_per_step': sent, 'memory': dict(self.memory)}

    def table(self) -> list[list[str]]:
        """The rows as text, with a header."""
        head = ['axes', 'collective', 'dtype', 'count', 'bytes when run', 'share of steps', 'bytes per step']
        return [head] + [
            [
                ' x '.join(row.axes),
                row.kind,
                row.dtype,
                str(row.count),
                _number(row.bytes_when_run),
                'depends on data' if row.frequency is None else str(row.frequency),
                _number(row.bytes_per_step),
            ]
            for row in self.rows
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return list(value) if isinstance(value, tuple) else value


def _number(value: Fraction | None) -> str:
    if value is None:
        return 'depends on data'
    return f'{int(value):,}' if value.denominator == 1 else f'{float(value):,.1f}'
