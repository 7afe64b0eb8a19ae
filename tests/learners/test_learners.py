"""Learners and the synchroniser: without Ray, against the same line in one program and against plain NumPy."""

import itertools
import json
from pathlib import Path

import jax
import jax.flatten_util
import numpy as np
import pytest
from learner_fixtures import SGD, World, anchor_of, experiment
from numpy_learners import numpy_anchors
from run_fixtures import Jaxdist

from jaxdist import line
from jaxdist.core import files
from jaxdist.core.errors import InputError
from jaxdist.learners.learner import Begin, batches
from jaxdist.learners.progress import Arrival, Quorum, first_progress
from jaxdist.learners.record import Record, Round, read_rounds
from jaxdist.learners.replay import replay
from jaxdist.learners.rounds import Rounds
from jaxdist.training.experiment import Experiment, to_json
from jaxdist.training.train import first_state

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
    world = World(experiment(last), quorum=2, grace=1.5, times=FOUR_TIMES_SLOWER)
    world.run(until=lambda: world.now >= 2.0)
    world.restart_synchroniser()
    for until in (8.0, 15.0, 24.0):
        world.run(until=lambda at=until: world.now >= at)
        world.restart_synchroniser()
        world.kill(1)
        world.save(0)
        world.run(until=lambda at=until: world.now >= at + 3)
        world.begin(1)
    world.run(until=lambda: world.now >= 35.0)
    world.kill(0)
    world.begin(0)
    world.run(until=lambda: world.now >= 60.0)
    starts = {(e['learner'], e['start']) for r in world.log for e in r.learners}
    assert starts >= {(0, 2), (1, 2), (2, 1)}
    slow = sum(e['tokens'] for r in world.log for e in r.learners if e['learner'] == 3) / world.terms.fragments
    assert slow >= 4 * 60 / 4 / 2, 'a slow learner takes 15 steps, and at least half of them are merged by now'
    calls = [call for r in world.log for e in r.learners for call in e['journal']]
    assert [call for call in calls if call[0] == 'begin' and call[3] > 0], 'no start has used what was saved'
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
    rounded = [each._replace(digest='0' * 16, processes=2) for each in world.log]
    in_folder(world, whole, folder, [*rounded[:2], *world.log[2:]])
    ended = jaxdist('learners', 'recorded', '--replay')
    assert ended.code == 0
    found = '2 anchors are equal bit for bit, and losses within 0.0e+00'
    assert f'4 rounds of recorded computed again: {found}' in ended.out
    in_folder(world, whole, folder, [rounded[0]._replace(processes=1), *rounded[1:2], *world.log[2:]])
    ended = jaxdist('learners', 'recorded', '--replay')
    assert ended.code == 1
    assert 'round 1 gives another anchor' in ended.err
    in_folder(world, whole, folder, [*rounded[:2], rounded[2]._replace(loss=1.1 * rounded[2].loss), rounded[3]])
    ended = jaxdist('learners', 'recorded', '--replay')
    assert ended.code == 1
    assert 'round 3 gives another anchor' in ended.err
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
        (['--processes', '0'], '--processes 0 must be 1 or more'),
        (['--processes', '2'], 'do not divide the 1 device of a learner (1 workers): use 1'),
        (['--mesh.fsdp', '4', '--processes', '3'], 'the 4 devices of a learner (1 workers x 4 fsdp): use 1, 2 or 4'),
        (['--simulate', '--processes', '2'], 'simulated learners are a process each'),
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


