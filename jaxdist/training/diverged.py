"""When a run has diverged: from the records of its losses."""

import math
from typing import Any

from jaxdist.core.errors import JaxdistError
from jaxdist.training.experiment import Experiment


class Diverged(JaxdistError, RuntimeError):  # noqa: N818 (an outcome of training, not a fault of the program)
    """Training has diverged: the loss is no longer finite, or has spikes of which the run does not recover."""

    exit_code = 1


def last_finite(record: dict[str, Any], finite: int, experiment: Experiment) -> int:
    """The last step with a finite loss that no worker skipped.

    Args:
        record: a record of training.
        finite: the last such step before.
        experiment: the run's experiment.

    Raises:
        Diverged: two records in a row have none; or one, if the guard is off.

    >>> last_finite({'step': 20, 'loss': 1.5, 'skipped': 0.0}, 10, Experiment())
    20
    """
    if math.isfinite(record['loss']) and record['skipped'] < 1:
        return int(record['step'])
    if experiment.guard and record['step'] - finite < 2 * experiment.log_every:
        return finite
    guard = 'the guard skipped these steps, and none since was finite' if experiment.guard else 'the guard is off'
    workers = record.get('not_finite')
    where = f', on worker{"s" if len(workers) > 1 else ""} {", ".join(map(str, workers))}' if workers else ''
    raise _diverged(*_not_finite(record), record['step'], finite, guard + where)


def check_held_out(record: dict[str, Any], finite: int) -> None:
    """Checks the held-out loss of a record.

    Args:
        record: a record of an evaluation.
        finite: the last step with a finite loss.

    Raises:
        Diverged: it is not finite.

    >>> check_held_out({'step': 20, 'held_out': {'loss': 1.5}}, 20)
    """
    # The guard checks gradients only, and parameters that have diverged can still have a finite one.
    loss = record['held_out']['loss']
    if not math.isfinite(loss):
        raise _diverged('held-out loss', loss, record['step'], finite, 'the parameters themselves have diverged')


def _not_finite(record: dict[str, Any]) -> tuple[str, float]:
    """The name and the value of an entry of the record that is not finite; if all are, the gradient was not."""
    groups = {group: each for group, each in record.items() if isinstance(each, dict) and group != 'straggler'}
    values = {
        f'value of {name}, of the {group},': of['value'] for group, each in groups.items() for name, of in each.items()
    }
    of = f' of the loss, or of {", ".join(name for each in groups.values() for name in each)}' if values else ''
    entries = {'loss': record['loss'], **values, f'gradient{of}': math.nan}
    return next((name, x) for name, x in entries.items() if not math.isfinite(x))


def _diverged(name: str, value: float, step: int, finite: int, reason: str) -> Diverged:
    last = f'the training loss was last finite at step {finite}' if finite else 'it was never finite'
    return Diverged(
        f'the {name} is {value} at step {step}; {last}; {reason}. Try a smaller learning rate or '
        'clip_by_global_norm(1.0) in the line, and check the data'
    )
