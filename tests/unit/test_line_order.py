"""A wrong order of transformations, and periods longer than the run, are errors that say what would be right."""

import dataclasses

import jax.numpy as jnp
import optax
import pytest

import jaxdist
from jaxdist import line
from jaxdist.core import workers
from jaxdist.data import Digits
from jaxdist.models import Perceptron
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.training.step import make_step
from jaxdist.training.train import prepare

OUTER = 'outer=sgd(0.7)'
WRONG = {
    'average(every=10) | adamw(1e-3)': r'put it last, as in adamw\(0.001\) \| average\(every=10\)',
    f'diloco(every=10, {OUTER}) | clip_by_global_norm(1.0)': r'diloco synchronises parameters, .* last, as in clip',
    'sgd(0.1) | average(every=2) | delay(steps=1)': r'as in sgd\(0.1\) \| delay\(steps=1\) \| average\(every=2\)',
    'sgd(0.1) | easgd(every=2) | scale(0.5)': 'easgd synchronises parameters, and',
    'mean() | adamw(1e-3) | average(every=10)': 'after mean need not be averaged.* Leave out one of mean and average',
    'mean() | parameter_server(optimizer=sgd(0.1))': 'values that are equal on all workers after mean need not',
    'mean() | delay(steps=1) | mean() | sgd(0.1)': 'Leave out one of mean and mean',
    f'sgd(0.1) | average(every=2) | diloco(every=10, {OUTER})': 'average synchronises parameters already',
    f'sgd(0.1) | slowmo(every=2) | streaming_diloco(every=4, fragments=1, {OUTER})': 'slowmo synchronises parameters',
}
RIGHT = (
    'sgd(0.1) | average(every=10) | keep_params_nonnegative()',
    "mean() | sgd(0.1) | average(every=10, axis='pods')",
    'adamw(1e-3) | mean()',
    'delay(steps=1) | mean() | delay(steps=1) | sgd(0.1)',
)
LONG = {
    'delay(steps=401) | mean() | sgd(0.1)': r'delay\(steps=401\) is longer than the run of 400 steps: no update',
    'dc_asgd(steps=(0, 500)) | mean() | sgd(0.1)': r'dc_asgd\(steps=500\)',
    'sgd(0.1) | average(every=1000)': r'average\(every=1000\) is longer .*: workers would never synchronise',
    f'sgd(0.1) | chain(diloco(every=1000, {OUTER}))': r'diloco\(every=1000\)',
}


@pytest.mark.parametrize('text', WRONG)
def test_a_wrong_order(text: str) -> None:
    with pytest.raises(line.LineError, match=WRONG[text]):
        line.build(text)


@pytest.mark.parametrize('text', RIGHT)
def test_a_right_order(text: str) -> None:
    line.build(text)


@pytest.mark.parametrize('text', LONG)
def test_a_period_longer_than_the_run(text: str) -> None:
    with pytest.raises(line.LineError, match=LONG[text]):
        line.check_fits(text, 400)
    line.check_fits(text, 1000)


def test_a_period_longer_than_the_run_is_found_before_data_are_loaded() -> None:
    small = Experiment(
        update='mean() | sgd(0.1)', model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(2, simulate=True), batch=8
    )
    with pytest.raises(line.LineError, match='longer than the run of 10 steps'):
        prepare(dataclasses.replace(small, steps=10, update='sgd(0.1) | average(every=20)'))


def test_two_synchronisations_in_a_chain_of_optax() -> None:
    update = optax.chain(optax.sgd(0.1), jaxdist.average(every=2), jaxdist.diloco(every=4, outer=optax.sgd(1.0)))
    batch = {'x': jnp.ones((2, 3))}
    loss = lambda p, b, key: ({'loss': jnp.sum(p * b['x'])}, 1.0)  # noqa: E731
    with pytest.raises(ValueError, match='average and diloco both synchronise the parameters'):
        make_step(loss, lambda key: jnp.zeros(3), update, batch, workers.simulated(2))
