"""Parameter trees of any form: which leaves train with every algorithm and codec, and which are refused, and why.

Most trees are evaluated without running (`jax.eval_shape`): structure, shapes and dtypes of the state must not change
from one step to the next. Where numbers are compared, they are those of a tree without the odd leaf.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_fixtures import BATCH, CODECS, FEEDBACK, LINES, QUICK, W, build_program, check_types, kinds, text, trained

from jaxdist import InputError, line
from jaxdist.algorithms._fragments import RULES, divide, join, pick
from jaxdist.core import mesh, registry, workers
from jaxdist.core.parameters import as_params
from jaxdist.training.resize import resized

pytestmark = pytest.mark.filterwarnings('ignore::jaxdist.training.checking.PrecisionWarning')  # halves are meant

SLOW = pytest.mark.slow
EACH = [pytest.param(name, marks=[SLOW] * (name not in QUICK)) for name in LINES]


class Pair(NamedTuple):
    """A container."""

    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A container with a field that is no leaf."""

    w: Any
    b: Any
    name: str = dataclasses.field(default='layer', metadata={'static': True})


def plain() -> Any:
    return {'b': jnp.zeros(3), 'w': jnp.ones((4, 3))}


def odd() -> Any:
    """All that trains: no leaves, numbers, arrays without dims or entries, 16 bits, and containers of every kind."""
    return {
        'nothing': None,
        'empty': {'dict': {}, 'list': [], 'tuple': (), 'none': [None, {'a': None}]},
        'numbers': [1.0, np.float64(0.5), np.float32(2), np.ones(2), jnp.ones(())],
        'no entries': (jnp.ones(0), jnp.ones((3, 0)), jnp.ones((0, 2), jnp.bfloat16)),
        'halves': {'half': jnp.ones(5, jnp.float16), 'brain': jnp.ones((2, 3), jnp.bfloat16)},
        'pair': Pair(jnp.ones((4, 3)), None),
        'layer': Layer(jnp.ones((8, 8)), Pair(jnp.zeros(8), [])),
    }


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    'no leaf': (lambda: {'a': None, 'b': {}}, "nothing to train.*such as .*it returned {'a': None, 'b': {}}"),
    'no entry': (lambda: [jnp.ones((3, 0))], r'nothing to train.*it returned \[\(3, 0\)\]'),
    'None': (lambda: None, 'nothing to train.*it returned None'),
    'integers': (lambda: {'a': 1.0, 'rows': [jnp.arange(3)]}, "parameter 'rows/0' is int32.*in the batch"),
    'a counter': (lambda: Layer(1.0, 0), "parameter 'b' is int32.*Write 1.0 for the number 1.*let the loss close over"),
    'bool': (lambda: Pair(1.0, np.ones(2, bool)), "parameter 'b' is bool"),
    'a key': (lambda: {'a': jax.random.key(0)}, "parameter 'a' is key<fry>"),
    'the root': (lambda: jnp.arange(3), 'the parameter is int32'),
    'text': (lambda: {'a': 1.0, 'name': 'mlp'}, "parameter 'name' is of type str.*out of what init returns"),
    'an object': (lambda: {'a': object()}, "parameter 'a' is of type object.*register a class"),
    'eight bits': (
        lambda: {'a': jnp.ones(2, jnp.float8_e4m3fn)},
        "'a' is float8_e4m3fn.*bfloat16.*cast it in the loss",
    ),
}


# What trains.


def test_every_algorithm_has_a_line() -> None:
    assert list(LINES) == list(registry.algorithms())


@pytest.mark.parametrize('arguments', [pytest.param('', marks=SLOW), FEEDBACK])
@pytest.mark.parametrize('name', EACH)
def test_every_algorithm_trains_an_odd_tree(name: str, arguments: str) -> None:
    """`None` and empty containers are no leaves, numbers become arrays, and a step changes no type."""
    program = build_program(odd, text(name, arguments))
    assert kinds(jax.eval_shape(program.run, program.state, BATCH)[0]) == kinds(program.state)
    params, layout = program.state.params, program.layout.params
    one = jax.tree.map(lambda p, varies: p.update(shape=p.shape[1:]) if varies else p, params, layout)
    assert kinds(one) == kinds(jax.eval_shape(lambda: as_params(odd())))


RULE = "by_path(rules={'numbers/3': int8()}, rest=fp16())"


@pytest.mark.parametrize('feedback', ['False', 'True', "'ef21'"])
@pytest.mark.parametrize('name', CODECS)
def test_every_codec_takes_an_odd_tree(name: str, feedback: str) -> None:
    codec = RULE if name == 'by_path' else CODECS[name]
    refused = feedback != 'False' and not getattr(line.build_codec(codec), 'contracts', True)
    with pytest.raises(InputError, match='needs a contractive codec') if refused else contextlib.nullcontext():
        check_types(as_params(odd()), f'mean(codec={codec}, feedback={feedback})')


