"""Virtual shards: the same bits on 1, 2, 4 and 8 devices: parameters, optimiser state, losses and held-out scores."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_fixtures import SMALL, finish, saved, train_until
from step_fixtures import host

from jaxdist.constraints.library import squared_norm
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.core import collectives, mesh, pairwise, virtual_shards
from jaxdist.core.errors import InputError
from jaxdist.core.types import Model, Task
from jaxdist.core.workers import on_mesh
from jaxdist.data import Digits, Dirichlet, Text
from jaxdist.ledger import cost
from jaxdist.line import build, build_dual
from jaxdist.models import Perceptron, Transformer
from jaxdist.training.experiment import Experiment, Mesh
from jaxdist.training.metrics import means
from jaxdist.training.plan import plan
from jaxdist.training.run_folder import read_records
from jaxdist.training.step import make_step
from jaxdist.training.train import evaluate, first_state, prepare, train


@dataclasses.dataclass(frozen=True)
class Noisy(Perceptron):
    """A perceptron whose loss draws from the random key, as dropout does."""

    def build(self, task: Task) -> Model:
        model = super().build(task)

        def loss(params: Any, batch: Any, key: jax.Array) -> Any:
            keep = jax.random.bernoulli(key, 0.8, batch['x'].shape)
            return model.loss(params, {**batch, 'x': batch['x'] * keep}, key)

        return model._replace(loss=loss)


LINE = 'mean() | clip_by_global_norm(0.3) | adamw(learning_rate=1e-2)'
PERCEPTRON = dataclasses.replace(SMALL, update=LINE, model=Noisy(hidden=(32,)), steps=3, virtual_shards=8)
TRANSFORMER = dataclasses.replace(
    PERCEPTRON,
    model=Transformer(layers=1, width=32, heads=2),
    data=Text(path=str(Path(__file__).parents[2] / 'README.md'), context=32),
)
UNEVEN = dataclasses.replace(
    PERCEPTRON, data=Digits(division=Dirichlet(alpha=0.5)), update='mean() | delay(steps=1) | adam(1e-2)'
)


def on(workers: int, experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, mesh=Mesh(workers=workers))


@functools.cache
def trained(workers: int, experiment: Experiment) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The bytes of each leaf of the state after a run, and what it records."""
    training = prepare(on(workers, experiment))
    records = []
    for each in train(training, first_state(training)):
        records.append(means(each.metrics))
        state = each.state
    return [x.tobytes() for x in jax.tree.leaves(host(state))], [*records, evaluate(training, state)]


@pytest.mark.parametrize(
    ('experiment', 'counts'), [(PERCEPTRON, (1, 2, 4, 8)), (TRANSFORMER, (1, 8))], ids=['perceptron', 'transformer']
)
def test_every_number_of_workers_has_the_same_bits(experiment: Experiment, counts: tuple[int, ...]) -> None:
    first, *others = (trained(workers, experiment) for workers in counts)
    assert all(other == first for other in others)
    assert len({record['loss'] for record in first[1]}) == 4  # it trains


def test_shards_of_unequal_weight_have_the_same_bits() -> None:
    assert trained(1, UNEVEN) == trained(4, UNEVEN)


def test_bfloat16_has_the_same_bits() -> None:
    half = dataclasses.replace(PERCEPTRON, precision='bfloat16')
    assert trained(2, half) == trained(8, half) != trained(8, PERCEPTRON)


