"""Data sets of iterators: their positions, and what is refused."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from run_fixtures import finish, losses, saved, small, train_until

from jaxdist.core.types import Batch, Task
from jaxdist.data import Data, from_iterator
from jaxdist.data.streams import Stream
from jaxdist.models import Perceptron
from jaxdist.training import reading
from jaxdist.training.experiment import Experiment
from jaxdist.training.skipped import Skipped
from jaxdist.training.train import prepare

TASK = Task('classes', (2,), 3)
HELD_OUT = {'x': np.ones((5, 2)), 'y': np.arange(5) % 3}
LOG: list[str] = []
"""What the iterators of these tests were asked to do."""


def example(n: int) -> Batch:
    return {'x': np.array([np.sin(n), np.cos(n)], np.float64), 'y': n % 3}


def of_grain(seed: int, size: int) -> Iterator[Batch]:
    LOG.append('open')
    numbers = grain.MapDataset.range(50).seed(seed).shuffle().repeat()
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)  # by default 500 batches, which take seconds
    return iter(numbers.map(example).batch(size).to_iter_dataset(ahead))


class Counting:
    """An iterator whose state is bytes, as that of grain's `DataLoader`."""

    def __init__(self, size: int) -> None:
        self.size, self.next = size, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        LOG.append(f'read {self.next}')
        self.next += 1
        examples = [example(self.next * self.size + k) for k in range(self.size)]
        return {name: np.stack([each[name] for each in examples]) for name in ('x', 'y')}

    def get_state(self) -> bytes:
        return str(self.next).encode()

    def set_state(self, state: bytes) -> None:
        self.next = int(state)


def plain(seed: int, size: int) -> Iterator[Batch]:
    """An iterator without state."""
    LOG.append('open')
    return (batch for batch in Counting(size))


READERS = {'grain': of_grain, 'bytes': lambda seed, size: Counting(size), 'plain': plain}


@dataclass(frozen=True)
class Streamed:
    reader: str = 'grain'

    def load(self) -> Data:
        return from_iterator(READERS[self.reader], TASK, held_out=HELD_OUT)


def streamed(reader: str, **changes: Any) -> Experiment:
    return small('mean() | adam(0.1)', data=Streamed(reader), model=Perceptron(hidden=(4,)), **changes)


@pytest.mark.parametrize('reader', ['bytes', *(pytest.param(r, marks=pytest.mark.slow) for r in ('grain', 'plain'))])
def test_a_run_resumes_at_the_position(reader: str, tmp_path: Path) -> None:
    experiment = streamed(reader)
    finish(experiment, tmp_path / 'whole')
    train_until(3, experiment, tmp_path / 'parts')
    LOG.clear()
    finish(experiment, tmp_path / 'parts')
    log = list(LOG)
    assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
    for a, b in zip(saved(experiment, tmp_path / 'parts')[1], saved(experiment, tmp_path / 'whole')[1], strict=True):
        np.testing.assert_array_equal(a, b)
    # The shapes of the first batch are needed, and then batches 3 to 6.
    if reader == 'bytes':
        assert log == ['read 0', *(f'read {n}' for n in range(3, 7))]


def test_batches_that_a_run_skips_since_the_checkpoint_are_read_over() -> None:
    training = prepare(streamed('bytes'))._replace(skipped=Skipped(1, ((2, 4),)))
    LOG.clear()
    reading.resume(training, 2, {'reading': [{'bytes': base64.b64encode(b'2').decode()}]})
    training.data.batch(0, training.skipped.batch(2), 16, 4)
    assert LOG == ['read 2', 'read 3', 'read 4']
    assert reading.position(training, 3) == {'reading': [{'bytes': base64.b64encode(b'5').decode()}]}


def test_any_step_can_be_read_and_reading_on_costs_nothing() -> None:
    data = from_iterator(plain, TASK, held_out=HELD_OUT)
    in_order = [data.batch(0, step, 4, 1)['x'] for step in range(6)]
    LOG.clear()
    np.testing.assert_array_equal(data.batch(0, 5, 4, 1)['x'], in_order[5])
    assert LOG == []
    np.testing.assert_array_equal(data.batch(0, 2, 4, 1)['x'], in_order[2])
    np.testing.assert_array_equal(data.batch(0, 3, 4, 1)['x'], in_order[3])
    assert LOG.count('open') == 1
    LOG.clear()
    data.batch(0, 6, 4, 1)
    assert LOG == ['read 6']


