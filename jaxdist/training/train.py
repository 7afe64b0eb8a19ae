"""From an experiment to a generator of training steps: no printing, no writing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist import line
from jaxdist.core import mesh, workers
from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.dual_ascent import DualAscent
from jaxdist.constraints.evaluation import Parts, measuring
from jaxdist.data import Data
from jaxdist.training.experiment import Experiment
from jaxdist.core.gradient import cast
from jaxdist.training.step import State, make_step, shared_params
from jaxdist.core.types import Batch, Model, Params
from jaxdist.core.workers import Program, Workers

PRECISIONS = {'float32': None, 'bfloat16': jnp.bfloat16}
"""What an experiment's `precision` casts the parameters to, for the loss alone."""


class Training(NamedTuple):
    """An experiment made ready.

    Attributes:
        experiment: what is trained.
        data: the data set, loaded.
        model: the model, fitted to the data's task.
        where: the workers.
        program: `init` and `step`.
        put: from a NumPy batch [B, ...] to arrays that lie where the workers are.
        params: from a state to one set of parameters for evaluation, jitted.
        score: `(params, batch) -> (sums, count)`, jitted.
        ascent: the constraints, if there are any.
        measure: what `jaxdist.training.constraint_monitor` needs of a batch under constraints, jitted.
    """

    experiment: Experiment
    data: Data
    model: Model
    where: Workers
    program: Program
    put: Callable[[Batch], Batch]
    params: Callable[[State], Params]
    score: Callable[[Params, Batch], Any]
    ascent: DualAscent | None = None
    measure: Callable[[Params, Batch], Parts] | None = None


class Moment(NamedTuple):
    """What training yields after each step.

    Attributes:
        step: steps taken.
        state: the state after them. The next step takes its buffers, so copy what is to last.
        metrics: the step's sums, counts and `skipped`, [W] each, on the devices; `jaxdist.training.step.means` reads them.
    """

    step: int
    state: State
    metrics: dict[str, jax.Array]


def prepare(experiment: Experiment) -> Training:
    """Loads the data and builds the program; compiles nothing yet.

    Raises:
        ValueError: the update line, the mesh, the batch, the data or the model cannot be had; the text says what
            would do.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> prepare(small).where.count
    2
    """
    where = _workers(experiment)
    # Before the data, which take longer: a slip of the pen is answered at once.
    line.build(experiment.update, axis=where.axis)
    line.check_fits(experiment.update, experiment.steps)
    _check_constraints(experiment)
    data = experiment.data.load()
    model = experiment.model.build(data.task)
    program = make_program(experiment, data, model, where)
    whole = NamedSharding(where.mesh, PartitionSpec()) if where.mesh is not None else None
    compute = PRECISIONS[experiment.precision]
    score = jax.jit(
        lambda params, batch: model.loss(cast(params, compute), batch, jax.random.key(0)), out_shardings=whole
    )
    params = jax.jit(lambda state: shared_params(state, program.layout))
    ascent = dual_ascent(experiment, model)
    measure = None
    if ascent is not None:
        measure = jax.jit(measuring(ascent, model.loss, where.count, compute), out_shardings=whole)
    return Training(experiment, data, model, where, program, _putter(where), params, score, ascent, measure)


def make_program(experiment: Experiment, data: Data, model: Model, where: Workers) -> Program:
    """The experiment's `init` and `step` for these workers.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), batch=8)
    >>> data = small.data.load()
    >>> make_program(small, data, small.model.build(data.task), workers.simulated(2)).state.step.shape
    ()
    """
    batch = data.batch(experiment.seed, 0, experiment.batch, where.count)
    return make_step(
        model.loss,
        model.init,
        line.build(experiment.update, axis=where.axis),
        shapes(batch),
        where,
        rules=model.rules if experiment.mesh.model > 1 else (),
        accumulate=experiment.accumulate,
        compute=PRECISIONS[experiment.precision],
        guard=experiment.guard,
        constraints=dual_ascent(experiment, model),
    )


