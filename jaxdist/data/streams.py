"""A data set whose training batches come from an iterator, whose position is saved with a run."""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Task
from jaxdist.data.dataset import Data, constant_loss, digest, in_order
from jaxdist.data.sampling import check_batch

CURSORS = 2
"""Iterators that are open at once: training's, and one of an evaluation that reads training batches again."""


def from_iterator(
    make: Callable[..., Iterator[Mapping[str, Any]]],
    task: Task,
    *,
    held_out: Mapping[str, Any],
    per_process: bool = False,
    name: str = 'iterator',
) -> Data:
    """The data set of an iterator over batches, such as grain's, for the method `load()` of a data set of your own.

    A run saves the position of an iterator that has `get_state()` and `set_state(state)`, as JSON data or bytes, and
    resumes there. Of one without them it reads the batches before anew. The iterator must not end: let it repeat.

    Args:
        make: `(seed, size) -> iterator` over global batches, dicts of arrays [size, ...], the same ones for every
            call; see `jaxdist.core.types.Batch` for the names. The rows of worker w begin at `w * size / workers`.
        task: the prediction task.
        held_out: the held-out examples, a dict of arrays [N, ...].
        per_process: whether each of several processes reads its part of the batch only. Then it is
            `make(seed, size, part, parts)`, which iterates over rows [size / parts, ...], and a run resumes with the
            same number of processes alone. Else every process reads whole batches, and their number may change.
        name: the name of the data set, in its facts.

    Raises:
        InputError: the held-out examples are none, or differ in number. In training: a batch is no dict of arrays of
            `size` rows, the iterator ends, or a run resumes with another number of processes.

    >>> task, held_out = Task('values', (1,), 1), {'x': np.ones((3, 1)), 'y': np.ones(3)}
    >>> make = lambda seed, size: ({'x': np.full((size, 1), n / 2), 'y': np.zeros(size)} for n in range(100))
    >>> data = from_iterator(make, task, held_out=held_out)
    >>> data.batch(seed=0, step=5, size=2, workers=1)['x'].tolist()
    [[2.5], [2.5]]
    """
    held, count = _checked(held_out, task, 'held_out')
    targets = held['tokens'][:, 1:].ravel() if task.kind == 'tokens' else held['y']
    names = {'tokens': 'token histogram', 'classes': 'label histogram', 'values': 'mean value'}
    return Data(
        task,
        Stream(make, task, per_process),
        in_order(count, lambda rows: {key: x[rows] for key, x in held.items()}),
        {'name': name, 'held_out': count, 'sha256': digest(*(held[key] for key in sorted(held)))},
        constant_loss(task, targets, targets),
        f'{names[task.kind]} of the held-out data',
    )


