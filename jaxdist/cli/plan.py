"""`jaxdist plan`: what an experiment will send and hold, before it runs."""

import json
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxdist.cli import options
from jaxdist.cli.progress import facts_text, mesh_text
from jaxdist.cluster.processes import Cluster
from jaxdist.report import bytes_text
from jaxdist.training.experiment import Experiment
from jaxdist.training.plan import Plan, plan
from jaxdist.training.train import prepare


@dataclass(frozen=True)
class PlanOptions:
    """Shows what an experiment will send and hold, before it runs.

    The config is a Python file, a run's folder or an experiment.json; every field can be changed by an option.
    """

    experiment: options.ExperimentFields = field(default_factory=Experiment)
    set: options.Settings = ()
    """Change one keyword inside the update line, such as adamw.learning_rate=1e-3; may be given more than once."""
    json: options.Flag = False
    """Print the plan as JSON."""
    cluster: Cluster = field(default_factory=Cluster)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    path, rest = options.config_path(arguments, 'plan')
    default = PlanOptions(options.load_config(path))
    chosen = options.parse(default, rest, f'plan {path or "CONFIG"}')
    experiment = options.settled(chosen.experiment, chosen.set)
    options.start(experiment, where=chosen.cluster)
    made = plan(prepare(experiment))
    if chosen.json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        show(made, experiment)


def show(made: Plan, experiment: Experiment) -> None:
    """Prints a plan."""
    console = Console(highlight=False, soft_wrap=True)
    say = lambda text: console.print(escape(text))  # noqa: E731
    say(f'update      {made.update}')
    say(f'devices     {mesh_text(experiment.mesh)}')
    say(f'parameters  {made.parameters:,}')
    say(f'data        {facts_text(made.data)}')
    for label, text in made.objective.items():
        say(f'{label:<11} {text}')
    own = made.per_worker
    listed = ', '.join(own[:2]) + (f' and {len(own) - 2} more' if len(own) > 2 else '')
    say(f'per worker  {listed or "nothing: all workers share the whole state"}')
    header, *rows = made.ledger.table()
    sent = Table(*header, title='sent by one device' + (' (on a mesh)' if made.simulated else ''), title_justify='left')
    for row in rows:
        sent.add_row(*map(escape, row))
    console.print(sent)
    held = Table('held by one device', 'bytes', title_justify='left')
    for name, size in made.ledger.memory.items():
        held.add_row(name, bytes_text(size))
    console.print(held)
    each_step = made.ledger.sent('workers')
    if each_step is not None:
        total = bytes_text(float(each_step * experiment.steps))
        say(f'in {experiment.steps} steps each worker sends {total} to the others')