def dual_ascent(experiment: Experiment, model: Model) -> DualAscent | None:
    """The experiment's constraints for a model; None if it has none.

    Raises:
        LineError: a mistake in a constraint, the dual line or the penalty.

    >>> from jaxdist.training.experiment import Constraints
    >>> small = Experiment(constraints=Constraints(hold=('small: squared_norm(bound=1.0)',)))
    >>> dual_ascent(small, None).names
    ('small',)
    """
    asked = experiment.constraints
    if not asked.hold:
        return None
    made = [(line.check_constraint(text)[0], line.build_constraint(text, model)) for text in asked.hold]
    for name, constraint in made:
        if not isinstance(constraint, Constraint):
            raise ValueError(f'{name} must give a Constraint, of inequality(...) or equality(...), not {constraint!r}')
    held = [replace(constraint, name=name) for name, constraint in made]
    penalty = line.build_value(asked.penalty) if isinstance(asked.penalty, str) else asked.penalty
    return DualAscent(tuple(held), line.build_dual(asked.dual), penalty, asked.order, asked.every)


def shapes(tree: Any) -> Any:
    """The shapes and dtypes of a pytree's arrays, with their shardings where they have one.

    >>> shapes({'x': np.zeros((2, 3), np.float32)})
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), tree)


def first_batch(training: Training) -> Batch:
    """The first step's batch, in NumPy.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> first_batch(prepare(small))['y'].shape
    (8,)
    """
    experiment = training.experiment
    return training.data.batch(experiment.seed, 0, experiment.batch, training.where.count)


def first_state(training: Training) -> State:
    """The state before the first step.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> int(first_state(prepare(small)).step)
    0
    """
    return training.program.init(jax.random.key(training.experiment.seed))


def train(training: Training, state: State) -> Iterator[Moment]:
    """Takes steps until the experiment's are taken, and yields after each. Stop iterating to stop.

    The batch is a function of the seed and the step alone, so that the state is all that a run goes on from.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=3
    ... )
    >>> training = prepare(small)
    >>> [moment.step for moment in train(training, first_state(training))]
    [1, 2, 3]
    """
    experiment = training.experiment
    # Emulated devices share a few threads: two programs under way at once can wait for each other's collectives for
    # ever.
    one_at_a_time = jax.default_backend() == 'cpu'
    for step in range(int(state.step), experiment.steps):
        batch = training.put(training.data.batch(experiment.seed, step, experiment.batch, training.where.count))
        with jax.transfer_guard('disallow'):  # a step that waits for the host would wait at every step
            state, metrics = training.program.step(state, batch)
        if one_at_a_time:
            jax.block_until_ready(metrics)
        yield Moment(step + 1, state, metrics)


def evaluate(training: Training, state: State) -> dict[str, float]:
    """Mean metrics over the whole held-out set, with the mean of the workers' parameters where they differ.

    >>> from jaxdist.training.experiment import Digits, Mesh, Perceptron
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> training = prepare(small)
    >>> sorted(evaluate(training, first_state(training)))
    ['accuracy', 'loss']
    """
    params = jax.block_until_ready(training.params(state))  # one program at a time, for the reason given in `train`
    batches = training.data.held_out(training.experiment.batch)
    parts = [jax.device_get(training.score(params, training.put(batch))) for batch in batches]
    sums, count = jax.tree.map(lambda *x: np.sum(x, dtype=np.float64), *parts)
    return {name: float(total / count) for name, total in sums.items()}


def _check_constraints(experiment: Experiment) -> None:
    """What can be said of constraints without the model."""
    asked = experiment.constraints
    line.build_dual(asked.dual)
    if isinstance(asked.penalty, str):
        line.build_value(asked.penalty)
    names = [line.check_constraint(text)[0] for text in asked.hold]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f'two constraints are called {twice}: name them, as in {twice}_2: {twice}(...)')


def _workers(experiment: Experiment) -> Workers:
    if experiment.mesh.simulate:
        return workers.simulated(experiment.mesh.workers)
    axes = {'workers': experiment.mesh.workers}
    if experiment.mesh.model > 1:
        axes['model'] = experiment.mesh.model
    return workers.on_mesh(mesh.make(axes))


def _putter(where: Workers) -> Callable[[Batch], Batch]:
    if where.mesh is None:
        return jax.device_put
    rows = NamedSharding(where.mesh, PartitionSpec(where.axis))
    # Every process makes the whole batch and keeps its part: cheap, and no process's part depends on how many there
    # are.
    return lambda batch: jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, lambda at: x[at]), batch)