@pytest.mark.parametrize(('codec', 'feedback', 'mixing'), [('', 0.0, 0.0), ('int4(block=32)', 0.5, 0.25)])
def test_every_round_is_that_of_numpy(codec: str, feedback: float, mixing: float) -> None:
    """With a slow learner, late arrivals, and one that is lost and comes back."""
    compression = f', codec={codec}, feedback={feedback}' if codec else ''
    last = f'streaming_diloco(every=5, fragments=1, outer={SGD}, overlap=1, mixing={mixing}{compression})'
    whole = experiment(last, inner='sgd(0.5)')
    world = World(whole, quorum=2, grace=0.5, times=[1.0, 1.1, 1.7, 9.0])
    world.run(until=lambda: world.now >= 12)
    world.kill(1)
    world.begin(1)
    world.run(until=lambda: world.now >= 40)
    calls = [call for r in world.log for e in r.learners for call in e['journal']]
    assert [call for call in calls if call[0] == 'adopt' and not call[3]], 'no arrival was late'
    params = jax.device_get(first_state(world.training).params)
    start, unravel = jax.flatten_util.ravel_pytree(params)
    loss = lambda x, batch: world.training.model.loss(unravel(x), batch, jax.random.key(0))  # noqa: E731
    mean = jax.jit(jax.grad(lambda x, batch: loss(x, batch)[0]['loss'] / loss(x, batch)[1]))
    coder = line.build_codec(codec) if codec else None

    def code(x: np.ndarray) -> np.ndarray:
        if coder is None:
            return x
        padded = np.zeros(-(-x.size // coder.block) * coder.block, np.float32)
        padded[: x.size] = x
        return np.asarray(coder.decode(coder.encode(padded, jax.random.key(0)), padded.size))[: x.size]

    expected = numpy_anchors(
        world.log,
        np.asarray(start, float),
        lambda x, k, step: np.asarray(mean(np.float32(x), batches(world.training, k, 4)(step)), float),
        code,
        rate=0.5,
        outer=(0.7, 0.5),
        feedback=feedback,
        mixing=mixing,
        examples=4,
    )
    actual = [jax.flatten_util.ravel_pytree(each.merged.anchor)[0] for each in replay(whole, world.log)]
    assert len(actual) > 5
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if codec else 2e-5)  # a code may be the next one by a rounding


def test_learners_draw_different_numbers() -> None:
    world = World(experiment(f'diloco(every=3, outer={SGD})'), 4, 0.0, ALL_ALIKE)
    keys = {tuple(jax.random.key_data(learner.state.key).tolist()) for learner in world.learners}
    assert len(keys) == 4


def test_a_residual_goes_with_its_message() -> None:
    """Another start takes the residual only of a save at the step where it begins; else it would be sent twice."""
    world = World(experiment(f'diloco(every=3, outer={SGD}, codec=int4(block=32), feedback=True)'), 4, 0.0, ALL_ALIKE)
    world.run(until=lambda: len(world.log) == 2)
    learner = world.learners[0]
    kept = jax.device_get(learner.keep())
    assert any(np.any(x) for x in jax.tree.leaves(kept.residual))
    for saved, left in ((6, True), (3, False)):
        learner.begin(Begin(2, 6, (2,), world.merged.anchor, saved), kept)
        assert any(np.any(x) for x in jax.tree.leaves(learner.residual)) == left
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(learner.state.opt_state), kept.opt_state)


def test_a_start_begins_after_what_waits() -> None:
    """A learner that was lost while its arrival waits does not take these steps again."""
    rounds = Rounds(Quorum(3, 3), first_progress(3, 2))
    start, step = rounds.begin(0)
    rounds.arrive(Arrival(0, start, 1, 0, step, 5, 20, (), 1.0, 1.0), now=0.0)
    assert rounds.begin(0) == (2, 5)


def test_the_synchroniser_goes_on_from_its_files(tmp_path: Path) -> None:
    """A round whose line is there and whose checkpoint is not closes again."""
    world = World(experiment(f'diloco(every=3, outer={SGD})'), 4, 0.0, ALL_ALIKE)
    first = world.merged, world.rounds.progress
    with Record(tmp_path, {}, keep=2) as record:
        assert record.begin(world.synchroniser, *first)[1] == first[1]
        world.run(until=lambda: len(world.log) == 1)
        record.close(world.merged, world.rounds.progress, world.log[0])
        after, progress = world.merged, world.rounds.progress
        world.run(until=lambda: len(world.log) == 2)
        files.write(tmp_path / 'rounds.jsonl', json.dumps(world.log[1]._asdict()) + '\n', append=True)
    with Record(tmp_path, {}, keep=2) as record:
        found, back = record.begin(world.synchroniser, *first)
    assert back == progress
    jax.tree.map(np.testing.assert_array_equal, found, after)
    assert read_rounds(tmp_path) == world.log[:1]
