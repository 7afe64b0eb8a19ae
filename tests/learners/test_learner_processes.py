"""Learners of several processes, without Ray: how the processes find each other, and that they train as one."""

import socket
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from forked import launch
from learner_fixtures import SGD, World, experiment
from subprogram import PATIENCE

from jaxdist.cluster import Cluster, PeerError
from jaxdist.core.errors import InputError
from jaxdist.learners.joining import join_world, leaving_with_others
from jaxdist.learners.worlds import PATIENT, SILENT, Member, Worlds
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.experiment import Mesh

FIRST, SECOND, THIRD = (Member(0, p, 'a', f'host:{p + 1}') for p in range(3))


def again(member: Member) -> Member:
    """Another start of the process."""
    return member._replace(start=member.start + '+', address=member.address + '0')


def ask(worlds: Worlds, *members: Member, now: float) -> list[str | None]:
    """What each gets that asks twice, all in turn."""
    first = [worlds.enrol(member, now + 0.01 * k) for k, member in enumerate(members)]
    return [worlds.enrol(member, now + 0.2) or asked for member, asked in zip(members, first, strict=True)]


def test_a_world_is_formed_when_all_are_there() -> None:
    worlds = Worlds(3)
    assert ask(worlds, THIRD, FIRST, SECOND._replace(learner=1), now=0.0) == [None, None, None]
    assert ask(worlds, THIRD, FIRST, SECOND, now=1.0)[-1] == 'host:1'
    assert ask(worlds, THIRD, FIRST, now=2.0) == ['host:1', 'host:1'], 'who asks later gets the same'


def test_a_new_start_begins_the_next_world() -> None:
    worlds = Worlds(2)
    assert ask(worlds, FIRST, SECOND, now=0.0)[-1] == 'host:1'
    assert ask(worlds, again(SECOND), now=9.0) == [None]
    assert ask(worlds, again(SECOND), FIRST, now=9.5)[-1] == 'host:1', 'one that has not joined yet joins the next'
    assert ask(worlds, again(FIRST), now=20.0) == [None]
    assert ask(worlds, again(FIRST), again(again(SECOND)), now=20.5)[-1] == 'host:10', 'the process 0 that is there now'


def test_who_dies_while_others_wait_is_gone() -> None:
    """Long before, or just when the last one comes: nobody is sent to a process that is not there."""
    worlds = Worlds(2)
    assert ask(worlds, SECOND, now=0.0) == [None]
    assert ask(worlds, FIRST, now=1.0) == [None]
    assert ask(worlds, FIRST, now=SILENT + 1) == [None]
    assert ask(worlds, FIRST, again(SECOND), now=SILENT + 2)[-1] == 'host:1'


def test_who_is_missing_is_named_after_a_while() -> None:
    worlds = Worlds(3)
    for now in np.arange(0.0, PATIENT + 3, 0.5):
        worlds.enrol(SECOND, float(now))
        assert worlds.missing(float(now)) == ({0: [0, 2]} if now > PATIENT else {})
    assert worlds.missing(PATIENT + 100.0) == {}, 'nobody waits any more'


def test_who_cannot_join_leaves_and_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program has taken meanwhile is nobody's mistake."""

    def taken(cluster: Cluster) -> None:
        raise InputError(f'process 0 cannot listen on {cluster.coordinator}')

    left = []
    monkeypatch.setattr('jaxdist.cluster.join', taken)
    monkeypatch.setattr('jaxdist.learners.joining.leave', lambda code, words: left.append((code, words)))
    answers = iter([None, 'host:1'])
    with pytest.raises(PeerError), leaving_with_others():
        join_world(3, 0, 2, '127.0.0.1', lambda member: next(answers))
    assert left == [(71, 'the processes of learner 3 could not join: process 0 cannot listen on host:1')]


def trained() -> World:
    """Two learners on two devices each: one is slow, and one is lost and comes back."""
    compression = 'codec=int4(block=32), feedback=True'
    whole = experiment(f'diloco(every=4, outer={SGD}, {compression})', workers=2, mesh=Mesh(workers=2, fsdp=2))
    world = World(whole, quorum=1, grace=0.5, times=[1.0, 1.7])
    world.run(until=lambda: world.now >= 9)
    world.save(1)
    world.run(until=lambda: world.now >= 14)
    world.kill(1)
    world.begin(1)
    world.run(until=lambda: world.now >= 22)
    return world


def save(world: World, folder: Path) -> None:
    """Saves what learner 0 keeps."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(world.learners[0].step, world.learners[0].keep(), {})


def restores(world: World, folder: Path) -> None:
    """What learner 0 keeps is what was saved, bit for bit, on the devices of this process."""
    learner = world.learners[0]
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(learner.kept)
    assert restored is not None
    here = lambda tree: jax.tree.map(lambda x: [shard.data for shard in x.addressable_shards], tree)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, here(restored.state), here(learner.keep()))


PROCESS = """
import sys
from pathlib import Path
sys.path += sys.argv[3:]
import jax
from jaxdist import cluster
jax.config.update('jax_num_cpu_devices', 1)
cluster.join(cluster.Cluster(sys.argv[1], 2, int(sys.argv[2]), join_seconds=60))
from test_learner_processes import restores, save, trained
world = trained()
restores(world, Path('by_one'))
save(world, Path('by_two'))
cluster.finish()
print(*(each.digest for each in world.log))
"""


@pytest.mark.slow
def test_two_processes_of_a_learner_are_one_process_with_its_devices(tmp_path: Path) -> None:
    """The same rounds bit for bit, and each restores what the other has saved."""
    world = trained()
    assert {(e['learner'], e['start']) for r in world.log for e in r.learners} == {(0, 1), (1, 1), (1, 2)}
    save(world, tmp_path / 'by_one')
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path.endswith(('fixtures', 'reference')))]
    processes = [launch(PROCESS, address, str(k), *paths, cwd=tmp_path) for k in range(2)]
    ended = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    for out, _ in ended:
        assert out.splitlines()[-1].split() == [each.digest for each in world.log]
    restores(world, tmp_path / 'by_two')
