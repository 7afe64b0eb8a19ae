"""One run of a comparison on some machine: what an engine calls there, in a new process."""

import platform
import signal
import traceback
from pathlib import Path
from typing import Any

from jaxdist.cli import options
from jaxdist.cli.compilation_cache import keep_programs
from jaxdist.cli.stopping import SIGNALS
from jaxdist.cluster.exits import EXITS, FAILED
from jaxdist.cluster.tasks import Outcome
from jaxdist.core.errors import JaxdistError
from jaxdist.training.compare import run_one
from jaxdist.training.sweep_task import enter, experiment_of


def run_task(data: dict[str, Any]) -> dict[str, Any]:
    """Trains the run, or goes on with it; returns its `Outcome`, which is not raised: exceptions would be pickled."""
    try:
        outcome = _train(data)
    except JaxdistError as error:
        again = error.exit_code in EXITS and EXITS[error.exit_code].retry
        outcome = Outcome('lost' if again else 'failed', f'{error} (on {platform.node()})', error.exit_code)
    except Exception:  # a mistake of ours
        outcome = Outcome('failed', traceback.format_exc(), FAILED)
    return outcome._asdict()


def _train(data: dict[str, Any]) -> Outcome:
    asked: list[int] = []
    for number in SIGNALS:  # a launcher may send one more than once, so a second one does not end the process
        signal.signal(number, lambda number, _: asked.append(number))
    enter(data)
    experiment = experiment_of(data)
    options.start(experiment)
    keep_programs(data['compilation_cache'])
    outcome = Outcome('done')
    for event in run_one(data['name'], experiment, Path(data['folder']), data['command'], lambda: bool(asked)):
        if event.kind == 'diverged':
            outcome = Outcome('diverged', event.value)
        elif event.kind == 'stopped':
            outcome = Outcome('stopped')
    return outcome
