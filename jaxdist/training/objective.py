"""Builds the objective of an experiment from its settings: the model's loss, or a Lagrangian."""

from dataclasses import replace

from jaxdist import line
from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.core.errors import InputError
from jaxdist.core.types import Model
from jaxdist.training.experiment import Experiment


def build_objective(experiment: Experiment, model: Model) -> LagrangianObjective | None:
    """The experiment's objective for a model; None if it is the model's loss.

    Raises:
        LineError: a mistake in the text of a constraint, the dual line or the penalty.
        InputError: a registered constraint that returns something else.

    >>> from jaxdist.training.experiment import ConstraintSettings
    >>> small = Experiment(constraints=ConstraintSettings(hold=('small: squared_norm(bound=1.0)',)))
    >>> build_objective(small, None).names
    ('small',)
    """
    settings = experiment.constraints
    if not settings.hold:
        return None
    built = [(line.check_constraint(text)[0], line.build_constraint(text, model)) for text in settings.hold]
    for name, constraint in built:
        if not isinstance(constraint, Constraint):
            raise InputError(
                f'{name} must return a Constraint, from inequality(...) or equality(...), not {constraint!r}'
            )
    constraints = tuple(replace(constraint, name=name) for name, constraint in built)
    penalty = line.build_value(settings.penalty) if isinstance(settings.penalty, str) else settings.penalty
    return LagrangianObjective(constraints, line.build_dual(settings.dual), penalty, settings.order, settings.every)


def check_objective(experiment: Experiment) -> None:
    """Checks an experiment's objective as far as is possible without a model.

    Raises:
        LineError: a mistake in the text of a constraint, the dual line or the penalty.
        InputError: two constraints have the same name.

    >>> check_objective(Experiment())
    """
    settings = experiment.constraints
    line.build_dual(settings.dual)
    if isinstance(settings.penalty, str):
        line.build_value(settings.penalty)
    names = [line.check_constraint(text)[0] for text in settings.hold]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f'two constraints are called {twice}: name them, as in {twice}_2: {twice}(...)')


def describe_objective(experiment: Experiment) -> dict[str, str]:
    """The objective's description, label -> text; empty for a plain loss.

    >>> from jaxdist.training.experiment import ConstraintSettings
    >>> describe_objective(Experiment(constraints=ConstraintSettings(hold=('squared_norm(bound=1.0)',))))
    {'holds': 'squared_norm: squared_norm(bound=1.0)', 'multipliers': 'sgd(0.01), alternating, every=1, penalty=0.0'}
    """
    settings = experiment.constraints
    if not settings.hold:
        return {}
    ascent = f'{settings.dual}, {settings.order}, every={settings.every}, penalty={settings.penalty}'
    constraints = [': '.join(line.check_constraint(text)) for text in settings.hold]
    return {'holds': ', '.join(constraints), 'multipliers': ascent}


def objective_lines(experiment: Experiment) -> list[str]:
    """The texts of an experiment's objective: its dual line, its penalty and the calls of its constraints.

    >>> objective_lines(Experiment())
    ['sgd(0.01)', '0.0']
    """
    settings = experiment.constraints
    return [settings.dual, str(settings.penalty), *(line.check_constraint(text)[1] for text in settings.hold)]
