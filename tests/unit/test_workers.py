"""Per-worker code as one program: the layout that types give, and the same numbers simulated and on a mesh."""

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


def place(where: str, count: int, axis: str = collectives.AXIS) -> Workers:
    if where == 'simulated':
        return simulated(count, axis)
    return workers.on_mesh(mesh.make({axis: count}), axis)


# Where the workers are.


def test_workers_know_their_count_mesh_and_axis() -> None:
    made = mesh.make({'model': 2, 'clients': 3})
    assert workers.on_mesh(made, 'clients') == Workers(3, made, 'clients')
    assert simulated(64) == Workers(64, None, 'workers')


def test_a_mesh_without_the_axis() -> None:
    with pytest.raises(ValueError, match=r"no axis 'workers'; its axes are \['model', 'fsdp'\]"):
        workers.on_mesh(mesh.make({'model': 2, 'fsdp': 2}))


@pytest.mark.parametrize('count', [0, -3])
def test_no_workers(count: int) -> None:
    with pytest.raises(ValueError, match=f'1 worker or more, not {count}'):
        simulated(count)


# What varies.


def everything(x: jax.Array) -> dict[str, Any]:
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


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('count', [1, 4])
def test_varying(where: str, count: int) -> None:
    """Of one worker too: whether values may differ is a property of the code, not of the number of workers."""
    x = jax.ShapeDtypeStruct((count, 3), 'float32')
    assert varying(everything, place(where, count), P('workers'), x) == {
        'argument': True,
        'constant': False,
        'mean': False,
        'nested': {'index': True, 'gather': False, 'mixed': True},
        'where': True,
        'branch': False,
        'loop': False,
    }


CHOICES = {
    'cond': lambda i: jax.lax.cond(i > 1, lambda: 5, lambda: 6),
    'switch': lambda i: jax.lax.switch(i, [lambda: 0, lambda: 1, lambda: 2]),
    'while': lambda i: jax.lax.while_loop(lambda c: c < i, lambda c: c + 1, 0),
    'fori': lambda i: jax.lax.fori_loop(0, i, lambda _, c: c + 1, 0),
}


@pytest.mark.parametrize('choice', CHOICES)
def test_what_workers_choose_between_shared_values_is_refused(choice: str) -> None:
    """JAX types a choice by its branches alone, not by who takes which."""
    with pytest.raises(ValueError, match='takes another branch on each worker'):
        varying(
            lambda _: CHOICES[choice](collectives.axis_index()), simulated(3), P(), jax.ShapeDtypeStruct((), 'int32')
        )


def test_what_workers_choose_between_their_own_values_varies() -> None:
    choose = lambda _: jax.lax.cond(
        collectives.axis_index() > 1, lambda: collectives.pvary(5), lambda: collectives.pvary(6)
    )
    assert varying(choose, simulated(3), P(), jax.ShapeDtypeStruct((), 'int32')) is True


@pytest.mark.parametrize('where', PLACES)
def test_arguments_may_be_shared(where: str) -> None:
    x = jax.ShapeDtypeStruct((4, 3), 'float32')
    both = lambda x, y: (x, y, x + y)  # noqa: E731
    assert varying(both, place(where, 4), (P(), P('workers')), x, x) == (False, True, True)


# The fixed point. A step that passes what varies from leaf to leaf, one a step.


class Relay(NamedTuple):
    """Everybody begins alike; each step adds the batch to `a`, and the leaf before to each leaf after it."""

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


def relay(where: Workers, rows: int = 2) -> Program:
    batch = jax.ShapeDtypeStruct((rows * where.count, 2), 'float32')
    scale = jax.ShapeDtypeStruct((), 'float32')
    layout = find_layout(relay_init, relay_step, where, (scale,), batch)
    return build_program(relay_init, relay_step, layout, where, (scale,))


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('count', [1, 3])
def test_the_layout_is_a_fixed_point(where: str, count: int) -> None:
    """`c` varies after three steps alone: one pass over the step would not see it."""
    assert relay(place(where, count)).layout == Relay(a=True, b=True, c=True, mean=False, count=False)


@pytest.mark.parametrize('where', PLACES)
def test_what_init_makes_different_stays_so(where: str) -> None:
    init = lambda: {'mine': collectives.axis_index(), 'ours': jnp.int32(0)}  # noqa: E731
    step = lambda s, b: (s, None)  # noqa: E731
    batch = jax.ShapeDtypeStruct((3,), 'float32')
    layout = find_layout(init, step, place(where, 3), (), batch)
    assert layout == {'mine': True, 'ours': False}
    state = build_program(init, step, layout, place(where, 3), ()).init()
    assert (state['mine'].tolist(), state['ours'].tolist()) == ([0, 1, 2], 0)


def test_other_axes_change_no_layout() -> None:
    wide = workers.on_mesh(mesh.make({'fsdp': 2, 'workers': 2, 'model': 2}))
    assert relay(wide).layout == relay(simulated(2)).layout


