"""Meshes and sharding rules, and the message for each that does not fit."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from jaxdist.core import mesh
from jaxdist.core.mesh import path_text, specs, state_specs

P = jax.P


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, 'float32')


class Pair(NamedTuple):
    mu: Any
    nu: Any


# Meshes.


def test_a_mesh_takes_the_first_devices_with_the_last_axis_fastest() -> None:
    two_axes = mesh.make({'workers': 3, 'model': 2})
    assert dict(two_axes.shape) == {'workers': 3, 'model': 2}
    assert [d.id for d in two_axes.devices.flat] == [d.id for d in jax.devices()[:6]]
    assert two_axes.axis_types == (AxisType.Auto, AxisType.Auto)


def test_devices_can_be_given() -> None:
    last = jax.devices()[6:]
    assert list(mesh.make({'workers': 2}, last).devices) == last


@pytest.mark.parametrize('size', [0, -2])
def test_an_axis_smaller_than_one(size: int) -> None:
    with pytest.raises(ValueError, match=f"'model' has size {size}; it must be 1 or more"):
        mesh.make({'workers': 2, 'model': size})


def test_too_few_devices_suggests_emulation_and_simulation() -> None:
    with pytest.raises(ValueError, match='3 workers x 4 model needs 12 devices, and there are 8') as error:
        mesh.make({'workers': 3, 'model': 4})
    assert '--emulate' in str(error.value)
    assert '"jax_num_cpu_devices", 12' in str(error.value)
    assert '--simulate' in str(error.value)


def test_too_few_of_the_given_devices() -> None:
    with pytest.raises(ValueError, match='2 workers needs 2 devices, and there are 1'):
        mesh.make({'workers': 2}, jax.devices()[:1])


# Paths.


def test_paths_have_every_kind_of_key() -> None:
    tree = {'a': (Pair([1], 2),), 'b': optax.EmptyState(), 'c/d': 3}
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert [path_text(path) for path, _ in flat] == ['a/0/mu/0', 'a/0/nu', 'c/d']
    assert path_text(()) == ''


# Rules.

MESH = {'workers': 2, 'model': 2, 'fsdp': 2}


def sharded(params: Any, *rules: Any, axes: dict[str, int] = MESH) -> Any:
    return specs(params, rules, mesh.make(axes))


def test_the_first_rule_that_matches_the_whole_path() -> None:
    params = {'up': shape(4, 6), 'group': {'up': shape(4, 6)}, 'upper': shape(4, 6), 'bias': shape(6)}
    actual = sharded(params, ('group/up', ('fsdp', 'model')), ('.*/up|up', ('model', None)), ('u.*', (None, 'model')))
    assert actual == {
        'up': P('model'),
        'group': {'up': P('fsdp', 'model')},
        'upper': P(None, 'model'),
        'bias': P(),
    }


def test_a_rule_may_have_fewer_dims_than_the_parameter() -> None:
    assert sharded({'w': shape(4, 3, 5)}, ('w', ('model',))) == {'w': P('model')}


def test_missing_axes_and_axes_of_size_one_do_not_shard() -> None:
    params, rule = {'w': shape(4, 3, 4)}, ('w', ('fsdp', 'model', 'stage'))
    assert sharded(params, rule, axes={'workers': 2, 'model': 1, 'stage': 2}) == {'w': P(None, None, 'stage')}
    assert sharded(params, rule, axes={'workers': 2, 'fsdp': 2}) == {'w': P('fsdp')}
    assert specs(params, [rule], None) == {'w': P()}


def test_without_rules_nothing_is_sharded() -> None:
    assert sharded({'w': shape(4), 'b': [shape(), shape(2, 2)]}) == {'w': P(), 'b': [P(), P()]}


def test_a_rule_that_matches_no_parameter() -> None:
    message = r"match no parameter: \['ups', 'x'\]; the parameters are \['b', 'up'\]"
    for each in (mesh.make(MESH), None):
        with pytest.raises(ValueError, match=message):
            specs({'up': shape(4), 'b': shape()}, [('up', ('model',)), ('x', ()), ('ups', ())], each)


def test_a_rule_with_too_many_dims() -> None:
    with pytest.raises(ValueError, match=r"rule 'w' names 2 dims, and parameter 'w' has 1: \(4,\)"):
        sharded({'w': shape(4)}, ('w', (None, 'model')))


def test_a_dim_that_its_axis_does_not_divide() -> None:
    message = r"dim 1 of parameter 'a/w' \(4, 5\) has 5 entries, .* axis 'model' of size 2 does not divide"
    with pytest.raises(ValueError, match=message):
        sharded({'a': {'w': shape(4, 5)}}, ('a/w', (None, 'model')))


# The state of optimisers.


SIZES = dict.fromkeys(('fsdp', 'model', 'x', 'y', 'z'), 3)


def test_a_leaf_with_an_entry_for_each_shard_is_sharded() -> None:
    params = {'w': shape(6, 9), 'b': shape(3)}
    param_specs = {'w': P('model', 'fsdp'), 'b': P()}
    factors = {'w': shape(9, 3, 2), 'b': shape(9, 3)}
    assert state_specs(factors, params, param_specs, SIZES) == {'w': P(('fsdp', 'model')), 'b': P()}
    assert state_specs({'w': shape(3, 3, 2), 'b': shape()}, params, param_specs, SIZES) == {'w': P(), 'b': P()}


def test_moments_residuals_and_queues_are_sharded_like_their_parameter() -> None:
    params = {'a': {'w': shape(4, 6)}, 'b': shape(6)}
    param_specs = {'a': {'w': P('fsdp', 'model')}, 'b': P()}
    queue = {'a': {'w': shape(3, 4, 6)}, 'b': shape(3, 6)}
    history = {'a': {'w': shape(7, 3, 4, 6)}, 'b': shape(7, 3, 6)}
    state = (Pair(params, queue), {'history': history, 'count': shape(), 'vector': shape(6)})
    assert state_specs(state, params, param_specs, SIZES) == (
        Pair(param_specs, {'a': {'w': P(None, 'fsdp', 'model')}, 'b': P()}),
        {'history': {'a': {'w': P(None, None, 'fsdp', 'model')}, 'b': P()}, 'count': P(), 'vector': P()},
    )


def test_a_leaf_belongs_to_the_parameter_with_the_longest_path() -> None:
    params = {'w': shape(4, 4), 'a': {'w': shape(4, 4)}, 'b': {'a': {'w': shape(4, 4)}}}
    param_specs = {'w': P('x'), 'a': {'w': P('y')}, 'b': {'a': {'w': P('z')}}}
    assert state_specs({'mu': params}, params, param_specs, SIZES) == {'mu': param_specs}
    reverse = dict(reversed(params.items()))  # the result must not depend on the order of parameters
    assert state_specs(reverse, reverse, param_specs, SIZES) == param_specs


def test_a_leaf_of_another_shape_is_replicated() -> None:
    params, param_specs = {'w': shape(4, 6)}, {'w': P('model')}
    for other in (shape(6, 4), shape(4), shape(), shape(4, 6, 1), shape(4, 7)):
        assert state_specs({'mu': {'w': other}}, params, param_specs, SIZES) == {'mu': {'w': P()}}


def test_the_state_of_adam() -> None:
    """Its moments are sharded, its count is not; names of fields do not matter."""
    params = {'w': np.zeros((4, 6), np.float32), 'b': np.zeros(6, np.float32)}
    param_specs = {'w': P(None, 'model'), 'b': P('model')}
    adam = state_specs(jax.eval_shape(optax.adamw(1.0).init, params), params, param_specs, SIZES)[0]
    assert (adam.count, adam.mu, adam.nu) == (P(), param_specs, param_specs)


def test_a_single_array_is_a_tree() -> None:
    assert specs(shape(4), [('', ('model',))], mesh.make(MESH)) == P('model')
    assert state_specs(Pair(shape(4), shape()), shape(4), P('model'), SIZES) == Pair(P('model'), P())


def test_messages_quote_the_rule() -> None:
    with pytest.raises(ValueError, match=re.escape(r"(rule 'w\\d')")):
        sharded({'w1': shape(3)}, (r'w\d', ('model',)))
