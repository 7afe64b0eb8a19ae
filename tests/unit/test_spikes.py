"""Loss spikes: the run goes back to an earlier checkpoint, and skips the batches in between."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import SMALL, finish, kinds, losses, saved, train_until

from jaxdist.core.types import Batch
from jaxdist.data import Data, Digits
from jaxdist.training.diverged import Diverged
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.training.run import run
from jaxdist.training.run_folder import read_records
from jaxdist.training.skipped import Skipped
from jaxdist.training.spikes import find_spike

READ: list[int] = []
"""The batches that were read."""


@dataclasses.dataclass(frozen=True)
class Spiking(Digits):
    """Digits with images of a thousand times the size in some batches, counted from 0."""

    large: tuple[int, ...] = ()
    without: tuple[int, int] = (0, 0)
    """Batches that are left out."""

    def load(self) -> Data:
        data = super().load()
        first, end = self.without

        def batch(seed: int, step: int, size: int, workers: int) -> Batch:
            number = step + end - first if step >= first else step
            READ.append(number)
            clean = data.batch(seed, number, size, workers)
            return {**clean, 'x': clean['x'] * 1000} if number in self.large else clean

        return data._replace(batch=batch)


def spiking(*large: int, **changes: Any) -> Experiment:
    fields = {'data': Spiking(large=large), 'mesh': Mesh(workers=2, simulate=True), 'spike': 3.0, **changes}
    return dataclasses.replace(SMALL, **fields)


NEVER_SEEN = spiking(data=Spiking(without=(4, 6)), spike=0.0)
"""The run that never reads the batches which a run with a spike at step 6 skips."""


@pytest.fixture(scope='module')
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('expected')
    finish(NEVER_SEEN, folder)
    return folder


def check_equal(folder: Path, expected: Path) -> None:
    """Losses and leaves are those of the run that never read the batches, bit for bit."""
    assert losses(folder) == losses(expected)
    (step, actual), (_, leaves) = saved(spiking(5), folder), saved(NEVER_SEEN, expected)
    assert step == 7
    assert [leaf.tobytes() for leaf in actual] == [leaf.tobytes() for leaf in leaves]


def test_the_run_equals_one_that_never_read_the_batches(tmp_path: Path, expected: Path) -> None:
    events = finish(spiking(5), tmp_path)
    assert kinds(events).count('rewound') == 1
    check_equal(tmp_path, expected)
    records = read_records(tmp_path)
    assert [record['step'] for record in records] == [1, 2, 3, 4, 4, 4, 5, 6, 7, 7]
    (facts,) = (record['rewind'] for record in records if 'rewind' in record)
    assert (facts['step'], facts['before'], facts['rewinds'], facts['batches']) == (6, 5, 1, [[4, 6]])
    assert facts['loss'] > 3 * facts['median'] > 0
    goodput = events[-1].value.goodput
    assert goodput.seconds['redone'] > 0
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall, abs=0.1)


def test_killed_before_the_next_checkpoint_and_resumed(tmp_path: Path, expected: Path) -> None:
    for event in run(spiking(5), tmp_path):
        if event.kind == 'trained' and 6 in losses(tmp_path):
            READ.clear()
        if event.kind == 'trained' and event.value['step'] == 5 and READ == [6]:
            break
    READ.clear()
    assert kinds(finish(spiking(5), tmp_path)).count('rewound') == 0
    assert [number for number in READ if number] == [6, 7, 8]  # the program's shapes are those of batch 0
    check_equal(tmp_path, expected)


@pytest.mark.slow
def test_killed_after_the_next_checkpoint_and_without_records(tmp_path: Path, expected: Path) -> None:
    for event in run(spiking(5), tmp_path):
        if event.kind == 'saved' and event.value == 6:
            break
    (tmp_path / 'metrics.jsonl').unlink()
    finish(spiking(5), tmp_path)
    assert losses(tmp_path) == {7: losses(expected)[7]}


@pytest.mark.slow
def test_stopped_at_the_spike_and_resumed(tmp_path: Path, expected: Path) -> None:
    train_until(6, spiking(5), tmp_path)
    assert kinds(finish(spiking(5), tmp_path))[:2] == ['ready', 'rewound']
    check_equal(tmp_path, expected)


def test_a_run_that_spikes_again_goes_further_back_and_gives_up(tmp_path: Path) -> None:
    experiment = spiking(*range(5, 20), rewinds=2)
    with pytest.raises(Diverged, match=r'at step 3, .* the run has gone back 2 times \(--rewinds\)') as error:
        finish(experiment, tmp_path)
    # It went to step 4 and then to 2; of the first record the batches are left.
    rewinds = [(record['step'], record['rewind']['batches']) for record in read_records(tmp_path) if 'rewind' in record]
    assert rewinds == [(2, [[2, 7]])]
    assert error.value.exit_code == 1


@pytest.mark.slow
def test_without_an_earlier_checkpoint_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r'no checkpoint from before step 4 is left .* \(--keep\)'):
        finish(spiking(5, 6, keep=1), tmp_path)


@pytest.mark.slow
def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start(tmp_path: Path) -> None:
    finish(spiking(2, save_every=5), tmp_path)
    finish(spiking(data=Spiking(without=(0, 3)), spike=0.0), tmp_path / 'expected')
    assert losses(tmp_path) == losses(tmp_path / 'expected')


def test_by_default_a_spike_is_recorded_alone(tmp_path: Path) -> None:
    assert Experiment().spike == 0.0
    assert 'rewound' not in kinds(finish(spiking(5, spike=0.0), tmp_path))
    assert losses(tmp_path)[6] > 3 * losses(tmp_path)[5]


def records(*values: float | None) -> list[dict[str, Any]]:
    return [{'step': step, 'loss': loss} for step, loss in enumerate(values)]


@pytest.mark.parametrize(
    'values', [(), (1.0,), (1.0, 3.0), (-2.0, 1.0), (1.0, math.inf), (9.0, 1.0, math.nan), (1.0, None)]
)
def test_these_are_no_spikes(values: tuple[float | None, ...]) -> None:
    assert find_spike([*records(*values), {'step': 9, 'held_out': {'loss': 99.0}}], 3.0) is None


def test_a_spike_is_compared_with_the_last_ten_records() -> None:
    spike = find_spike(records(*[1.0] * 20, *[4.0] * 5, math.nan, *[6.0] * 5, 15.5), 3.0)
    assert spike is not None
    assert (spike.step, spike.median, spike.before) == (31, 5.0, 30)


def test_steps_read_what_was_not_yet_read() -> None:
    """Against a list of what each step has read, which grows by unread batches and shrinks when the run goes back."""
    draw = random.Random(0)
    for _ in range(200):
        read: list[int] = []
        skipped, unread = Skipped(), 0
        for _ in range(5):
            for _ in range(draw.randint(1, 9)):
                assert skipped.batch(len(read)) == unread
                read.append(unread)
                unread += 1
            step = draw.randrange(len(read))
            skipped = Skipped.from_json(skipped.rewound(step, len(read)).to_json())
            del read[step:]
            assert [skipped.batch(k) for k in range(step)] == read
