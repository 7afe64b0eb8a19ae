"""What one writes by mistake, or by another library's names, and the answers."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_fixtures import Jaxdist

import jaxdist
from jaxdist import build, line, make_step, simulated
from jaxdist.core import mesh, registry
from jaxdist.line.field_names import KEYWORDS, LINES
from jaxdist.training.checking import PrecisionWarning

BATCH = {'x': np.ones((16, 3), np.float32), 'y': np.ones(16, np.float32)}


def terms(params: Any, batch: Any) -> jax.Array:
    return 0.5 * (batch['x'] @ params['w'] - batch['y']) ** 2


def init(key: jax.Array) -> Any:
    del key
    return {'w': jnp.zeros(3)}


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    del key
    return {'loss': terms(params, batch).sum()}, len(batch['y'])


def made(loss: Any = loss, init: Any = init, update: Any = None, batch: Any = BATCH, workers: int = 4) -> Any:
    return make_step(loss, init, build('mean() | sgd(0.1)') if update is None else update, batch, simulated(workers))


# A mean in place of a sum.


def of_weights(params: Any, batch: Any, key: jax.Array) -> Any:
    count = jnp.sum(jnp.abs(batch['y']))
    return {'loss': jnp.sum(batch['y'] * terms(params, batch)) / count}, count


@pytest.mark.parametrize(
    'wrong',
    [
        lambda p, b, key: ({'loss': terms(p, b).mean()}, len(b['y'])),
        lambda p, b, key: ({'loss': jnp.mean(terms(p, b))}, jnp.float32(len(b['y']))),
        lambda p, b, key: ({'loss': jnp.sum(terms(p, b)) / len(b['y'])}, len(b['y'])),
        jax.jit(lambda p, b, key: ({'loss': terms(p, b).mean()}, jnp.float32(4))),
        of_weights,
    ],
)
def test_a_mean_with_its_count_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"sums\['loss'\] is divided by (the count 4|its count) already"):
        made(wrong)


@pytest.mark.parametrize(
    'right',
    [
        lambda p, b, key: ({'loss': terms(p, b).sum()}, len(b['y'])),
        lambda p, b, key: ({'loss': terms(p, b).mean() * len(b['y'])}, len(b['y'])),
        lambda p, b, key: ({'loss': terms(p, b).mean()}, 1),  # each worker counts as one
        lambda p, b, key: ({'loss': jnp.sum(terms(p, b)) / 10.0}, len(b['y'])),
        lambda p, b, key: ({'loss': jnp.sum(terms(p, b)) / jnp.max(b['y'])}, jnp.sum(b['y'])),
    ],
)
def test_another_quotient_is_not(right: Any) -> None:
    made(right)


def test_half_a_sum_over_two_examples_is_not() -> None:
    made(lambda p, b, key: ({'loss': terms(p, b).sum() / 2}, len(b['y'])), workers=8)


# A loss that cannot be compiled.


def with_if(params: Any, batch: Any, key: jax.Array) -> Any:
    return ({'loss': terms(params, batch).sum()}, 1) if float(params['w'].sum()) > 0 else ({'loss': 0.0}, 1)


def with_numpy(params: Any, batch: Any, key: jax.Array) -> Any:
    return {'loss': np.square(np.asarray(params['w'])).sum()}, len(batch['y'])


@pytest.mark.parametrize('wrong, text', [(with_if, 'if float'), (with_numpy, 'np.square')])
def test_a_loss_that_cannot_be_compiled_is_named(wrong: Any, text: str) -> None:
    with pytest.raises(ValueError, match=rf'cannot be compiled: .* in .*test_mistakes.py, line \d+: .*{text}.*\nTake'):
        made(wrong)


# Arguments of `make_step` and `init`.


@pytest.mark.parametrize(
    'arguments, problem',
    [
        ({'update': 'mean() | sgd(0.1)'}, r"the update is the text of a line: write jaxdist.build\('mean\(\) \| sgd"),
        ({'update': optax.sgd}, r'the update is the function sgd: call it, as in sgd\(...\)'),
        ({'update': 3}, 'must be an optax transformation, .* not a int'),
        ({'batch': (BATCH['x'], BATCH['y'])}, 'a batch is a dict of arrays .* this one is a tuple'),
        ({'batch': {}}, 'this one is a dict without entries'),
        ({'update': optax.chain(jaxdist.mean(codec=jaxdist.int8), optax.sgd(0.1))}, r'codec=int8 is no codec: call it'),
        ({'update': optax.chain(jaxdist.mean(codec='int8'), optax.sgd(0.1))}, "codec='int8' is no codec: take one"),
    ],
)
def test_arguments_of_make_step(arguments: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        made(**arguments)


@pytest.mark.parametrize('key', [0, jax.random.PRNGKey(0), jax.random.split(jax.random.key(0))])
def test_init_takes_a_random_key(key: Any) -> None:
    with pytest.raises(ValueError, match=r'init takes a random key, such as jax.random.key\(0\), not '):
        made().init(key)


@pytest.mark.parametrize('place', [jaxdist.simulated(2), jaxdist.on_mesh(mesh.make({'workers': 2}))])
def test_a_state_is_given_to_step_once(place: Any) -> None:
    program = jaxdist.make_step(loss, init, build('mean() | sgd(0.1)'), BATCH, place)
    state = program.init(jax.random.key(0))
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    jax.block_until_ready(program.step(state, BATCH))
    with pytest.raises(ValueError, match=r'this state was given to step before, .* or give a copy'):
        program.step(state, BATCH)
    jax.block_until_ready(program.step(copy, BATCH))


# The field's names.


@pytest.mark.parametrize('text', sorted(set(LINES.values())))
def test_the_line_for_a_name_of_the_field_is_right(text: str) -> None:
    assert line.split_rule(text) or build(text)


@pytest.mark.parametrize(
    'text, hint',
    [
        ('local_sgd(every=10)', "write 'sgd(0.1) | average(every=10)'"),
        ('fedavg()', "write 'sgd(0.1) | average(every=10)'"),
        ('signSGD()', "write 'mean(codec=sign(), feedback=True) | sgd(0.01)'"),
        ('all_reduce() | sgd(0.1)', "write 'mean() | sgd(0.1)'"),
        ('mean(codec=PowerSGD())', "write 'mean(codec=power_sgd(rank=2), feedback=True) | sgd(0.1)'"),
        ('sgd(0.1) | diloco(H=30, outer=sgd(0.7))', "did you mean 'every'?"),
        ('sgd(lr=0.1)', "did you mean 'learning_rate'?"),
        ('adam(1e-3, beta1=0.5)', "did you mean 'b1'?"),
        ('mean(compressor=int8())', "did you mean 'codec'?"),
        ('mean() | delay(staleness=3)', "did you mean 'steps'?"),
        ('mean(codec=int8)', "'int8' is not called: write int8()"),
    ],
)
def test_a_name_of_the_field_leads_to_ours(text: str, hint: str) -> None:
    with pytest.raises(line.LineError) as caught:
        build(text)
    assert hint in str(caught.value)


def test_each_argument_of_the_field_leads_to_one_that_there_is() -> None:
    functions = [entry.make for entry in {**registry.algorithms(), **registry.codecs()}.values()]
    functions += [optax.sgd, optax.adamw]
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    assert not {name for names in KEYWORDS.values() for name in names} - parameters - {'lr'}


@pytest.mark.parametrize('option', ['--lr', '--learning-rate', '--learning_rate=0.2'])
def test_an_argument_of_the_line_as_an_option_leads_to_set(jaxdist: Jaxdist, option: str) -> None:
    code, _, err = jaxdist('train', 'small.py', option, *([] if '=' in option else ['0.2']))
    assert code == 2
    value = '0.2' if '=' in option else '...'
    assert f'is an argument of the update line: change it with --set sgd.learning_rate={value}' in err


def test_a_batch_that_is_larger_than_the_data_is_refused(jaxdist: Jaxdist) -> None:
    error = jaxdist('train', 'small.py', '--simulate', '--batch', '4000').err
    assert error == 'error: batch=4000 is larger than the training data, which have 1438 examples\n'


@pytest.mark.parametrize('dtype, share', [('bfloat16', 512), ('float16', 4096)])
def test_parameters_of_sixteen_bits_are_warned_of(dtype: str, share: int) -> None:
    def loss(p: Any, b: Any, key: jax.Array) -> Any:
        return {'loss': jnp.sum(b['x'] * p['w'].astype(jnp.float32))}, b['x'].shape[0]

    def train(dtype: Any) -> float:
        batch, init = {'x': jnp.ones(4)}, lambda key: {'w': jnp.ones((), dtype), 'b': jnp.zeros(())}
        program = jaxdist.make_step(
            loss, init, optax.chain(jaxdist.mean(), optax.sgd(0.9 / share)), batch, jaxdist.simulated(1)
        )
        return float(program.step(program.init(jax.random.key(0)), batch)[0].params['w'])

    with pytest.warns(PrecisionWarning, match=f"parameter 'w' is {dtype}, and loses updates smaller than 1/{share} of"):
        assert train(dtype) == 1.0
    assert train('float32') == pytest.approx(1 - 0.9 / share)
