"""Per-worker code as one program: the layout from types, and equal results of simulated workers and of a mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.core import collectives, mesh, workers
from jaxdist.core.layout import find_layout, varying
from jaxdist.core.program import Program, build_program
from jaxdist.core.workers import Workers, simulated

P = jax.P
PLACES = ('simulated', 'mesh')


def place(kind: str, count: int, axis: str = collectives.AXIS) -> Workers:
    if kind == 'simulated':
        return simulated(count, axis)
    return workers.on_mesh(mesh.make({axis: count}), axis)


# Workers.


def test_workers_have_a_count_a_mesh_and_an_axis() -> None:
    clients = mesh.make({'model': 2, 'clients': 3})
    assert workers.on_mesh(clients, 'clients') == Workers(3, clients, 'clients')
    assert simulated(64) == Workers(64, None, 'workers')


def test_a_mesh_without_the_axis() -> None:
    with pytest.raises(ValueError, match=r"no axis 'workers'; its axes are \['model', 'fsdp'\]"):
        workers.on_mesh(mesh.make({'model': 2, 'fsdp': 2}))


@pytest.mark.parametrize('count', [0, -3])
def test_no_workers(count: int) -> None:
    with pytest.raises(ValueError, match=f'1 worker or more, not {count}'):
        simulated(count)


# Which values vary.


def values(x: jax.Array) -> dict[str, Any]:
    return {
        'argument': x * 2,
        'constant': jnp.ones(3),
        'mean': collectives.pmean(x),
        'nested': {
            'index': collectives.axis_index(),
            'gather': collectives.all_gather(x),
            'mixed': collectives.pmean(x) + x,
        },
        'where': jnp.where(collectives.axis_index() > 0, 1, 2),
        'branch': jax.lax.cond(collectives.pmean(x).sum() > 0, lambda: jnp.zeros(2), lambda: jnp.ones(2)),
        'loop': jax.lax.fori_loop(0, 3, lambda _, y: y + collectives.pmean(x).sum(), jnp.zeros(())),
    }


@pytest.mark.parametrize('kind', PLACES)
@pytest.mark.parametrize('count', [1, 4])
def test_varying(kind: str, count: int) -> None:
    """With one worker too: whether values may differ is a property of the code, not of the number of workers."""
    x = jax.ShapeDtypeStruct((count, 3), 'float32')
    assert varying(values, place(kind, count), P('workers'), x) == {
        'argument': True,
        'constant': False,
        'mean': False,
        'nested': {'index': True, 'gather': False, 'mixed': True},
        'where': True,
        'branch': False,
        'loop': False,
    }


BRANCHES = {
    'cond': lambda i: jax.lax.cond(i > 1, lambda: 5, lambda: 6),
    'switch': lambda i: jax.lax.switch(i, [lambda: 0, lambda: 1, lambda: 2]),
    'while': lambda i: jax.lax.while_loop(lambda c: c < i, lambda c: c + 1, 0),
    'fori': lambda i: jax.lax.fori_loop(0, i, lambda _, c: c + 1, 0),
}


@pytest.mark.parametrize('branch', BRANCHES)
def test_a_varying_predicate_with_a_replicated_result_is_refused(branch: str) -> None:
    """JAX types such a result by its branches, not by the predicate."""
    with pytest.raises(
        ValueError,
        match=r'the predicate of a lax.(cond|while) varies over workers, but its result is typed as replicated',
    ):
        varying(
            lambda _: BRANCHES[branch](collectives.axis_index()), simulated(3), P(), jax.ShapeDtypeStruct((), 'int32')
        )


def test_a_varying_predicate_with_varying_branches_is_allowed() -> None:
    five, six = lambda: collectives.pvary(5), lambda: collectives.pvary(6)
    select = lambda _: jax.lax.cond(collectives.axis_index() > 1, five, six)  # noqa: E731
    assert varying(select, simulated(3), P(), jax.ShapeDtypeStruct((), 'int32')) is True


@pytest.mark.parametrize('kind', PLACES)
def test_arguments_may_be_replicated(kind: str) -> None:
    x = jax.ShapeDtypeStruct((4, 3), 'float32')
    both = lambda x, y: (x, y, x + y)  # noqa: E731
    assert varying(both, place(kind, 4), (P(), P('workers')), x, x) == (False, True, True)


# The fixed point, with a step that passes varying values from one leaf to the next.


class Relay(NamedTuple):
    """The initial state is replicated. Each step adds the batch to `a`, `a` to `b`, and `b` to `c`."""

    a: Any
    b: Any
    c: Any
    mean: Any
    count: Any


def relay_init(scale: Any) -> Relay:
    zero = jnp.zeros(2)
    return Relay(zero, zero, zero + scale, zero, jnp.zeros((), jnp.int32))


def relay_step(state: Relay, batch: jax.Array) -> tuple[Relay, dict[str, jax.Array]]:
    a = state.a + batch.sum(0)
    new = Relay(a, state.b + state.a, state.c + state.b, collectives.pmean(state.c), state.count + 1)
    return new, {'a': a, 'count': new.count, 'mean': new.mean}


def relay(workers: Workers, rows: int = 2) -> Program:
    batch = jax.ShapeDtypeStruct((rows * workers.count, 2), 'float32')
    scale = jax.ShapeDtypeStruct((), 'float32')
    layout = find_layout(relay_init, relay_step, workers, (scale,), batch)
    return build_program(relay_init, relay_step, layout, workers, (scale,))


@pytest.mark.parametrize('kind', PLACES)
@pytest.mark.parametrize('count', [1, 3])
def test_the_layout_is_a_fixed_point(kind: str, count: int) -> None:
    """`c` varies only after three steps, so one pass over the step would not find it."""
    assert relay(place(kind, count)).layout == Relay(a=True, b=True, c=True, mean=False, count=False)


@pytest.mark.parametrize('kind', PLACES)
def test_leaves_that_vary_in_init_are_in_the_layout(kind: str) -> None:
    init = lambda: {'mine': collectives.axis_index(), 'ours': jnp.int32(0)}  # noqa: E731
    step = lambda s, b: (s, None)  # noqa: E731
    batch = jax.ShapeDtypeStruct((3,), 'float32')
    layout = find_layout(init, step, place(kind, 3), (), batch)
    assert layout == {'mine': True, 'ours': False}
    state = build_program(init, step, layout, place(kind, 3), ()).init()
    assert (state['mine'].tolist(), state['ours'].tolist()) == ([0, 1, 2], 0)


def test_other_axes_do_not_change_the_layout() -> None:
    wide = workers.on_mesh(mesh.make({'fsdp': 2, 'workers': 2, 'model': 2}))
    assert relay(wide).layout == relay(simulated(2)).layout


@pytest.mark.parametrize('kind', PLACES)
def test_a_step_that_returns_another_structure(kind: str) -> None:
    with pytest.raises(ValueError, match=r"another structure than it was given:\n.*'a'.*\n.*'b'"):
        find_layout(
            lambda: {'a': jnp.zeros(())},
            lambda s, b: ({'b': s['a']}, None),
            place(kind, 2),
            (),
            jax.ShapeDtypeStruct((2,), 'float32'),
        )


# The program.


def relay_in_numpy(data: np.ndarray, scale: float, count: int) -> tuple[Relay, list[Any]]:
    """The states of the relay over `data` [T, B, 2], every leaf as [W, 2], and its outputs."""
    a, b, c, mean = (np.zeros((count, 2)) for _ in range(4))
    c = c + scale
    outs = []
    for batch in data:
        before = a, b, c
        a = before[0] + batch.reshape(count, -1, 2).sum(1)
        b, c = before[1] + before[0], before[2] + before[1]
        mean = np.broadcast_to(before[2].mean(0), (count, 2))
        outs.append({'a': a, 'mean': mean})
    return Relay(a, b, c, mean[0], len(data)), outs


@pytest.mark.parametrize('kind', PLACES)
@pytest.mark.parametrize('count', [1, 3, 5, 8])
def test_the_program_matches_numpy(kind: str, count: int) -> None:
    data = np.random.default_rng(0).normal(size=(4, 2 * count, 2)).astype('float32')
    expected, outs = relay_in_numpy(data, 0.5, count)
    program = relay(place(kind, count))
    state = program.init(np.float32(0.5))
    for t, batch in enumerate(data):
        state, out = program.step(state, batch)
        assert out['count'].tolist() == [t + 1] * count  # replicated, but returned as one row for each worker
        for name, x in outs[t].items():
            np.testing.assert_allclose(out[name], x, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, expected)


def test_sixty_four_workers_on_one_device() -> None:
    data = np.random.default_rng(0).normal(size=(4, 128, 2)).astype('float32')
    program = relay(simulated(64))
    state = program.init(np.float32(1))
    for batch in data:
        state, _ = program.step(state, batch)
    expected, _ = relay_in_numpy(data, 1.0, 64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state, expected)
    assert state.a.sharding.device_set == {jax.devices()[0]}


@pytest.mark.parametrize('kind', PLACES)
def test_program_state_describes_the_states_of_init_and_step(kind: str) -> None:
    """Shapes, dtypes and shardings, so that a state can be restored."""
    program = relay(place(kind, 4))
    state = program.init(np.float32(0))
    after, _ = program.step(program.init(np.float32(0)), np.zeros((8, 2), np.float32))
    for actual in (state, after):
        for x, expected in zip(actual, program.state, strict=True):
            assert (x.shape, x.dtype) == (expected.shape, expected.dtype)
            assert x.sharding.is_equivalent_to(expected.sharding, x.ndim)


def test_a_device_stores_its_worker_and_the_replicated_leaves() -> None:
    state = relay(place('mesh', 4)).init(np.float32(0))
    assert (state.a.shape, state.a.sharding.spec) == ((4, 2), P('workers'))
    assert [s.data.shape for s in state.a.addressable_shards] == [(1, 2)] * 4
    assert (state.mean.shape, state.mean.sharding.is_fully_replicated) == ((2,), True)


def test_specs_over_other_axes_come_after_the_workers() -> None:
    """`shard` is called with the shapes of one worker, and returns specs over the mesh's other axes."""
    wide, shapes_of_calls = workers.on_mesh(mesh.make({'workers': 4, 'model': 2})), []

    def shard(shapes: Relay) -> Relay:
        shapes_of_calls.append(jax.tree.map(lambda x: x.shape, shapes))
        return Relay(P('model'), P(), P('model'), P('model'), P())

    scale = jax.ShapeDtypeStruct((), 'float32')
    program = build_program(relay_init, relay_step, relay(wide).layout, wide, (scale,), shard)
    assert shapes_of_calls == [Relay((2,), (2,), (2,), (2,), ())]
    state, _ = program.step(program.init(np.float32(0)), np.ones((8, 2), np.float32))
    for x, local in zip(state, [(1, 1), (1, 2), (1, 1), (1,), ()], strict=True):
        assert x.sharding.shard_shape(x.shape) == local
    np.testing.assert_array_equal(state.a, np.full((4, 2), 2))