class Stream:
    """The training batches of an iterator, as a function of the step; see `from_iterator`.

    Any step can be read. In order that costs nothing; for an earlier step the iterator is made anew.
    """

    def __init__(self, make: Callable[..., Iterator[Mapping[str, Any]]], task: Task, per_process: bool = False) -> None:
        self.make, self.task, self.per_process = make, task, per_process
        self._cursors: list[_Cursor] = []

    @property
    def parts(self) -> int:
        """Processes that each read a part of the batch; 1 if every process reads it whole."""
        return jax.process_count() if self.per_process else 1

    def __call__(self, seed: int, step: int, size: int, workers: int) -> Batch:
        """The batch of a step; see `jaxdist.data.Draw`."""
        check_batch(seed, step, size, workers)
        last = next((c.last for c in self._cursors if c.of == (seed, size) and c.last and c.next == step + 1), None)
        local = last or self._cursor(seed, size, step).read()
        if self.parts == 1:
            return dict(local)
        return {name: OwnRows(x, jax.process_index() * len(x), size) for name, x in local.items()}

    def position(self, seed: int, step: int, size: int) -> Any:
        """The state of this process's iterator before a step, as JSON data; None if the iterator has none."""
        return self._cursor(seed, size, step).state()

    def seek(self, seed: int, step: int, size: int, position: Any) -> None:
        """Moves to a step, from the position that was saved before it."""
        if position is not None:
            cursor = self._open(seed, size)
            cursor.move(step, position)
            self._cursors = [cursor, *self._cursors][:CURSORS]

    def _cursor(self, seed: int, size: int, step: int) -> '_Cursor':
        """The iterator whose next batch is that of the step, moved to the front of those that are open."""
        at = next((c for c in self._cursors if c.of == (seed, size) and c.next == step), None)
        if at is None:
            at = self._open(seed, size)
            while at.next < step:
                at.read()
        self._cursors = [at, *(c for c in self._cursors if c is not at)][:CURSORS]
        return at

    def _open(self, seed: int, size: int) -> '_Cursor':
        parts = self.parts
        if size % parts:
            raise InputError(f'{parts} processes that each read their part of the batch do not divide batch={size}')
        words = (seed, size, jax.process_index(), parts) if self.per_process else (seed, size)
        return _Cursor((seed, size), size // parts, iter(self.make(*words)), self.task)


class OwnRows:
    """An array [size, ...] of which this process has only some rows, and needs no others.

    >>> rows = OwnRows(np.array([5, 6]), first=2, size=4)
    >>> rows.shape, rows[2:4].tolist()
    ((4,), [5, 6])
    >>> rows[0:2]
    Traceback (most recent call last):
    jaxdist.InputError: this process has read rows 2 to 4 of the batch, and its devices need rows 0 to 2: with
    per_process=True the mesh must have the workers of each process side by side, in the order of the processes
    """

    def __init__(self, local: np.ndarray, first: int, size: int) -> None:
        self.local, self.first = local, first
        self.shape, self.dtype = (size, *local.shape[1:]), local.dtype

    def __getitem__(self, at: Any) -> np.ndarray:
        rows, *others = at if isinstance(at, tuple) else (at,)
        begin, end, _ = rows.indices(self.shape[0])
        if not self.first <= begin <= end <= self.first + len(self.local):
            raise InputError(
                f'this process has read rows {self.first} to {self.first + len(self.local)} of the batch, and its '
                f'devices need rows {begin} to {end}: with per_process=True the mesh must have the workers of each '
                'process side by side, in the order of the processes'
            )
        part: np.ndarray = self.local[(slice(begin - self.first, end - self.first), *others)]
        return part


class _Cursor:
    """An open iterator, and the step whose batch is its next one."""

    def __init__(self, of: tuple[int, int], rows: int, iterator: Iterator[Mapping[str, Any]], task: Task) -> None:
        self.of, self.rows, self.iterator, self.task = of, rows, iterator, task
        self.next = 0
        self.last: dict[str, np.ndarray] | None = None
        self.form: dict[str, tuple[Any, ...]] = {}

    def read(self) -> dict[str, np.ndarray]:
        try:
            raw = next(self.iterator)
        except StopIteration:
            raise InputError(
                f'the iterator ended after {self.next} batches: let it repeat its data, as with `.repeat()` of grain'
            ) from None
        where = f'batch {self.next}'
        batch, rows = _checked(raw, self.task, where)
        if rows != self.rows:
            raise InputError(
                f'{where} has {rows} rows, not {self.rows}: drop a last batch that is smaller, as with '
                '`.batch(size, drop_remainder=True)` of grain'
            )
        form = {name: (x.shape, str(x.dtype)) for name, x in batch.items()}
        self.form = self.form or form
        if form != self.form:
            raise InputError(f'{where} has {form}, and those before it {self.form}: batches must have one form')
        self.last = batch
        self.next += 1
        return batch

    def state(self) -> Any:
        read = getattr(self.iterator, 'get_state', None)
        state = read() if read else None
        return {'bytes': base64.b64encode(state).decode()} if isinstance(state, bytes) else state

    def move(self, step: int, state: Any) -> None:
        if not hasattr(self.iterator, 'set_state'):
            raise InputError('the position of the data was saved, and the iterator has no set_state(state)')
        packed = isinstance(state, dict) and set(state) == {'bytes'}
        self.iterator.set_state(base64.b64decode(state['bytes']) if packed else state)
        self.next = step


def _checked(batch: Any, task: Task, where: str) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a batch, with floats as float32 and whole numbers as int32, and the number of its rows."""
    if not isinstance(batch, Mapping) or not batch:
        raise InputError(f"{where} must be a dict of arrays, as {{'x': x, 'y': y}}, not a {type(batch).__name__}")
    arrays = {str(name): _array(value, f'{name} of {where}') for name, value in batch.items()}
    sizes = {name: len(x) for name, x in arrays.items()}
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        raise InputError(f'the arrays of {where} must have the same number of rows, 1 or more; they have {sizes}')
    _check_fits(arrays, task, where)
    return arrays, next(iter(sizes.values()))


def _array(value: Any, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in 'biuf' or not array.ndim:
        raise InputError(f'{where} must be an array [B, ...] of real numbers, not {array.dtype} of shape {array.shape}')
    if array.dtype.kind in 'iu' and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise InputError(f'{where} has whole numbers that do not fit 32 bits, up to {array.max()}')
    return array.astype(np.float32 if array.dtype.kind == 'f' else np.int32, copy=False)


def _check_fits(arrays: dict[str, np.ndarray], task: Task, where: str) -> None:
    """Checks names, shapes and labels against the task."""
    shape = (task.shape[0] + 1,) if task.kind == 'tokens' else task.shape
    need = {'tokens': shape} if task.kind == 'tokens' else {'x': shape, 'y': ()}
    for name, each in need.items():
        if name not in arrays or arrays[name].shape[1:] != each:
            has = f'shape {arrays[name].shape}' if name in arrays else f'none; it has {", ".join(arrays)}'
            raise InputError(f'{where} needs {name} of shape [B{"".join(f", {n}" for n in each)}], and has {has}')
    labels = arrays['tokens' if task.kind == 'tokens' else 'y']
    if task.kind != 'values':
        if labels.dtype != np.int32:
            raise InputError(f'labels are whole numbers; those of {where} are {labels.dtype}')
        if labels.min() < 0 or labels.max() >= task.classes:
            raise InputError(
                f'labels of {where} are {labels.min()} to {labels.max()}, and the task has {task.classes}, from 0 to '
                f'{task.classes - 1}'
            )
