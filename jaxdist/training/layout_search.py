"""The search for a layout: every way to divide an experiment over many devices, estimated and ranked."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import ledger, line
from jaxdist.core.errors import InputError
from jaxdist.core.model_state import variables
from jaxdist.core.program import update_program
from jaxdist.core.types import Model
from jaxdist.core.workers import simulated
from jaxdist.data import Data
from jaxdist.planner.cost import Estimate, Traffic
from jaxdist.planner.layouts import AXES
from jaxdist.planner.machines import Machine
from jaxdist.planner.search import rank
from jaxdist.planner.workload import Workload
from jaxdist.training.experiment import Experiment, Mesh, PipelineSettings, flat
from jaxdist.training.train import PRECISIONS, shapes
from jaxdist.training.workload import workload


class Search(NamedTuple):
    """What was searched, and what was found.

    Attributes:
        data: the data set.
        model: the model.
        workload: what the formulas needed of it.
        machine: the machine.
        devices: the number of devices.
        ranked: the estimates: those that fit first, by the time of a step, then the others, by memory.
    """

    data: Data
    model: Model
    workload: Workload
    machine: Machine
    devices: int
    ranked: list[Estimate]

    def of_peak(self, cost: Estimate) -> float:
        """The share of the machine's peak that the products of the model reach; those evaluated again do not count."""
        products = 3 * (self.workload.blocks * self.workload.block_flops + self.workload.edge_flops)
        return products * self.workload.batch / (self.devices * cost.step * self.machine.flops)


def search(
    experiment: Experiment, machine: Machine, devices: int, others: Sequence[str] = (), workers: int | None = None
) -> Search:
    """Every layout of an experiment over some devices of a machine, ranked by the time of a step. Nothing is compiled.

    Of each update line the bytes between workers, and the state, are those of the traced update.

    Args:
        experiment: the experiment; of its mesh nothing is used.
        machine: the machine.
        devices: the number of devices.
        others: update lines that are estimated besides the experiment's.
        workers: the number of workers; None for any.

    Raises:
        InputError: a line is wrong, there is no layout over so many devices, or the experiment has settings that are
            not estimated.

    >>> from jaxdist.data import Digits
    >>> from jaxdist.models import Perceptron
    >>> from jaxdist.planner.machines import MACHINES
    >>> small = Experiment(update='mean() | sgd(0.1)', model=Perceptron(hidden=(4,)), data=Digits(), batch=8)
    >>> found = search(small, MACHINES['cpu'], 4)
    >>> sizes = {(at.workers, at.fsdp, at.model) for at in (cost.layout for cost in found.ranked)}
    >>> sorted(sizes)
    [(1, 1, 4), (1, 2, 2), (2, 1, 2), (2, 2, 1), (4, 1, 1)]
    """
    _refuse_what_is_not_estimated(experiment)
    data = experiment.data.load()
    model = experiment.model.build(data.task)
    batch = shapes(data.batch(experiment.seed, 0, experiment.batch, 1))
    work = workload(model, batch, PRECISIONS[experiment.precision])
    params = jax.eval_shape(lambda key: variables(model.init(key))[0], jax.random.key(0))
    found = rank(work, machine, devices, _traffics(params, (experiment.update, *others), experiment.steps), workers)
    return Search(data, model, work, machine, devices, found)


def _refuse_what_is_not_estimated(experiment: Experiment) -> None:
    found = {
        'constraints': experiment.constraints.hold,
        'virtual_shards': experiment.virtual_shards,
        '--fsdp.gathers and --fsdp.scatters': experiment.fsdp.gathers or experiment.fsdp.scatters,
        '--context.attention other than ring': experiment.context.attention != 'ring',
        '--pipeline.schedule other than 1f1b': experiment.pipeline.schedule != '1f1b',
    }
    if wrong := [name for name, there in found.items() if there]:
        raise InputError(
            f'a search does not estimate {", ".join(wrong)}: search without, and then plan the layout with it'
        )


def _traffics(params: Any, lines: Sequence[str], steps: int) -> Callable[[int], list[Traffic]]:
    """What each line sends between a number of workers, and stores; one worker has the first line alone."""

    def between(workers: int) -> list[Traffic]:
        return [_traffic(params, text, workers, steps) for text in (lines if workers > 1 else lines[:1])]

    return between


def _traffic(params: Any, text: str, workers: int, steps: int) -> Traffic:
    start = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)  # noqa: E731
    gradients = jax.tree.map(lambda p: jax.ShapeDtypeStruct((workers, *p.shape), p.dtype), params)
    program = update_program(line.build(text), start, gradients, simulated(workers))
    rows = ledger.cost(program, gradients, steps=steps).rows
    # What is sent only when data say so counts as if they always did.
    sent = sum(row.bytes_when_run if row.bytes_per_step is None else row.bytes_per_step for row in rows)
    (_, state), (_, varies) = program.state, program.layout
    rows_of = jax.tree.map(lambda x, v: x.size * x.dtype.itemsize / (workers if v else 1), state, varies)
    return Traffic(text, float(sent), sum(jax.tree.leaves(rows_of)) / sum(x.size for x in jax.tree.leaves(params)))


def laid_out(experiment: Experiment, cost: Estimate) -> Experiment:
    """The experiment under a layout, and its update line.

    >>> from jaxdist.planner.layouts import Layout
    >>> cost = Estimate(Layout(workers=2, stage=4, microbatches=8), Traffic('sgd(0.1)', 0.0), {}, {}, {})
    >>> found = laid_out(Experiment(), cost)
    >>> found.update, found.mesh.stage, found.pipeline.microbatches, found.accumulate
    ('sgd(0.1)', 4, 8, 1)
    """
    at = cost.layout
    return dataclasses.replace(
        experiment,
        update=cost.traffic.name,
        mesh=Mesh(**{axis: getattr(at, axis) for axis in AXES}),
        pipeline=PipelineSettings(at.microbatches) if at.stage > 1 else experiment.pipeline,
        accumulate=1 if at.stage > 1 else at.microbatches,
        fsdp=dataclasses.replace(experiment.fsdp, regather=at.regather),
    )


def layout_options(experiment: Experiment, cost: Estimate) -> str:
    """The options of a command line that lay the experiment of a config out: all in which the two differ.

    >>> from jaxdist.planner.layouts import Layout
    >>> cost = Estimate(Layout(workers=4, stage=2, microbatches=1), Traffic('sgd(0.1)', 0.0), {}, {}, {})
    >>> layout_options(Experiment(accumulate=2, mesh=Mesh(workers=4, model=2)), cost)
    "--update 'sgd(0.1)' --mesh.stage 2 --mesh.model 1 --pipeline.microbatches 1 --accumulate 1"
    """
    before, now = flat(experiment), flat(laid_out(experiment, cost))
    changed = {name: value for name, value in now.items() if value != before[name] and name not in DEVICES}
    return ' '.join(_option(name, value) for name, value in changed.items())


def _option(name: str, value: Any) -> str:
    """The option that sets a field, or turns a flag on or off."""
    if not isinstance(value, bool):
        return f'--{name} {shlex.quote(str(value))}'
    group, dot, last = name.rpartition('.')
    return f'--{group}{dot}{last if value else f"no-{last}"}'


DEVICES = ('mesh.emulate', 'mesh.simulate')
"""How devices are emulated is not part of a layout."""
