"""Training under constraints equals an independent NumPy implementation of its documented rules, step by step.

The reference computes one central gradient from all shards. Here uneven shards are padded with rows of weight 0, and
the gradient is a mean over workers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy_problems as problems
import optax
import pytest
from numpy_constraints import Growing, Nupi, Reference, Restart, ScaleByPenalty, Sgd, Trajectory, Within, pad

from jaxdist import mean
from jaxdist.constraints import Constraint, LagrangianObjective, growing, nupi, restart, scale_by_penalty, within
from jaxdist.core import mesh, workers
from jaxdist.core.workers import Workers
from jaxdist.training.metrics import means
from jaxdist.training.step import make_step

STEPS, RATE, CLOSE = 15, 0.1, 1e-12


class Case(NamedTuple):
    """A problem and its dual ascent; `transformations` and `penalty` are the reference's, the others jaxdist's."""

    problem: str
    transformations: Sequence[Any] = (Sgd(0.2),)
    dual: optax.GradientTransformation = optax.sgd(0.2)
    order: Any = 'alternating'
    every: int = 1
    penalty: Any = 0.0
    our_penalty: Any = None
    momentum: float = 0.0
    weighted: bool = False


CONTROLLED = (
    [Nupi(0.1, 0.2, 0.3, 0.05), Within(0.15, 10.0)],
    optax.chain(nupi(0.1, 0.2, 0.3, 0.05), within(0.15, 10.0)),
)
BALL = ([Sgd(0.5), Within(radius=0.4)], optax.chain(optax.sgd(0.5), within(radius=0.4)))
HEAVY = ([Sgd(0.1, 0.5), Restart()], optax.chain(optax.sgd(0.1, 0.5), restart()))
BY_PENALTY = ([ScaleByPenalty(), Sgd(1.0)], optax.chain(scale_by_penalty(), optax.sgd(1.0)))
GROWS = (Growing(0.5, 2.0, 0.9, 3.0), growing(0.5, 2.0, 0.9, 3.0))
RISES = (lambda taken: 0.1 * taken, lambda steps: 0.1 * steps)

CASES = {
    'norm ball': Case('norm ball', penalty=0.5),
    'simplex, controlled': Case('simplex', *CONTROLLED, momentum=0.9),
    'simplex, method of multipliers': Case('simplex', *BY_PENALTY, 'primal_first', 3, *GROWS),
    'rate gap': Case('rate gap', order='simultaneous', weighted=True),
    'rate gap, ahead': Case('rate gap', *HEAVY, 'extragradient', 2, 0.5),
    'curved gap': Case('curved gap', order='extragradient', penalty=0.5, momentum=0.5),
    'curved gap, parameters first': Case('curved gap', *HEAVY, 'primal_first', 1, *RISES),
    'mean residual': Case('mean residual', *CONTROLLED, 'simultaneous', 2, *GROWS, weighted=True),
    'own weights': Case('own weights', penalty=RISES[0], our_penalty=RISES[1]),
    'budget': Case('budget', *HEAVY, weighted=True),
    'each worker': Case('each worker', penalty=GROWS[0], our_penalty=GROWS[1]),
    'each worker and group': Case('each worker and group', *HEAVY, 'primal_first', penalty=0.5),
    'each example': Case('each example', penalty=0.5, weighted=True),
    'two vectors': Case('two vectors', *BALL, 'alternating', 2, 0.5),
    'two vectors, again from 0': Case('two vectors', *HEAVY, 'simultaneous'),
    'each example, growing': Case('each example', penalty=GROWS[0], our_penalty=GROWS[1]),
    'two vectors, ahead': Case('two vectors', *CONTROLLED, 'extragradient'),
}


QUICK = ('norm ball', 'rate gap, ahead')
"""The cases of the quick run."""


def constraints(problem: problems.Problem, rows: int = 0) -> tuple[Constraint, ...]:
    """The problem's constraints as jaxdist's."""
    return tuple(
        Constraint(
            name,
            one.reference.kind,
            one.proxy or one.measure,
            one.reference.over,
            one.reference.bound,
            one.then,
            one.measure if one.proxy else None,
            one.reference.per_worker,
            rows=rows,
        )
        for name, one in problem.constraints.items()
    )


def trained(
    case: Case, batches: list[dict[str, Any]], workers: Workers, rows: int = 0
) -> tuple[list[Any], list[dict[str, Any]]]:
    """The states and the metrics of jaxdist's program over the batches."""
    problem = problems.PROBLEMS[case.problem]
    ascent = LagrangianObjective(
        constraints(problem, rows),
        case.dual,
        case.penalty if case.our_penalty is None else case.our_penalty,
        case.order,
        case.every,
    )
    update = optax.chain(mean(), optax.sgd(RATE, case.momentum or None))
    start: Callable[[Any], Any] = lambda key: {'w': jnp.asarray(problem.start)}  # noqa: E731
    program = make_step(problem.jax_loss, start, update, batches[0], workers, objective=ascent)
    state = program.init(jax.random.key(0))
    states, history = [], []
    for batch in batches:
        states.append(jax.device_get((state.params['w'], state.objective)))
        state, metrics = program.step(state, batch)
        history.append(means(metrics))
    return [*states, jax.device_get((state.params['w'], state.objective))], history