@pytest.mark.parametrize('name', [pytest.param(name, marks=[SLOW] * (name != 'mean')) for name in LINES])
def test_what_is_no_number_changes_no_number(name: str) -> None:
    """`None`, empty containers and arrays without entries leave the bits of the other parameters as they are."""
    without = trained(plain, text(name, FEEDBACK))
    with_empties = trained(lambda: {'a': None, 'e': {}, **plain(), 'z': jnp.ones((3, 0))}, text(name, FEEDBACK))
    for path, expected in without.items():
        assert with_empties[path].tobytes() == expected.tobytes(), path
        assert np.abs(expected - plain()[path]).max() > 0.01
    assert with_empties['a'] is None
    assert with_empties['z'].shape == (3, 0)


def test_numbers_become_arrays() -> None:
    numbers = lambda: {'s': 1.0, 'n': np.float64(0.5), 'w': np.ones(3)}  # noqa: E731
    arrays = lambda: {'s': jnp.float32(1), 'n': jnp.float32(0.5), 'w': jnp.ones(3)}  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, trained(numbers, text('mean')), trained(arrays, text('mean')))
    assert kinds(as_params(numbers())) == kinds(arrays())
    with jax.enable_x64(True):
        assert as_params({'w': np.ones(3)})['w'].dtype == np.float64


def test_the_servers_optimiser_keeps_the_dtype_of_a_parameter() -> None:
    """Residuals are float32; a momentum of another dtype than at first would be compiled, and stored, as another."""
    server = 'parameter_server(optimizer=sgd(0.1, momentum=0.9), push=int8(), feedback=True)'
    for dtype in (jnp.float16, jnp.bfloat16):
        check_types({'w': jnp.ones(5, dtype)}, server)


def test_shards_on_a_model_axis_beside_odd_leaves() -> None:
    """There an array without entries has no tensor to share a message with."""
    placement = workers.on_mesh(mesh.make({'workers': W, 'model': 2}))
    start = lambda: {'a': None, 'w': jnp.ones((4, 6)), 'z': jnp.ones((0, 2)), 'e': ()}  # noqa: E731
    codec = {'parameter_server': 'push=int8()'}
    for name in QUICK:
        for arguments in ('', codec.get(name, 'codec=int8()')):
            program = build_program(start, text(name, arguments), placement, rules=[('w', (None, 'model'))])
            assert kinds(jax.eval_shape(program.run, program.state, BATCH)[0]) == kinds(program.state)


@SLOW
@pytest.mark.parametrize('name', QUICK)
def test_an_odd_tree_resumes_with_another_number_of_workers(name: str) -> None:
    old, new = (build_program(odd, text(name, FEEDBACK), workers.simulated(count)) for count in (4, 2))
    assert kinds(jax.eval_shape(lambda state: resized(state, new), old.state)) == kinds(new.state)


# What is refused.


@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_gradient_is_refused_by_its_path(case: str) -> None:
    """By every algorithm alike, before anything is traced."""
    start, problem = REFUSED[case]
    for name in LINES:
        with pytest.raises(InputError, match=f'(?s){problem}'):
            build_program(start, text(name))


# Any tree.


leaf_arrays = st.builds(
    lambda shape, dtype: jnp.ones(shape, dtype),
    st.lists(st.sampled_from([0, 1, 2, 5]), max_size=2).map(tuple),
    st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]),
)
trees = st.recursive(
    st.none() | st.just(()) | leaf_arrays | st.sampled_from([1.0, np.float64(2)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(['a', 'b/c', '']), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Layer, inner, inner)
    ),
    max_leaves=8,
)


LOW_RANK = 'codec=power_sgd(rank=1)'


def entries(tree: Any) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(trees, st.sampled_from(RULES), st.integers(1, 3))
def test_fragments_of_any_tree_join_to_the_tree(tree: Any, rule: Any, count: int) -> None:
    tree = jax.tree.map(np.asarray, tree)
    count = min(count, len(jax.tree.leaves(tree)))
    if count:
        joined = join([pick(tree, members) for members in divide(tree, count, rule)])
        assert kinds(joined) == kinds(tree)


@SLOW
@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees.filter(entries), st.sampled_from(sorted(LINES)), st.sampled_from(['', FEEDBACK, LOW_RANK]))
def test_any_tree_keeps_its_types(tree: Any, name: str, arguments: str) -> None:
    params = as_params(tree)
    if name == 'parameter_server' and arguments == LOW_RANK:
        arguments = ''  # it takes no such codec
    fragments = min(2, len(jax.tree.leaves(params)))
    check_types(params, text(name, arguments).replace('fragments=2', f'fragments={fragments}'))
