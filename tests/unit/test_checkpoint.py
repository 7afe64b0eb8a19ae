"""Checkpoints are restored bit for bit, on any mesh, and only into a state with the same leaves."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist.training.checkpoint import CheckpointError, Checkpoints, MismatchError, manifest

DTYPES = ['bool', 'int8', 'int16', 'int32', 'uint8', 'uint16', 'uint32']
DTYPES += ['float16', 'bfloat16', 'float32', 'float8_e4m3fn', 'float8_e5m2', 'complex64']
WIDE = ['int64', 'uint64', 'float64', 'complex128']


class State(NamedTuple):
    """A nested state with None, like a run's."""

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    key: jax.Array
    nothing: None = None


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bit patterns of the dtype: also NaNs with payloads, denormals, negative zeros."""
    rng = np.random.default_rng(seed)
    if dtype == 'bool':
        return rng.integers(0, 2, shape).astype(bool)
    kind = jnp.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape)


def plain(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if manifest.is_key(leaf) else leaf)


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert plain(one).tobytes() == plain(other).tobytes()


def target_of(state: Any, sharding: Any = None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def mesh_of(rows: int, columns: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return jax.sharding.Mesh(devices, ('workers', 'model'))


def state_of(seed: int = 0) -> State:
    params = {name: jnp.asarray(random_bits(name, (3, 5), seed)) for name in DTYPES}
    params |= {'a/b.c [0]': jnp.float32(seed), 'empty': jnp.zeros((0, 4), jnp.int8)}
    moments = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({'w': jnp.ones((2, 2))})
    keys = [jax.random.key(seed), jax.random.split(jax.random.key(seed, impl='rbg'), (2, 3))]
    return State(jnp.int32(seed), params, (moments, (), [*keys, jax.random.key(1, impl='unsafe_rbg')]), keys[0])


@pytest.mark.slow
def test_a_state_is_restored_bit_for_bit(tmp_path: Path) -> None:
    state = state_of(7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, {'seed': 7, 'update': 'mean() | adam(learning_rate=1e-3)'})
    restored = Checkpoints(tmp_path).restore(target_of(state))
    assert restored is not None
    assert_same(restored.state, state)
    assert isinstance(restored.state, State)
    assert (restored.step, restored.damaged) == (7, [])
    assert restored.meta == {'seed': 7, 'update': 'mean() | adam(learning_rate=1e-3)'}
    for leaf, expected in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state), strict=True):
        assert leaf.sharding == expected.sharding


def test_a_bare_array_is_a_state(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, jnp.arange(3), {})
        restored = checkpoints.restore(target_of(jnp.arange(3)))
    assert restored is not None
    assert_same(restored.state, jnp.arange(3))


def test_64_bit_leaves_need_x64_to_be_restored(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        state = {name: jnp.asarray(random_bits(name, (4, 3))) for name in WIDE}
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, {})
        target = target_of(state)
        restored = Checkpoints(tmp_path).restore(target)
        assert restored is not None
        assert_same(restored.state, state)
    with pytest.raises(CheckpointError, match=r"state\['complex128'\] is complex128, for which jax_enable_x64 must"):
        Checkpoints(tmp_path).restore(target)


@pytest.mark.parametrize('rows, columns', [(4, 2), (2, 2), (2, 1), (1, 1)])
def test_it_is_restored_on_another_mesh(tmp_path: Path, rows: int, columns: int) -> None:
    full = {'w': random_bits('float32', (8, 4)), 'v': random_bits('bfloat16', (4,))}
    keys = jax.random.split(jax.random.key(3), 4)

    def layout(mesh: jax.sharding.Mesh) -> dict[str, jax.NamedSharding]:
        specs = {'w': jax.P('workers', 'model'), 'v': jax.P(), 'keys': jax.P('workers')}
        return {name: jax.NamedSharding(mesh, spec) for name, spec in specs.items()}

    state = jax.device_put({**full, 'keys': keys}, layout(mesh_of(4, 2)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    shardings = layout(mesh_of(rows, columns))
    restored = Checkpoints(tmp_path).restore({name: target_of(x, shardings[name]) for name, x in state.items()})
    assert restored is not None
    assert_same({name: restored.state[name] for name in full}, jax.tree.map(jnp.asarray, full))
    assert_same(restored.state['keys'], keys)
    assert {name: x.sharding for name, x in restored.state.items()} == shardings


@pytest.mark.slow
def test_buffers_may_be_donated_at_once(tmp_path: Path) -> None:
    """What is saved is the state before the step. On CPU, JAX copies buffers that are being written."""
    sharding, copied = (jax.NamedSharding(mesh_of(4, 2), spec) for spec in (jax.P('workers'), jax.P()))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {str(i): jnp.full((64, 99 * i), i, jnp.int32) for i in range(1, 9)}
    first = {name: int(x[0, 0]) for name, x in state.items()}
    state = {name: jax.device_put(x, sharding if int(name) % 2 else copied) for name, x in state.items()}
    target = target_of(state)
    with Checkpoints(tmp_path, keep=99) as checkpoints:
        for n in range(6):
            checkpoints.save(n, state, {})
            state = step(step(step(state)))
    for n in reversed(range(6)):
        restored = Checkpoints(tmp_path).restore(target)
        assert restored is not None
        assert restored.step == n
        for name, x in restored.state.items():
            np.testing.assert_array_equal(x, first[name] + 3 * n)
        (tmp_path / str(n)).rename(tmp_path / f'seen-{n}')


def test_save_returns_before_the_checkpoint_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, write = threading.Event(), manifest.write

    def write_when_released(*args: Any) -> None:
        assert released.wait(60)
        write(*args)

    monkeypatch.setattr(manifest, 'write', write_when_released)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(), {})
        assert checkpoints.steps() == []
        assert checkpoints.meta() is None
        released.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1]


def test_it_works_where_implicit_transfers_are_forbidden(tmp_path: Path) -> None:
    state = state_of()
    with Checkpoints(tmp_path) as checkpoints, jax.transfer_guard('disallow'):
        checkpoints.save(1, state, {})
        restored = checkpoints.restore(target_of(state))
    assert restored is not None
    assert_same(restored.state, state)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.meta() is None
        assert checkpoints.restore(target_of(jnp.zeros(2))) is None
        for step in [3, 20, 100]:
            checkpoints.save(step, jnp.full(2, step), {'at': step})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 100]
        assert checkpoints.meta() == {'at': 100}
        assert checkpoints.meta(20) == {'at': 20}
        with pytest.raises(CheckpointError, match='step 3: the manifest is missing'):
            checkpoints.meta(3)
        with pytest.raises(CheckpointError, match=r'cannot save step 100 in .*: step 100 is there already'):
            checkpoints.save(100, jnp.zeros(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['100', '20']


@pytest.mark.parametrize(
    'change, text',
    [
        (
            lambda s: {**s, 'w': s['w'].astype('int8')},
            r"state\['w'\]: float32\[3\] in .*, int8\[3\] requested",
        ),
        (
            lambda s: {**s, 'w': jnp.zeros((3, 1))},
            r"state\['w'\]: float32\[3\] in .*, float32\[3, 1\] requested",
        ),
        (
            lambda s: {**s, 'v': jnp.zeros(1)},
            r"state\['v'\]: missing in the checkpoint, float32\[1\] requested",
        ),
        (lambda s: {'w': s['w']}, r"state\['key'\]: key<fry>\[\] in the checkpoint, not requested"),
        (
            lambda s: {**s, 'key': jax.random.key(0, impl='rbg')},
            r"state\['key'\]: key<fry>\[\] in .*, key<rbg>",
        ),
        (lambda s: {**s, 'key': jax.random.key_data(s['key'])}, r'key<fry>\[\] in .*, uint32\[2\] requested'),
    ],
)
def test_another_state_is_refused(tmp_path: Path, change: Callable[[Any], Any], text: str) -> None:
    state = {'w': jnp.arange(3.0), 'key': jax.random.key(0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        with pytest.raises(MismatchError, match=text):
            checkpoints.restore(target_of(change(state)))
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    'state, meta, error, text',
    [
        ({'w': np.zeros(2)}, {}, TypeError, r"state\['w'\] is of type ndarray: a checkpoint stores only"),
        ({'w': jnp.zeros(2, 'int4')}, {}, TypeError, r"state\['w'\] is int4: a checkpoint stores bool, and integers"),
        ({'w': jnp.zeros(2)}, {'x': (1, 2)}, TypeError, 'lists for tuples'),
        ({'w': jnp.zeros(2)}, {'x': float('nan')}, TypeError, 'meta must be JSON'),
        ({'w': jnp.zeros(2)}, {'x': jnp.zeros(1)}, TypeError, 'meta must be JSON'),
    ],
)
def test_a_state_or_meta_that_cannot_be_stored_is_refused(
    tmp_path: Path, state: Any, meta: Any, error: type[Exception], text: str
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(error, match=text):
            checkpoints.save(1, state, meta)
        checkpoints.save(1, jnp.zeros(2), {})


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='keep=0: at least 1'):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(RuntimeError, match='with Checkpoints'):
        Checkpoints(tmp_path).save(1, jnp.zeros(2), {})
    with pytest.raises(TypeError, match='with a sharding'):
        Checkpoints(tmp_path).restore({'w': jax.ShapeDtypeStruct((2,), 'float32')})
    uneven = jax.NamedSharding(mesh_of(4, 2), jax.P('workers'))
    with pytest.raises(ValueError, match=r"state\['w'\] cannot be sharded as requested"):
        Checkpoints(tmp_path).restore({'w': jax.ShapeDtypeStruct((3,), 'float32', sharding=uneven)})
    donated = jnp.zeros(2)
    donated.delete()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='state was donated'):
        checkpoints.save(1, donated, {})


def test_the_first_save_compiles_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither digests nor Orbax compile; shapes are those of no other test, so that nothing was compiled before."""
    whole = jax.NamedSharding(mesh_of(8, 1), jax.P())
    state = {f'w{n}': jax.device_put(np.ones((n, 31)), whole) for n in range(101, 105)} | {'key': jax.random.key(0)}
    with jax.log_compiles(), Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(logging.getLogger('jax'), 'propagate', True)
        checkpoints.save(1, state, {})
        checkpoints.wait()
        assert not [record for record in caplog.records if 'compil' in record.message.lower()]
        jax.block_until_ready(state['w101'] + 1)
        assert [record for record in caplog.records if 'XLA compilation of jit(add)' in record.message]