def test_a_run_goes_on_with_fewer_or_more_workers_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, resized = tmp_path / 'whole', tmp_path / 'resized'
    experiment = on(4, dataclasses.replace(PERCEPTRON, steps=7))
    finish(experiment, whole)
    train_until(2, on(8, experiment), resized)
    train_until(5, on(1, experiment), resized)
    finish(on(4, experiment), resized)
    (_, expected), (steps, leaves) = saved(experiment, whole), saved(experiment, resized)
    assert steps == 7
    assert [x.tobytes() for x in leaves] == [x.tobytes() for x in expected]
    assert recorded(resized) == recorded(whole)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without its time and the bytes sent, which depend on the number of workers."""
    return [{k: v for k, v in record.items() if k not in ('seconds', 'sent')} for record in read_records(folder)]


def test_a_plain_all_reduce_has_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(8, PERCEPTRON)
    monkeypatch.setattr(virtual_shards, 'psum_pairs', collectives.psum)
    assert trained.__wrapped__(8, PERCEPTRON) != expected


def test_shards_of_one_example_have_the_same_bits() -> None:
    single = dataclasses.replace(PERCEPTRON, batch=8, update='mean() | sgd(0.1, momentum=0.9)')
    assert trained(1, single) == trained(8, single)


def test_the_gradient_is_that_of_the_mean_over_all_examples() -> None:
    plain = dataclasses.replace(PERCEPTRON, model=Perceptron(hidden=(32,)), update='mean() | sgd(0.1)')
    expected, actual = (
        first_state(training := prepare(on(4, dataclasses.replace(plain, virtual_shards=shards)))) and training
        for shards in (0, 8)
    )
    states = [host([each.state.params for each in train(t, first_state(t))][-1]) for t in (expected, actual)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *states)


def test_a_step_that_is_not_finite_is_rejected_by_all() -> None:
    loss = lambda p, b, key: ({'loss': p * jnp.sum(b['x'])}, 4.0)  # noqa: E731
    batch = {'x': jnp.ones(8).at[5].set(jnp.nan)}
    for workers in (1, 4):
        program = make_step(
            loss, lambda key: jnp.ones(()), build('sgd(0.1)'), batch, on_mesh(mesh.make({'workers': workers})),
            virtual_shards=4,
        )  # fmt: skip
        state, metrics = program.step(program.init(jax.random.key(0)), batch)
        assert (float(state.params), int(state.skipped), means(metrics)['skipped']) == (1.0, 1, 1.0)


def test_the_bytes_are_those_of_an_all_reduce() -> None:
    training = prepare(on(4, PERCEPTRON))
    (leaf,) = {x.dtype.itemsize for x in jax.tree.leaves(training.program.state.params)}
    size = sum(x.size for x in jax.tree.leaves(training.program.state.params)) + 3  # two sums and the count
    padded = -(-size // 4) * 4 * leaf
    votes = 4
    expected = 2 * 3 * (padded + votes) // 4
    assert int(plan(training).ledger.sent('workers')) == expected
    batch = training.data.batch(0, 0, training.experiment.batch, 8)
    assert int(cost(training.program, batch, jax.random.key(0)).sent('workers')) == expected


def test_sums_by_pairs_are_the_same_however_they_are_divided() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)) * 10.0 ** np.arange(8)[:, None], jnp.float32)
    total = pairwise.sum_pairs(x)
    halves = jnp.stack([pairwise.sum_terms(lambda i: x[i], 2, start) for start in (0, 4)])
    for other in (pairwise.sum_terms(lambda i: x[i], 3), pairwise.sum_pairs(halves)):
        np.testing.assert_array_equal(total, other)
    assert not np.array_equal(total, jnp.cumsum(x, 0)[-1])


def test_a_negative_zero_stays() -> None:
    minus = jnp.full(4, -0.0)
    for total in (pairwise.sum_pairs(minus), pairwise.sum_terms(lambda i: minus[i], 2)):
        assert np.signbit(total)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({'virtual_shards': 6}, 'virtual_shards=6 must be a power of two'),
    ({'virtual_shards': 2}, 'virtual_shards=2 cannot be divided among 4 workers'),
    ({'batch': 20}, 'a batch of 20 examples cannot be divided into virtual_shards=8: 16 or 24 would do'),
    ({'accumulate': 2}, 'Leave accumulate=2 out'),
    ({'mesh': Mesh(workers=4, simulate=True)}, 'simulated workers are evaluated all at once'),
    ({'mesh': Mesh(workers=4, fsdp=2)}, r"the mesh axes \['fsdp'\]"),
    ({'update': 'mean(codec=int8()) | sgd(0.1)'}, r'begins with mean\(\), and this one with mean\(codec=int8\(\)\)'),
    ({'update': 'delay(steps=1) | mean() | sgd(0.1)'}, r'and this one with delay\(steps=1\)'),
    ({'update': 'clip(1.0) | mean() | sgd(0.1)'}, r'and this one with clip\(1.0\)'),
    ({'update': 'sgd(0.1) | average(every=2)'}, r'and this one with sgd\(0.1\)'),
]


@pytest.mark.parametrize(('changes', 'message'), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_depends_on_the_number_of_workers_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(dataclasses.replace(on(4, PERCEPTRON), **changes))


def test_a_step_of_ones_own_refuses_it_too() -> None:
    loss = lambda p, b, key: ({'loss': p * jnp.sum(b['x'])}, 4.0)  # noqa: E731
    make = lambda update, **more: make_step(  # noqa: E731
        loss, lambda key: jnp.ones(()), build(update), {'x': jnp.ones(4)}, on_mesh(mesh.make({'workers': 2})),
        virtual_shards=4, **more,
    )  # fmt: skip
    with pytest.raises(InputError, match='With virtual_shards the gradient is the mean: leave mean out'):
        make('mean() | sgd(0.1)')
    with pytest.raises(InputError, match='workers of this update train locally'):
        make('sgd(0.1) | average(every=2)')
    lagrangian = LagrangianObjective((squared_norm(bound=1.0),), build_dual('sgd(0.1)'), 0.0, 'alternating', 1)
    with pytest.raises(InputError, match='virtual_shards=4 have the gradient of the loss alone'):
        make('sgd(0.1)', objective=lagrangian)
