"""Training: from an experiment to a generator of steps, which neither prints nor writes files."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist import line
from jaxdist.cluster.phases import doing
from jaxdist.core import mesh as meshes
from jaxdist.core.errors import InputError
from jaxdist.core.objective import Objective
from jaxdist.core.partition import cast_params
from jaxdist.core.program import Program
from jaxdist.core.types import Batch, Model, Params
from jaxdist.core.workers import Workers, on_mesh, simulated
from jaxdist.data import Data
from jaxdist.parallel import Fsdp, Pipeline
from jaxdist.training.arrival_table import ArrivalTable, check_arrivals
from jaxdist.training.arrivals import make_arrivals
from jaxdist.training.checking import check_batch
from jaxdist.training.evaluation import collected, evaluator, metrics_of
from jaxdist.training.experiment import Experiment, ExperimentError
from jaxdist.training.objective import build_objective, check_objective
from jaxdist.training.skipped import Skipped
from jaxdist.training.step import State, make_step, shared_params
from jaxdist.training.virtual_shards import after_mean, check_virtual_shards, shard_scores

PRECISIONS = {'float32': None, 'bfloat16': jnp.bfloat16}
"""The dtype to which an experiment's `precision` casts parameters in the loss; None leaves them float32."""


class Training(NamedTuple):
    """An experiment, prepared for training.

    Attributes:
        experiment: the experiment.
        data: the loaded data set.
        model: the model, built for the data's task.
        workers: the workers.
        program: the training step, as `init` and `step`.
        put: moves a NumPy batch [B, ...] to the workers' devices, sharded over the workers.
        params: from a state to one set of parameters for evaluation, or of `Variables`, jitted.
        score: `(params, batch) -> (sums, count, rows)`, the model's evaluation, jitted.
        objective: the objective that the step minimises; None for the model's loss alone.
        skipped: the batches that the run skips after loss spikes.
        arrivals: the table of arrivals, of a line with a rule of a server; else None.
    """

    experiment: Experiment
    data: Data
    model: Model
    workers: Workers
    program: Program[State]
    put: Callable[[Batch], Batch]
    params: Callable[[State], Params]
    score: Callable[[Params, Batch], Any]
    objective: Objective | None = None
    skipped: Skipped = Skipped()
    arrivals: ArrivalTable | None = None


class TrainingStep(NamedTuple):
    """One step of training, as `train` yields it.

    Attributes:
        step: steps taken, this one included.
        state: the state after the step. The next step donates its buffers, so copy what is needed later.
        metrics: the step's sums, counts and `skipped`, [W] each, on the devices; `jaxdist.training.metrics.means`
            reduces them.
    """

    step: int
    state: State
    metrics: dict[str, jax.Array]


def prepare(experiment: Experiment) -> Training:
    """Loads the data and builds the program; compiles nothing yet.

    Raises:
        InputError: the update line, the mesh, the batch, the data or the model is invalid; the message names what
            would be valid.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> prepare(small).workers.count
    2
    """
    workers = _workers(experiment)
    # Lines are checked before the data are loaded, which takes longer, so that a misspelt line fails at once.
    arriving = line.split_rule(experiment.update, axis=workers.axis)
    if arriving is None:
        line.build(experiment.update, axis=workers.axis)
    else:
        check_arrivals(experiment)
    line.check_fits(experiment.update, experiment.steps)
    check_objective(experiment)
    check_virtual_shards(experiment, workers)
    _state_sync(experiment, workers)
    experiment.clock.table(workers.count, experiment.steps)  # its mistakes
    data = experiment.data.load()
    _check_batch(experiment, data)
    model = experiment.model.build(data.task)
    program = make_program(experiment, data, model, workers)
    whole = NamedSharding(workers.mesh, PartitionSpec()) if workers.mesh is not None else None
    compute = PRECISIONS[experiment.precision]
    evaluate = evaluator(model)
    cast = lambda params, batch: evaluate(cast_params(params, compute), batch)  # noqa: E731
    shards = experiment.virtual_shards
    score = shard_scores(cast, shards, workers) if shards else jax.jit(cast, out_shardings=whole)
    params = jax.jit(lambda state: shared_params(state, program.layout))
    objective = build_objective(experiment, model)
    table = None
    if arriving is not None:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state.params))
        table = ArrivalTable(arriving.rule, experiment.clock, workers.count, size)
        data = data._replace(batch=table.batches(data.batch))
    put = _putter(workers)
    return Training(experiment, data, model, workers, program, put, params, score, objective, arrivals=table)


