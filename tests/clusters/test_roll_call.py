"""The roll call names who is missing, and refuses processes that do not belong together."""

import socket
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from jaxdist.cluster.detect import local_devices, place
from jaxdist.cluster.errors import PeerError, UnlikeError
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.roll_call import Lines, answer_roll, call_roll
from jaxdist.core.errors import InputError


def free() -> str:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return f'127.0.0.1:{server.getsockname()[1]}'


def roll(processes: int, *who: tuple[int, int], seconds: float = 20.0) -> list[Future[Lines]]:
    """Process 0, and others as (index, number that it expects); each as it ended."""
    address = free()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call_roll, address, processes, seconds)
        return [first, *(pool.submit(answer_roll, address, expected, k, seconds) for k, expected in who)]


def test_all_come_and_the_port_is_free_again() -> None:
    address = free()
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            others = [pool.submit(answer_roll, address, 3, k, 20.0) for k in (1, 2)]  # before process 0 listens
            first = call_roll(address, 3, 20.0)
            ends = [each.result() for each in others]
        assert [first.dead(), *(each.dead() for each in ends)] == [[], [], []]
        ends[0].close()  # as the system does when a process dies
        ends[1].farewell()
        assert first.dead() == [1]
        assert ends[1].dead() == []  # its connection stays, though it has ended first
        ends[1].close()
        assert first.dead() == []
        first.close()


def test_who_is_missing_is_named_to_all() -> None:
    for each in roll(4, (2, 4), seconds=0.5):
        with pytest.raises(PeerError, match=r'^of 4 processes, 1, 3 did not join within 0.5 s$'):
            each.result()


@pytest.mark.parametrize(
    'who, message',
    [
        (((1, 3), (1, 3)), 'two processes have the index 1: give each another --cluster.process'),
        (((1, 3), (2, 4)), 'process 2 expects 4 processes, and process 0 3'),
    ],
)
def test_processes_that_do_not_belong_together(who: tuple[tuple[int, int], ...], message: str) -> None:
    for each in roll(3, *who):
        with pytest.raises(UnlikeError, match=message):
            each.result()


def test_what_else_connects_is_not_counted() -> None:
    address = free()
    host, port = address.split(':')
    with ThreadPoolExecutor() as pool:
        first = pool.submit(call_roll, address, 2, 20.0)
        for words in (
            b'GET / HTTP/1.1\r\n\r\n',
            b'',
            b'["jaxdist roll call", 2',
            b'5\n',
            b'["jaxdist roll call", 2, "1"]\n',
        ):
            while True:
                try:
                    with socket.create_connection((host, int(port))) as stranger:
                        stranger.sendall(words)
                    break
                except ConnectionRefusedError:
                    continue
        assert not first.done()
        answer_roll(address, 2, 1, 20.0).close()
        first.result().close()


def test_a_port_that_is_taken_and_an_address_of_another_machine() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(InputError, match=rf'cannot listen on 127.0.0.1:{taken}: Address already in use. Take anot'):
            call_roll(f'127.0.0.1:{taken}', 2, 1.0)
    with pytest.raises(InputError, match=r'cannot listen on 192.0.2.1:9911: Cannot assign .* --cluster.bind'):
        call_roll('192.0.2.1:9911', 2, 1.0)


TORCHRUN = {'RANK': '1', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'n1', 'MASTER_PORT': '29500', 'LOCAL_RANK': '1'}


def test_the_order_of_detection() -> None:
    assert place(Cluster(), {}) is None
    given = Cluster('10.0.0.1:9911', 2, 1)
    assert place(given, TORCHRUN) == ('10.0.0.1:9911', 2, 1, None)
    both = {**TORCHRUN, 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3'}
    assert place(Cluster(), both) == ('n1:29501', 4, 1, None)


def test_processes_whose_agents_count_restarts_differently_have_the_same_coordinator() -> None:
    """After a failure on one node, only that node's torchrun counts a restart."""
    places = [place(Cluster(), {**TORCHRUN, 'TORCHELASTIC_RESTART_COUNT': count}) for count in '01']
    assert places[0] == places[1]


def test_several_tasks_without_a_coordinator_are_an_error() -> None:
    with pytest.raises(InputError, match=r'--cluster.auto finds no launcher: neither torchrun, .* Give --cluster.coor'):
        place(Cluster(), {'OMPI_COMM_WORLD_SIZE': '2'})
    with pytest.raises(InputError, match=r'finds no launcher'):
        place(Cluster(auto=True), {})


GPUS = {'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}


@pytest.mark.parametrize(
    'environment, devices',
    [
        ({'SLURM_LOCALID': '0', 'SLURM_STEP_TASKS_PER_NODE': '1(x2)', **GPUS}, None),  # JAX would take one of eight
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '8', **GPUS}, (3,)),
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '4(x2)', **GPUS}, (6, 7)),
        ({'SLURM_LOCALID': '3', 'SLURM_STEP_TASKS_PER_NODE': '4', 'CUDA_VISIBLE_DEVICES': '0'}, None),  # each its own
        ({'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2'}, (1,)),
        ({}, None),
    ],
)
def test_the_devices_of_a_process(environment: dict[str, str], devices: tuple[int, ...] | None) -> None:
    assert local_devices(environment) == devices


def test_devices_that_cannot_be_divided() -> None:
    with pytest.raises(InputError, match=r'3 processes of this node see 8 GPUS|3 processes .* see 8 GPUs'):
        local_devices({'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '3', **GPUS})