@pytest.mark.parametrize('kind', PLACES)
def test_the_state_is_donated_by_step_and_not_by_run(kind: str) -> None:
    program, batch = relay(place(kind, 4)), np.ones((8, 2), np.float32)
    state = program.init(np.float32(1))
    ran, _ = jax.jit(program.run)(state, batch)
    assert not any(x.is_deleted() for x in state)
    stepped, _ = program.step(state, batch)
    assert all(
        x.is_deleted() for x in state._replace(mean=state.a)
    )  # `mean` is not an input of the compiled step, so it is not donated
    jax.tree.map(np.testing.assert_array_equal, ran, stepped)


@pytest.mark.parametrize('kind', PLACES)
def test_any_name_of_the_axis(kind: str) -> None:
    step = lambda s, b: (s + collectives.psum(b.sum(), 'clients'), collectives.axis_index('clients'))  # noqa: E731
    clients = place(kind, 3, 'clients')
    init = lambda: jnp.zeros(())  # noqa: E731
    layout = find_layout(init, step, clients, (), jax.ShapeDtypeStruct((6,), 'float32'))
    state, out = build_program(init, step, layout, clients, ()).step(jnp.float32(1), np.arange(6, dtype=np.float32))
    assert (layout, float(state), out.tolist()) == (False, 16, [0, 1, 2])