def make_program(experiment: Experiment, data: Data, model: Model, workers: Workers) -> Program[State]:
    """The experiment's `init` and `step` for these workers.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), batch=8)
    >>> data = small.data.load()
    >>> make_program(small, data, small.model.build(data.task), simulated(2)).state.step.shape
    ()
    """
    batch = data.batch(experiment.seed, 0, experiment.batch, _divisions(experiment, workers))
    if (arriving := line.split_rule(experiment.update, axis=workers.axis)) is not None:
        check_batch(batch, workers.count, experiment.accumulate, 1)
        compute = PRECISIONS[experiment.precision]
        of = {'accumulate': experiment.accumulate, 'compute': compute, 'guard': experiment.guard}
        return make_arrivals(model.loss, model.init, arriving, workers, **of)
    if experiment.mesh.model > 1 and not any('model' in dims for _, dims in model.rules):
        raise InputError(
            f'mesh.model={experiment.mesh.model}: no rule of the model shards a parameter over it, so its devices '
            'would all do the same; give the model rules, or take another axis'
        )
    how, update = experiment.pipeline, experiment.update
    pipeline = Pipeline(model.parts, how.microbatches, how.schedule) if model.parts else None
    return make_step(
        model.loss,
        model.init,
        line.build(after_mean(update) if experiment.virtual_shards else update, axis=workers.axis),
        shapes(batch),
        workers,
        rules=model.rules if len(experiment.mesh.axes) > 1 else (),
        accumulate=experiment.accumulate,
        compute=PRECISIONS[experiment.precision],
        guard=experiment.guard,
        objective=build_objective(experiment, model),
        state_sync=_state_sync(experiment, workers),
        pipeline=pipeline,
        fsdp=_fsdp(experiment),
        attention=experiment.context.attention,
        virtual_shards=experiment.virtual_shards,
    )


def shapes(tree: Any) -> Any:
    """The shapes and dtypes of a pytree's arrays, with their shardings where they have one.

    >>> shapes({'x': jax.ShapeDtypeStruct((2, 3), jnp.float32)})
    {'x': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), tree)


def first_batch(training: Training) -> Batch:
    """The first step's batch, as NumPy arrays.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> first_batch(prepare(small))['y'].shape
    (8,)
    """
    experiment = training.experiment
    return training.data.batch(experiment.seed, 0, experiment.batch, _divisions(experiment, training.workers))


def first_state(training: Training) -> State:
    """The state before the first step.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> int(first_state(prepare(small)).step)
    0
    """
    return training.program.init(jax.random.key(training.experiment.seed))


def train(training: Training, state: State) -> Iterator[TrainingStep]:
    """Takes the experiment's remaining steps, and yields after each. Stop iterating to stop.

    The batch is a function of the seed, the step and the skipped batches alone, so a run can be resumed from its state.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(
    ...     model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8, steps=3
    ... )
    >>> training = prepare(small)
    >>> [step.step for step in train(training, first_state(training))]
    [1, 2, 3]
    """
    experiment = training.experiment
    # Emulated devices share a few threads, so two programs in flight at once can deadlock in their collectives.
    one_at_a_time = jax.default_backend() == 'cpu'
    begin, divisions = int(state.step), _divisions(experiment, training.workers)
    for step in range(begin, experiment.steps):
        doing('data', step + 1)
        number = training.skipped.batch(step)
        batch = training.put(training.data.batch(experiment.seed, number, experiment.batch, divisions))
        doing('step' if step > begin else 'compile', step + 1)
        with jax.transfer_guard('disallow'):  # an implicit transfer would make every step wait for the host
            state, metrics = training.program.step(state, batch)
        if one_at_a_time:
            jax.block_until_ready(metrics)
        yield TrainingStep(step + 1, state, metrics)


def evaluate(training: Training, state: State) -> dict[str, float]:
    """The metrics over the whole held-out set, at the mean over workers of the parameters.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Mesh
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> training = prepare(small)
    >>> sorted(evaluate(training, first_state(training)))
    ['accuracy', 'loss']
    """
    params = jax.block_until_ready(training.params(state))  # one program at a time, as in `train`
    batches = training.data.held_out(training.experiment.batch)
    parts = ((jax.device_get(training.score(params, training.put(batch))), batch) for batch in batches)
    return metrics_of(collected(parts), training.model.metrics)


def _divisions(experiment: Experiment, workers: Workers) -> int:
    """The number of parts of a batch that examples are divided among."""
    return experiment.virtual_shards or workers.count


def _state_sync(experiment: Experiment, workers: Workers) -> optax.GradientTransformation | None:
    return line.build(experiment.state_sync, axis=workers.axis) if experiment.state_sync else None


def _fsdp(experiment: Experiment) -> Fsdp:
    how = experiment.fsdp
    gathers, scatters = (line.build_codec(text) if text else None for text in (how.gathers, how.scatters))
    return Fsdp(how.regather, gathers, scatters)


def _check_batch(experiment: Experiment, data: Data) -> None:
    """Refuses a batch in which examples would have to be repeated."""
    examples = data.facts.get('examples')
    if isinstance(examples, int) and experiment.batch > examples:
        raise ExperimentError(
            f'batch={experiment.batch} is larger than the training data, which have {examples} examples'
        )


def _workers(experiment: Experiment) -> Workers:
    if experiment.mesh.simulate:
        return simulated(experiment.mesh.workers)
    return on_mesh(meshes.make(experiment.mesh.axes))


def _putter(workers: Workers) -> Callable[[Batch], Batch]:
    if workers.mesh is None:
        return jax.device_put
    rows = NamedSharding(workers.mesh, PartitionSpec(workers.axis))
    # Every process makes the whole batch and keeps its rows: this is cheap, and makes the batch independent of the
    # number of processes.
    return lambda batch: jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, rows, lambda at: x[at]), batch)