def reference_of(case: Case) -> Reference:
    problem = problems.PROBLEMS[case.problem]
    return Reference(
        problem.loss,
        problem.references,
        case.transformations,
        RATE,
        case.momentum,
        case.order,
        case.every,
        case.penalty,
    )


def compare(path: Trajectory, states: list[Any], case: Case) -> None:
    for step, (params, duals) in enumerate(states):
        np.testing.assert_allclose(params, path.params[step], atol=CLOSE)
        for name, multipliers in path.multipliers.items():
            ours = duals.multipliers[name]
            if case.problem == 'each example':  # the reference has no rows for padding
                ours, multipliers = ours[:, : multipliers.shape[2]], multipliers[step]
                np.testing.assert_allclose(ours, multipliers, atol=CLOSE)
            else:
                np.testing.assert_allclose(ours, multipliers[step], atol=CLOSE)


@pytest.mark.parametrize(
    'case', [pytest.param(c, id=n, marks=[] if n in QUICK else pytest.mark.slow) for n, c in CASES.items()]
)
def test_simulated_workers_match_the_reference(case: Case) -> None:
    with jax.enable_x64(True):
        shards = problems.shards((7, 4, 6), weighted=case.weighted)
        states, history = trained(case, [pad(shards)] * STEPS, workers.simulated(3))
        path = reference_of(case).train(problems.PROBLEMS[case.problem].start, [shards] * STEPS)
        compare(path, states, case)
        np.testing.assert_allclose([metrics['loss'] for metrics in history], path.losses, atol=CLOSE)
        moved = max(np.abs(multipliers[-1]).max() for multipliers in path.multipliers.values())
        assert moved > 0.01, 'the case tests nothing: no multiplier moves'


@pytest.mark.slow
def test_multipliers_of_examples_stay_with_them() -> None:
    """Each batch has other examples, of each worker's part."""
    case = CASES['each example']._replace(weighted=False)
    with jax.enable_x64(True):
        batches = problems.minibatches(problems.shards((7, 5, 6)), 4, STEPS)
        ours = [pad(shards) for shards in batches]
        ours = [{**{n: x for n, x in b.items() if n not in ('index', 'weight')}, 'row': b['index']} for b in ours]
        states, _ = trained(case, ours, workers.simulated(3), rows=7)
        compare(reference_of(case).train(problems.PROBLEMS[case.problem].start, batches), states, case)


SPLITS = {1: (), 2: (5,), 4: (1, 4, 11), 8: (1, 2, 3, 6, 9, 12, 14)}
"""By number of shards, the split points of the examples into uneven shards."""


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, counts', [('rate gap, ahead', (1, 2, 4, 8)), ('mean residual', (4,)), ('two vectors', (8,))]
)
def test_the_path_is_the_same_for_any_number_of_workers(name: str, counts: tuple[int, ...]) -> None:
    """1, 2, 4 and 8 workers, simulated and on a mesh, with even and uneven shards of the same examples."""
    case = CASES[name]
    with jax.enable_x64(True):
        whole = problems.shards((16,), weighted=True)[0]
        expected = reference_of(case).train(problems.PROBLEMS[case.problem].start, [[whole]] * STEPS)
        for points in (SPLITS[count] for count in counts):
            parts = {name: np.split(x, points) for name, x in whole.items()}
            shards = [{name: part[i] for name, part in parts.items()} for i in range(len(points) + 1)]
            for each in (workers.simulated(len(shards)), workers.on_mesh(mesh.make({'workers': len(shards)}))):
                states, _ = trained(case, [pad(shards)] * STEPS, each)
                compare(expected, states, case)