@pytest.mark.slow
def test_another_seed_or_size_is_another_iterator() -> None:
    data = from_iterator(of_grain, TASK, held_out=HELD_OUT)
    first = data.batch(0, 0, 10, 1)['x']
    assert data.batch(0, 0, 20, 1)['x'].shape == (20, 2)
    assert not np.array_equal(data.batch(1, 0, 10, 1)['x'], first)
    np.testing.assert_array_equal(data.batch(0, 0, 10, 1)['x'], first)
    assert (first.dtype, data.batch(0, 0, 10, 1)['y'].dtype) == (np.float32, np.int32)


def test_held_out_data_are_whole() -> None:
    data = from_iterator(plain, TASK, held_out=HELD_OUT)
    batches = list(data.held_out(2))
    assert [batch['weight'].tolist() for batch in batches] == [[1, 1], [1, 1], [1, 0]]
    assert np.concatenate([batch['y'] for batch in batches])[:5].tolist() == HELD_OUT['y'].tolist()
    assert data.baseline == pytest.approx(1.07, abs=0.03)  # smoothed label histogram, near log(3)
    assert data.facts['held_out'] == 5


def test_tokens() -> None:
    task = Task('tokens', (4,), 10)
    make = lambda seed, size: iter([{'tokens': np.zeros((size, 5), int)}])  # noqa: E731
    data = from_iterator(make, task, held_out={'tokens': np.arange(10).reshape(2, 5)})
    assert data.batch(0, 0, 2, 1)['tokens'].shape == (2, 5)
    assert data.baseline_name == 'token histogram of the held-out data'


@pytest.mark.parametrize(
    'batches, problem',
    [
        ([], r'the iterator ended after 0 batches: let it repeat its data'),
        ([(np.ones((4, 2)), np.ones(4))], 'batch 0 must be a dict of arrays.*not a tuple'),
        ([{'x': np.ones((3, 2)), 'y': np.ones(3, int)}], r'batch 0 has 3 rows, not 4: drop a last batch'),
        ([{'x': np.ones((4, 2)), 'y': np.ones(3, int)}], r'the same number of rows, 1 or more; they have'),
        ([{'x': np.ones((4, 5)), 'y': np.ones(4, int)}], r'needs x of shape \[B, 2\], and has shape \(4, 5\)'),
        ([{'x': np.ones((4, 2))}], r'needs y of shape \[B\], and has none; it has x'),
        ([{'x': np.ones((4, 2)), 'y': np.full(4, 3)}], 'labels of batch 0 are 3 to 3, and the task has 3, from 0 to 2'),
        ([{'x': np.ones((4, 2)), 'y': np.ones(4)}], 'labels are whole numbers; those of batch 0 are float32'),
        ([{'x': np.ones((4, 2)), 'y': np.full(4, 2**40)}], 'y of batch 0 has whole numbers that do not fit 32 bits'),
        ([{'x': np.ones((4, 2)), 'y': np.array(list('abcd'))}], 'y of batch 0 must be an array .* not <U1'),
    ],
)
def test_batches_that_do_not_fit_are_named(batches: list[Any], problem: str) -> None:
    data = from_iterator(lambda seed, size: iter(batches), TASK, held_out=HELD_OUT)
    with pytest.raises(ValueError, match=problem):
        data.batch(0, 0, 4, 1)


def test_batches_have_one_form() -> None:
    whole, more = {'x': np.ones((4, 2)), 'y': np.ones(4, int)}, {'weight': np.ones(4)}
    data = from_iterator(lambda seed, size: iter([whole, {**whole, **more}]), TASK, held_out=HELD_OUT)
    with pytest.raises(ValueError, match=r'batch 1 has .*weight.*, and those before it .*: batches must have one form'):
        data.batch(0, 1, 4, 1)


def test_a_position_of_other_processes_is_refused() -> None:
    training = prepare(streamed('bytes'))
    with pytest.raises(ValueError, match=r'step 4 was saved by 2 processes that each read their part .* there are 1'):
        reading.resume(training, 4, {'reading': [{'bytes': 'NA=='}] * 2})


def test_a_position_without_a_use_is_refused() -> None:
    stream = Stream(plain, TASK)
    with pytest.raises(ValueError, match=r'the iterator has no set_state\(state\)'):
        stream.seek(0, 3, 4, {'next': 3})
