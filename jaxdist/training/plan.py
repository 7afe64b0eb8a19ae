"""Plans: the bytes that an experiment sends and stores, measured before it runs."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist import ledger, line
from jaxdist.clock.lockstep import Times
from jaxdist.core.gradient import has_state
from jaxdist.core.mesh import path_text
from jaxdist.core.model_state import variables
from jaxdist.core.program import Program, update_program
from jaxdist.core.workers import simulated
from jaxdist.graphs.circulant import ring
from jaxdist.graphs.graph import gap_text, message_text
from jaxdist.ledger.flops import flops
from jaxdist.parallel.schedules import Schedule
from jaxdist.planner.cost import links
from jaxdist.planner.layouts import AXES, Layout
from jaxdist.planner.machines import Machine
from jaxdist.training.arrival_table import ArrivalTable
from jaxdist.training.objective import describe_objective
from jaxdist.training.simulated_time import simulated_times
from jaxdist.training.step import State
from jaxdist.training.train import Training, first_batch, first_state, shapes


@dataclass(frozen=True)
class Plan:
    """An experiment's cost.

    Attributes:
        update: the update line with every default written out.
        data: facts about the data set, by name.
        parameters: the number of parameters of the model.
        unsharded: the paths of parameters that are whole on every device of a worker whose devices share its
            parameters.
        per_worker: the paths of the leaves that vary over workers, of the parameters, the optimiser state, the
            objective's state and the model state.
        objective: the objective in words, by label; empty for a loss alone.
        ledger: the bytes sent per step, and the bytes in memory per device.
        schedule: the schedule of the pipeline as text; '' without one.
        simulated: whether the workers are simulated on one device; the ledger is then that of a mesh of as many, but
            for the temporaries, which are those of the simulation.
        graphs: communication graphs in words, by the algorithm that has them.
        times: when each worker takes each step by the experiment's clock; None without one, and with arrivals.
        arrivals: seconds of a step, staleness and shares, of a line with a rule of a server; else {}.
    """

    update: str
    data: dict[str, Any]
    parameters: int
    unsharded: list[str]
    per_worker: list[str]
    objective: dict[str, str]
    ledger: ledger.Ledger
    schedule: str
    simulated: bool
    graphs: dict[str, str]
    times: Times | None
    arrivals: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The plan as dicts, lists and numbers."""
        names = (
            'update',
            'data',
            'parameters',
            'unsharded',
            'per_worker',
            'objective',
            'schedule',
            'simulated',
            'graphs',
        )
        rest = {name: getattr(self, name) for name in names}
        clock = {'clock': self.times.summary() if self.times else self.arrivals} if self.times or self.arrivals else {}
        return {**rest, **clock, **self.ledger.to_json()}


def plan(training: Training) -> Plan:
    """The plan of an experiment: compiles the step and reads its collectives and its memory.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2), batch=8)
    >>> cost = plan(prepare(small))
    >>> cost.parameters, int(cost.ledger.sent('workers'))
    (310, 1244)
    """
    program, placed = training.program, training.program.on_mesh()
    batch = first_batch(training) if training.arrivals else ledger.placed_batch(placed, first_batch(training))
    stored = {'parameters': placed.state.params, 'optimiser': placed.state.opt_state, 'batch': batch}
    if training.objective is not None:
        stored[training.objective.state_name] = placed.state.objective
    if has_state(placed.state.model):
        stored['model state'] = placed.state.model
    parameters, _ = jax.eval_shape(lambda key: variables(training.model.init(key)), jax.random.key(0))
    simulated = training.workers.mesh is None
    return Plan(
        update=line.spell(training.experiment.update),
        data=training.data.facts,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        unsharded=[] if training.arrivals else unsharded(placed),
        per_worker=per_worker(program.layout),
        objective=describe_objective(training.experiment),
        ledger=_simulated_ledger(training, stored) if simulated else _mesh_ledger(training, batch, stored),
        schedule=_schedule(training),
        simulated=simulated,
        graphs=_graphs(training),
        times=None if training.arrivals else simulated_times(training),
        arrivals=training.arrivals.summary(training.experiment.steps) if training.arrivals else {},
    )


def traffic(training: Training) -> list[ledger.Row]:
    """The collectives of a step and the bytes that one worker sends in them, from the traced program alone.

    For simulated workers they are those of the same step on a mesh of as many workers.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2, simulate=True), batch=8)
    >>> sum(int(row.bytes_per_step) for row in traffic(prepare(small)))
    1244
    """
    experiment, batch = training.experiment, first_batch(training)
    if training.arrivals is not None:
        return arrivals_rows(training.arrivals)
    return list(ledger.cost(training.program, batch, jax.random.key(experiment.seed), steps=experiment.steps).rows)


def arrivals_rows(table: ArrivalTable) -> list[ledger.Row]:
    """What a worker sends a server in a step, on average, and the server to it: messages, and parameters.

    >>> from jaxdist.clock.rules import k_async
    >>> from jaxdist.clock.settings import Clock
    >>> table = ArrivalTable(k_async(k=1), Clock('constant(mean=1.0)'), workers=2, size=8)
    >>> [(row.kind, int(row.bytes_per_step)) for row in arrivals_rows(table)]
    [('push', 8), ('pull', 8)]
    """
    size = Fraction(table.size)
    return [ledger.Row(('workers',), kind, 'float32', 1, size, Fraction(1), size) for kind in ('push', 'pull')]


