"""Learners and the synchroniser: without Ray, against the same line in one program and against plain NumPy."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from learner_fixtures import SGD, World, anchor_of, experiment
from run_fixtures import Jaxdist

from jaxdist.core.errors import InputError
from jaxdist.learners.record import Round
from jaxdist.learners.replay import replay
from jaxdist.training.experiment import Experiment, to_json

ALL_ALIKE = [1.0] * 4


def close_to(a: object, b: object) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize(
    ('last', 'overlap'),
    [
        (f'diloco(every=3, outer={SGD})', 0),
        ('diloco(every=4, outer=adam(1e-2))', 0),
        (f'streaming_diloco(every=6, fragments=2, outer={SGD}, overlap=0, mixing=0.0)', 0),
        (f'streaming_diloco(every=4, fragments=2, outer={SGD}, overlap=1, mixing=0.5)', 1),
    ],
)
def test_learners_that_all_arrive_are_workers_of_one_program(last: str, overlap: int) -> None:
    whole = experiment(last)
    world = World(whole, quorum=4, grace=0.0, times=ALL_ALIKE)
    world.run(until=lambda: world.rounds.progress.reached[0][0] >= 12)
    world.run(until=lambda: min(learner.step for learner in world.learners) >= 12 + overlap)
    close_to(world.merged.anchor, anchor_of(whole, 12 + overlap))


def no_token_twice(world: World) -> None:
    """Of each learner and fragment, merged steps are intervals that do not overlap, and tokens are theirs."""
    for p in range(world.terms.fragments):
        for k in range(world.terms.learners):
            mine = [e for r in world.log if r.fragment == p for e in r.learners if e['learner'] == k]
            spans = [(e['first'], e['end']) for e in mine]
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), spans
            tokens = sum(end - first for first, end in spans) * world.training.experiment.batch
            assert sum(e['tokens'] for e in mine) == tokens == world.rounds.progress.tokens[k][p]


def replays(world: World) -> None:
    """The record gives the same anchors again, bit for bit."""
    replayed = list(replay(world.whole, world.log))
    assert len(replayed) == len(world.log) > 0
    assert all(each.equal for each in replayed)
    jax.tree.map(np.testing.assert_array_equal, replayed[-1].merged, world.merged)


FOUR_TIMES_SLOWER = [1.0, 1.0, 1.0, 4.0]


@pytest.mark.parametrize(
    'last',
    [
        f'diloco(every=5, outer={SGD})',
        f'diloco(every=5, outer={SGD}, codec=int4(block=32), feedback=True)',
        f'streaming_diloco(every=6, fragments=3, outer={SGD}, overlap=2, mixing=0.5, codec=sign(), feedback=0.9)',
    ],
)
def test_slow_lost_and_returning_learners(last: str) -> None:
    """One is slow, another is killed between two rounds and while its arrival waits, and comes back each time."""
    world = World(experiment(last), quorum=3, grace=1.5, times=FOUR_TIMES_SLOWER)
    world.run(until=lambda: world.now >= 2.0)
    world.restart_synchroniser()
    for until in (8.0, 15.0, 24.0):
        world.run(until=lambda at=until: world.now >= at)
        world.restart_synchroniser()
        world.kill(1)
        world.run(until=lambda at=until: world.now >= at + 3)
        world.begin(1)
    world.save(0)
    world.run(until=lambda: world.now >= 35.0)
    world.kill(0)
    world.begin(0)
    world.run(until=lambda: world.now >= 75.0)
    assert {(e['learner'], e['start']) for r in world.log for e in r.learners} >= {(1, 2), (0, 2)}
    no_token_twice(world)
    replays(world)


def in_folder(world: World, whole: Experiment, folder: Path, log: list[Round]) -> None:
    """Writes what a run leaves of its rounds."""
    folder.mkdir(exist_ok=True)
    (folder / 'experiment.json').write_text(json.dumps(to_json(whole)))
    (folder / 'rounds.jsonl').write_text(''.join(json.dumps(line._asdict()) + '\n' for line in log))


def test_replay_from_the_command_line(jaxdist: Jaxdist) -> None:
    whole = experiment(f'diloco(every=3, outer={SGD})')
    world = World(whole, quorum=3, grace=1.0, times=FOUR_TIMES_SLOWER)
    world.run(until=lambda: len(world.log) == 4)
    folder = Path('recorded')
    in_folder(world, whole, folder, world.log)
    ended = jaxdist('learners', 'recorded', '--replay')
    assert (ended.code, ended.out) == (0, '4 rounds of recorded computed again: all anchors are equal, bit for bit\n')
    in_folder(world, whole, folder, [*world.log[:3], world.log[3]._replace(digest='0' * 16)])
    ended = jaxdist('learners', 'recorded', '--replay')
    assert ended.code == 1
    assert 'round 4 gives another anchor' in ended.err
    in_folder(world, whole, folder, [world.log[0], world.log[2]])
    ended = jaxdist('learners', 'recorded', '--replay')
    assert ended.code == 1
    assert 'the record lacks a round' in ended.err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--update', 'mean() | sgd(0.1)'], 'diloco or streaming_diloco: sgd is neither'),
        (['--update', 'diloco(every=3, outer=sgd(0.7))'], 'put the optimiser of learners before it'),
        (['--quorum', '5'], 'quorum=5 must be from 1 to the number of learners, 4'),
        (['--grace', '-1'], 'grace=-1.0 must be 0 seconds or more'),
        (['--learners', '3'], 'batch=16 cannot be divided among 3 learners: use 15 or 18'),
        (['--set', 'diloco.codec=majority()'], 'learners may be missing: take sign()'),
        (['--set', 'diloco.codec=int8()', '--set', "diloco.feedback='ef21'"], 'a lost learner forgets'),
        (['--constraints.hold', 'squared_norm(bound=1.0)'], 'learners have no multipliers in common'),
        (['--spike', '3.0'], 'spike is for jaxdist train'),
        (['--replay'], 'give the folder of a run'),
        (['--ray.address', 'nowhere'], 'is no address of a Ray cluster'),
    ],
)
def test_mistakes(jaxdist: Jaxdist, words: list[str], message: str) -> None:
    line = ['--update', 'sgd(0.1) | diloco(every=2, outer=sgd(0.7))']
    ended = jaxdist('learners', 'small.py', *line, *words)
    assert ended.code == 2
    assert message in ' '.join(ended.err.split())


def test_a_run_goes_on_with_other_learners(tmp_path: Path) -> None:
    """New learners begin where the furthest is; the record of both parts replays."""
    before = World(experiment(f'diloco(every=3, outer={SGD})', workers=2, batch=8), 2, 0.0, [1.0, 1.0])
    before.run(until=lambda: len(before.log) == 2)
    after = World(experiment(f'diloco(every=3, outer={SGD})', workers=4, batch=8), 3, 1.0, ALL_ALIKE, before)
    assert [learner.step for learner in after.learners] == [6, 6, 6, 6]
    after.run(until=lambda: len(after.log) == 5)
    assert [each.of for each in after.log] == [2, 2, 4, 4, 4]
    replays(after)


def test_a_codec_with_its_own_collectives_is_refused() -> None:
    with pytest.raises(InputError, match='take one that encodes'):
        World(experiment(f'diloco(every=3, outer={SGD}, codec=power_sgd(rank=2))'), 3, 1.0, ALL_ALIKE)
