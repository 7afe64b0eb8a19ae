"""`jaxdist plan`: shows the bytes that an experiment sends and stores, before it runs."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from jaxdist.cli import options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.progress import facts_text, mesh_text
from jaxdist.cli.search import SearchOptions, run
from jaxdist.cli.terminal import Terminal
from jaxdist.cluster.options import Cluster
from jaxdist.planner.machines import machine
from jaxdist.report import bytes_text, seconds_text
from jaxdist.report.gantt import gantt_plot
from jaxdist.training.experiment import Experiment, ExperimentError
from jaxdist.training.plan import Plan, plan, seconds
from jaxdist.training.train import Training, prepare

DRAWN = 40
"""Steps that a picture of simulated time has."""


@dataclass(frozen=True)
class PlanOptions:
    """Shows the bytes that an experiment sends and stores, before it runs.

    The config is a Python file, a run's folder or an experiment.json; every field can be changed by an option.
    """

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    set: options.Settings = ()
    """Change one keyword inside the update line, such as adamw.learning_rate=1e-3; may be given more than once."""
    script: options.Scripts = ()
    json: options.Flag = False
    """Print the plan as JSON."""
    gantt: Annotated[Path | None, tyro.conf.arg(metavar='FILE', help_behavior_hint='')] = None
    """File for a picture of when workers compute in the first 40 steps, by the clock: .png, .svg or .pdf."""
    layouts: Annotated[SearchOptions, tyro.conf.arg(name='')] = field(default_factory=SearchOptions)
    compilation_cache: options.CompilationCache = ''
    cluster: Cluster = field(default_factory=Cluster)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    path, rest = options.config_path(arguments, 'plan')
    default = PlanOptions(options.load_config(path, options.scripts(rest), 'plan'))
    chosen = options.parse(default, rest, f'plan {path or "CONFIG"}')
    experiment = options.settled(chosen.experiment, chosen.set)
    if chosen.layouts.search:
        words = [str(path), *(word for script in chosen.script for word in ('--script', script))]
        run(chosen.layouts, experiment, shlex.join(words), chosen.json)
        return
    options.start(experiment, cluster=chosen.cluster)
    kept = keep_programs(chosen.compilation_cache)
    training = prepare(experiment)
    cost = plan(training)
    on = machine(chosen.layouts.machine) if chosen.layouts.machine else None
    times = seconds(training, cost, on) if on else {}
    if chosen.gantt is not None:
        draw_gantt(training, cost, chosen.gantt)
    if chosen.json:
        print(json.dumps({**cost.to_json(), **({'seconds': times} if on else {})}, indent=2))
        return
    show(cost, experiment, kept)
    if on:
        each = ', '.join(f'{name} {"unknown" if s is None else seconds_text(s)}' for name, s in times.items())
        print(f'on {on.name}, {on.reached:.0%} of the peak reached, without launches: {each}')


def show(cost: Plan, experiment: Experiment, kept: str) -> None:
    """Prints a plan, and the line on the compilation cache."""
    console = Terminal()
    print_line = lambda text: console.print(escape(text))  # noqa: E731
    print_line(f'update      {cost.update}')
    print_line(f'devices     {mesh_text(experiment.mesh)}')
    print_line(f'parameters  {cost.parameters:,}')
    print_line(f'data        {facts_text(cost.data)}')
    for label, text in cost.objective.items():
        print_line(f'{label:<11} {text}')
    for name, text in cost.graphs.items():
        print_line(f'{name:<11} {text}')
    print_line(f'per worker  {_listed(cost.per_worker) or "nothing: the whole state is replicated"}')
    if cost.unsharded:
        print_line(f'unsharded   {_listed(cost.unsharded)}: whole on every device of a worker')
    if cost.schedule:
        words, _, picture = cost.schedule.partition('\n')
        print_line(f'pipeline    {words}\n{picture}')
    header, *rows = cost.ledger.table()
    sent = Table(*header, title='sent by one device' + (' (on a mesh)' if cost.simulated else ''), title_justify='left')
    for row in rows:
        sent.add_row(*map(escape, row))
    console.print(sent)
    memory = Table('memory per device', 'bytes', title_justify='left')
    for name, size in cost.ledger.memory.items():
        memory.add_row(name, bytes_text(size))
    console.print(memory)
    each_step = cost.ledger.sent('workers')
    if each_step is not None:
        total = bytes_text(float(each_step * experiment.steps))
        sender = 'worker' if len(experiment.mesh.axes) == 1 else 'device'
        print_line(f'in {experiment.steps} steps each {sender} sends {total} to other workers')
    if cost.times is not None:
        print_line(f'clock       {clock_text(cost.times.summary())}')
    if cost.arrivals:
        print_line(f'arrivals    {arrivals_text(cost.arrivals)}')
    if kept:
        print_line(kept)


def clock_text(clock: Mapping[str, Any]) -> str:
    """What a plan says of simulated time; `clock` is as `Times.summary()`.

    >>> clock_text({'seconds_per_step': 5.0, 'idle': 0.5, 'waits': 0.1, 'waited_for': {15: 0.75, 3: 0.25}})
    '5.00 s a step, 50% idle; all wait in 10% of steps, for worker 15 in 75% of them, for 3 in 25%'
    """
    idle = f'{seconds_text(clock["seconds_per_step"])} a step, {clock["idle"]:.0%} idle'
    if not clock['waited_for']:
        return f'{idle}; no step in which all wait'
    (first, share), *others = list(clock['waited_for'].items())[:3]
    rest = ''.join(f', for {worker} in {share:.0%}' for worker, share in others)
    return f'{idle}; all wait in {clock["waits"]:.0%} of steps, for worker {first} in {share:.0%} of them{rest}'


def arrivals_text(arrivals: Mapping[str, Any]) -> str:
    """What a plan says of arrivals; `arrivals` is as `ArrivalTable.summary()`.

    >>> known = {'staleness': {'mean': 6.5, 'most': 9}, 'discarded': 0.0, 'from_worker': {'least': 0.1, 'most': 0.2}}
    >>> arrivals_text({'seconds_per_step': 1.0, 'useful': 0.95, **known})
    '1.00 s a step, 95% of it useful; staleness 6.50, 9 at most; a worker sends 10% to 20% of them; 0% discarded'
    """
    stale, share = arrivals['staleness'], arrivals['from_worker']
    return (
        f'{seconds_text(arrivals["seconds_per_step"])} a step, {arrivals["useful"]:.0%} of it useful; staleness '
        f'{stale["mean"]:.2f}, {stale["most"]} at most; a worker sends {share["least"]:.0%} to {share["most"]:.0%} of '
        f'them; {arrivals["discarded"]:.0%} discarded'
    )


def draw_gantt(training: Training, cost: Plan, path: Path) -> None:
    """Draws when workers compute.

    Raises:
        ExperimentError: there is no clock, or the file cannot be written.
    """
    if training.arrivals is not None:
        bars = training.arrivals.bars(min(DRAWN, training.experiment.steps))
    elif cost.times is not None:
        bars = cost.times.begins[:-1][:DRAWN], cost.times.compute[:DRAWN]
    else:
        raise ExperimentError(
            "--gantt draws simulated time: give a clock, as in --clock.compute 'lognormal(mean=0.05)'"
        )
    try:
        gantt_plot(*bars, path)
    except OSError as error:
        raise ExperimentError(f'--gantt {path}: {error.strerror}') from None


def _listed(paths: list[str]) -> str:
    """The first two of some paths, and how many more there are."""
    return ', '.join(paths[:2]) + (f' and {len(paths) - 2} more' if len(paths) > 2 else '')