def update_traffic(update: optax.GradientTransformation, params: Any, count: int, steps: int = 100) -> list[ledger.Row]:
    """The collectives of an update and the bytes that one worker sends in them; nothing is compiled.

    Args:
        update: the optax transformation.
        params: the parameters' shapes and dtypes, a pytree.
        count: the number of workers.
        steps: the number of steps over which the frequency of conditional collectives is computed.

    >>> from jaxdist import line
    >>> rows = update_traffic(line.build('average(every=10)'), {'w': jax.ShapeDtypeStruct((30,), 'float32')}, 4)
    >>> [(row.kind, str(row.frequency), int(row.bytes_per_step)) for row in rows]
    [('all_reduce', '1/10', 18)]
    """
    start = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)  # noqa: E731
    gradients = jax.tree.map(lambda p: jax.ShapeDtypeStruct((count, *p.shape), p.dtype), params)
    return list(ledger.cost(update_program(update, start, gradients, simulated(count)), gradients, steps=steps).rows)


def per_worker(layout: State) -> list[str]:
    """The paths of the leaves of the state that vary over workers.

    >>> per_worker(State(False, {'w': True, 'b': False}, (), False, False))
    ['params/w']
    """
    parts = {name: getattr(layout, name) for name in ('params', 'opt_state', 'objective', 'model')}
    return [path_text(path) for path, varies in jax.tree_util.tree_flatten_with_path(parts)[0] if varies]


def unsharded(program: Program[State]) -> list[str]:
    """The paths of parameters that no axis inside a worker shards, if there is such an axis.

    Args:
        program: a program on a mesh.

    >>> from jaxdist import line
    >>> from jaxdist.core.workers import abstract
    >>> from jaxdist.training.step import make_step
    >>> loss, start = lambda p, b, key: ({'loss': p['w'].sum() * b['x'].sum()}, 4), {'w': jnp.ones(8), 'b': jnp.ones(3)}
    >>> make = lambda **others: make_step(
    ...     loss, lambda key: start, line.build('mean()'), {'x': jnp.ones(4)}, abstract(2, others=others)
    ... )
    >>> unsharded(make(fsdp=2)), unsharded(make())
    (['b'], [])
    """
    others = set(program.workers.mesh.axis_names) - {program.workers.axis}  # type: ignore[union-attr]
    leaves = jax.tree_util.tree_leaves_with_path(program.state.params)
    return [path_text(path) for path, x in leaves if others and not others & set(x.sharding.spec)]


def sent_each_step(rows: list[ledger.Row], axis: str) -> Fraction | None:
    """The bytes that one worker sends over an axis on an average step; None if they depend on the data.

    >>> sent_each_step([], 'workers')
    Fraction(0, 1)
    """
    return ledger.Ledger({axis: 1}, tuple(rows), {}).sent(axis)


def seconds(training: Training, cost: Plan, machine: Machine) -> dict[str, float | None]:
    """Seconds of an average step on a machine: of matrix products, at the share of the peak that it reaches, and of
    what a device sends over each axis; None if it depends on data.

    Args:
        training: the experiment.
        cost: its plan.
        machine: the machine.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.planner.machines import MACHINES
    >>> from jaxdist.training.experiment import Experiment, Mesh
    >>> from jaxdist.training.train import prepare
    >>> small = Experiment(model=Perceptron(hidden=(4,)), data=Digits(), mesh=Mesh(workers=2), batch=8)
    >>> training = prepare(small)
    >>> sorted(seconds(training, plan(training), MACHINES['v5e']))
    ['products', 'workers']
    """
    mesh, batch = training.experiment.mesh, first_batch(training)
    layout = Layout(**{axis: getattr(mesh, axis) for axis in AXES})
    # In the trace a device has its part of all axes but those that are the compiler's.
    products = flops(training.program.on_mesh().run, training.program.state, batch) / mesh.model
    speeds = links(machine, layout)
    return {'products': products / (machine.flops * machine.reached), **cost.ledger.seconds(speeds)}


def _schedule(training: Training) -> str:
    """The pipeline's schedule in words, and a picture of it."""
    mesh, how = training.experiment.mesh, training.experiment.pipeline
    chunks = training.model.parts.chunks if training.model.parts else 1
    if mesh.stage == 1:
        return ''
    plan = Schedule(mesh.stage, how.microbatches, how.schedule, chunks)
    waits = f'{float(plan.bubble):.0%} of the time is waiting'
    each = f', {chunks} chunks' if chunks > 1 else ''
    words = f'{how.schedule}, {how.microbatches} microbatches{each}: {waits}, {plan.held} inputs are kept'
    return f'{words}\n{plan.picture()}'


def _graphs(training: Training) -> dict[str, str]:
    """Messages a round, and the spectral gap, of the graphs of the line."""
    workers = training.workers
    found = {}
    for name, graph in line.arguments_of(training.experiment.update, 'graph', workers.axis):
        chosen = graph or ring()
        rounds = chosen.rounds(workers.count)
        facts = [f'{chosen.name} of {workers.count} workers', message_text(rounds), gap_text(rounds)]
        found[name] = ', '.join(filter(None, facts))
    return found


def _mesh_ledger(training: Training, batch: Any, stored: dict[str, Any]) -> ledger.Ledger:
    program, mesh, steps = training.program, training.workers.mesh, training.experiment.steps
    first = lambda: first_state(training)  # noqa: E731
    return ledger.measure(program.step, program.state, batch, mesh, steps, initial=first, stored=stored)


def _simulated_ledger(training: Training, stored: dict[str, Any]) -> ledger.Ledger:
    memory = {name: ledger.memory_bytes(tree) for name, tree in stored.items()}
    whole = shapes(training.put(first_batch(training)))
    analysis = training.program.step.lower(training.program.state, whole).compile().memory_analysis()
    if analysis is not None:
        memory['temporaries of all workers'] = analysis.temp_size_in_bytes
    return ledger.Ledger({training.workers.axis: training.workers.count}, tuple(traffic(training)), memory)
