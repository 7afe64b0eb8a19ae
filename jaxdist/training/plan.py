"""What an experiment will send and hold, told before it runs."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist import ledger, line
from jaxdist.core import workers
from jaxdist.core.mesh import path_text
from jaxdist.training.step import State
from jaxdist.training.train import Training, first_batch, first_state, make_program, shapes
from jaxdist.core.collectives import AXIS


@dataclass(frozen=True)
class Plan:
    """An experiment's cost.

    Attributes:
        update: the line with every default written out.
        data: what is known of the data set.
        parameters: how many numbers the model has.
        per_worker: the leaves of the parameters, the update's state and the multipliers that each worker has of its
            own.
        constraints: the experiment's, by name, each as it was asked for.
        ledger: bytes sent and held.
        simulated: whether workers share one device: what is sent is then what a mesh of as many would send.
    """

    update: str
    data: dict[str, Any]
    parameters: int
    per_worker: list[str]
    constraints: dict[str, str]
    ledger: ledger.Ledger
    simulated: bool

    def to_json(self) -> dict[str, Any]:
        """The plan as dicts, lists and numbers."""
        names = ('update', 'data', 'parameters', 'per_worker', 'constraints', 'simulated')
        rest = {name: getattr(self, name) for name in names}
        return {**rest, **self.ledger.to_json()}


def plan(training: Training) -> Plan:
    """Compiles the step and reads what it sends and holds.

    >>> from jaxdist.training.experiment import Digits, Experiment, Mesh, Perceptron
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2), batch=8)
    >>> made = plan(prepare(small))
    >>> made.parameters, int(made.ledger.sent('workers'))
    (310, 1244)
    """
    program = training.program
    batch = shapes(training.put(first_batch(training)))
    holds = {'parameters': program.state.params, 'optimiser': program.state.opt_state, 'batch': batch}
    if training.ascent is not None:
        holds['multipliers'] = program.state.duals
    spelled = line.spell(training.experiment.update)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(training.model.init, jax.random.key(0)))]
    book = _simulated(training, batch, holds) if training.where.mesh is None else _placed(training, batch, holds)
    held = dict(line.check_constraint(text) for text in training.experiment.constraints.hold)
    own, simulated = per_worker(program.layout), training.where.mesh is None
    return Plan(spelled, training.data.facts, sum(sizes), own, held, book, simulated)


def traffic(training: Training) -> list[ledger.Row]:
    """What one worker sends, read from the traced program alone: nothing is compiled.

    Simulated workers send nothing; for them it is what workers on a mesh would send.

    >>> from jaxdist.training.experiment import Digits, Experiment, Mesh, Perceptron
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> sum(int(row.bytes_per_step) for row in traffic(prepare(small)))
    1244
    """
    where = training.where
    program, sizes = training.program, {where.axis: where.count}
    if where.mesh is not None:
        sizes = dict(where.mesh.shape)
    else:
        there = workers.imagined(where.count, where.axis)
        program = make_program(training.experiment, training.data, training.model, there)
    steps = training.experiment.steps
    batch = shapes(first_batch(training))
    return ledger.traced_step(program.step, program.state, batch, sizes, steps, initial=lambda: first_state(training))


def update_traffic(update: optax.GradientTransformation, params: Any, count: int, steps: int = 100) -> list[ledger.Row]:
    """What one of so many workers sends under an update, for parameters of these shapes; nothing is compiled.

    Args:
        update: the optax transformation.
        params: a pytree of shapes.
        count: the number of workers.
        steps: over which it is counted how often a part that does not always speak does.

    >>> from jaxdist import line
    >>> rows = update_traffic(line.build('average(every=10)'), {'w': jax.ShapeDtypeStruct((30,), 'float32')}, 4)
    >>> [(row.kind, str(row.share), int(row.bytes_per_step)) for row in rows]
    [('all_reduce', '1/10', 18)]
    """
    start = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)  # noqa: E731
    gradients = jax.tree.map(lambda p: jax.ShapeDtypeStruct((count, *p.shape), p.dtype), params)
    program = workers.update_program(update, start, gradients, workers.imagined(count))
    first = workers.update_program(update, start, gradients, workers.simulated(count)).init
    return ledger.traced_step(program.step, program.state, gradients, {AXIS: count}, steps, initial=first)


def per_worker(layout: State) -> list[str]:
    """The paths of the parameters, of the update's state and of the multipliers that each worker has of its own.

    >>> per_worker(State(False, {'w': True, 'b': False}, (), False, False))
    ['params/w']
    """
    parts = {'params': layout.params, 'opt_state': layout.opt_state, 'duals': layout.duals}
    return [path_text(path) for path, varies in jax.tree_util.tree_flatten_with_path(parts)[0] if varies]


def sent_each_step(rows: list[ledger.Row], axis: str) -> Fraction | None:
    """Bytes that one worker sends over an axis on an average step; None where that depends on the data.

    >>> sent_each_step([], 'workers')
    Fraction(0, 1)
    """
    return ledger.Ledger({axis: 1}, tuple(rows), {}).sent(axis)


def _placed(training: Training, batch: Any, holds: dict[str, Any]) -> ledger.Ledger:
    program, mesh, steps = training.program, training.where.mesh, training.experiment.steps
    first = lambda: first_state(training)  # noqa: E731
    return ledger.measure(program.step, program.state, batch, mesh, steps, initial=first, holds=holds)


def _simulated(training: Training, batch: Any, holds: dict[str, Any]) -> ledger.Ledger:
    compiled = training.program.step.lower(training.program.state, batch).compile()
    held = {name: ledger.held(tree) for name, tree in holds.items()}
    memory = compiled.memory_analysis()
    if memory is not None:
        held['temporaries'] = memory.temp_size_in_bytes
    return ledger.Ledger({training.where.axis: training.where.count}, tuple(traffic(training)), held)