@pytest.mark.parametrize('where', PLACES)
def test_a_step_that_returns_another_structure(where: str) -> None:
    with pytest.raises(ValueError, match=r"another structure than it was given:\n.*'a'.*\n.*'b'"):
        find_layout(
            lambda: {'a': jnp.zeros(())},
            lambda s, b: ({'b': s['a']}, None),
            place(where, 2),
            (),
            jax.ShapeDtypeStruct((2,), 'float32'),
        )


# The program.


def relay_in_numpy(data: np.ndarray, scale: float, count: int) -> tuple[Relay, list[Any]]:
    """The relay over `data` [T, B, 2], every leaf [W, 2]."""
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


@pytest.mark.parametrize('where', PLACES)
@pytest.mark.parametrize('count', [1, 3, 5, 8])
def test_the_program_is_the_code_of_every_worker(where: str, count: int) -> None:
    data = np.random.default_rng(0).normal(size=(4, 2 * count, 2)).astype('float32')
    want, outs = relay_in_numpy(data, 0.5, count)
    program = relay(place(where, count))
    state = program.init(np.float32(0.5))
    for t, batch in enumerate(data):
        state, out = program.step(state, batch)
        assert out['count'].tolist() == [t + 1] * count  # shared, and yet a row a worker
        for name, x in outs[t].items():
            np.testing.assert_allclose(out[name], x, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, want)


def test_sixty_four_workers_on_one_device() -> None:
    data = np.random.default_rng(0).normal(size=(4, 128, 2)).astype('float32')
    program = relay(simulated(64))
    state = program.init(np.float32(1))
    for batch in data:
        state, _ = program.step(state, batch)
    want, _ = relay_in_numpy(data, 1.0, 64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state, want)
    assert state.a.sharding.device_set == {jax.devices()[0]}


@pytest.mark.parametrize('where', PLACES)
def test_state_is_what_init_and_step_give(where: str) -> None:
    """Shapes, dtypes and shardings, so that a state can be put back where it was."""
    program = relay(place(where, 4))
    state = program.init(np.float32(0))
    after, _ = program.step(program.init(np.float32(0)), np.zeros((8, 2), np.float32))
    for got in (state, after):
        for x, want in zip(got, program.state, strict=True):
            assert (x.shape, x.dtype) == (want.shape, want.dtype)
            assert x.sharding.is_equivalent_to(want.sharding, x.ndim)


def test_a_device_holds_its_own_worker_and_what_is_shared() -> None:
    state = relay(place('mesh', 4)).init(np.float32(0))
    assert (state.a.shape, state.a.sharding.spec) == ((4, 2), P('workers'))
    assert [s.data.shape for s in state.a.addressable_shards] == [(1, 2)] * 4
    assert (state.mean.shape, state.mean.sharding.is_fully_replicated) == ((2,), True)


def test_specs_over_other_axes_come_after_the_workers() -> None:
    """`cut` is given the shapes that one worker has, and says how they lie over the mesh's other axes."""
    where, seen = workers.on_mesh(mesh.make({'workers': 4, 'model': 2})), []

    def cut(shapes: Relay) -> Relay:
        seen.append(jax.tree.map(lambda x: x.shape, shapes))
        return Relay(P('model'), P(), P('model'), P('model'), P())

    scale = jax.ShapeDtypeStruct((), 'float32')
    program = build_program(relay_init, relay_step, relay(where).layout, where, (scale,), cut)
    assert seen == [Relay((2,), (2,), (2,), (2,), ())]
    state, _ = program.step(program.init(np.float32(0)), np.ones((8, 2), np.float32))
    for x, local in zip(state, [(1, 1), (1, 2), (1, 1), (1,), ()], strict=True):
        assert x.sharding.shard_shape(x.shape) == local
    np.testing.assert_array_equal(state.a, np.full((4, 2), 2))


@pytest.mark.parametrize('where', PLACES)
def test_the_state_is_donated_by_step_and_not_by_run(where: str) -> None:
    program, batch = relay(place(where, 4)), np.ones((8, 2), np.float32)
    state = program.init(np.float32(1))
    ran, _ = jax.jit(program.run)(state, batch)
    assert not any(x.is_deleted() for x in state)
    stepped, _ = program.step(state, batch)
    assert all(x.is_deleted() for x in state._replace(mean=state.a))  # nobody reads `mean`, so nobody frees it
    jax.tree.map(np.testing.assert_array_equal, ran, stepped)


@pytest.mark.parametrize('where', PLACES)
def test_any_name_of_the_axis(where: str) -> None:
    step = lambda s, b: (s + collectives.psum(b.sum(), 'clients'), collectives.axis_index('clients'))  # noqa: E731
    here = place(where, 3, 'clients')
    init = lambda: jnp.zeros(())  # noqa: E731
    layout = find_layout(init, step, here, (), jax.ShapeDtypeStruct((6,), 'float32'))
    state, out = build_program(init, step, layout, here, ()).step(jnp.float32(1), np.arange(6, dtype=np.float32))
    assert (layout, float(state), out.tolist()) == (False, 16, [0, 1, 2])
