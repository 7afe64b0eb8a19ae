"""The objective that an experiment asks for: its loss alone, or a Lagrangian."""

from dataclasses import replace

from jaxdist import line
from jaxdist.constraints.constraint import Constraint
from jaxdist.constraints.objective import LagrangianObjective
from jaxdist.core.errors import InputError
from jaxdist.core.types import Model
from jaxdist.training.experiment import Experiment


def build_objective(experiment: Experiment, model: Model) -> LagrangianObjective | None:
    """The experiment's objective for a model; None where it is the model's loss alone.

    Raises:
        LineError: a mistake in a constraint, the dual line or the penalty.

    >>> from jaxdist.training.experiment import ConstraintSettings
    >>> small = Experiment(constraints=ConstraintSettings(hold=('small: squared_norm(bound=1.0)',)))
    >>> build_objective(small, None).names
    ('small',)
    """
    asked = experiment.constraints
    if not asked.hold:
        return None
    built = [(line.check_constraint(text)[0], line.build_constraint(text, model)) for text in asked.hold]
    for name, constraint in built:
        if not isinstance(constraint, Constraint):
            raise InputError(f'{name} must give a Constraint, of inequality(...) or equality(...), not {constraint!r}')
    constraints = tuple(replace(constraint, name=name) for name, constraint in built)
    penalty = line.build_value(asked.penalty) if isinstance(asked.penalty, str) else asked.penalty
    return LagrangianObjective(constraints, line.build_dual(asked.dual), penalty, asked.order, asked.every)


def check_objective(experiment: Experiment) -> None:
    """Refuses what is wrong with an experiment's objective before there is a model.

    Raises:
        LineError: a mistake in a constraint, the dual line or the penalty.
        InputError: two constraints have one name.

    >>> check_objective(Experiment())
    """
    asked = experiment.constraints
    line.build_dual(asked.dual)
    if isinstance(asked.penalty, str):
        line.build_value(asked.penalty)
    names = [line.check_constraint(text)[0] for text in asked.hold]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f'two constraints are called {twice}: name them, as in {twice}_2: {twice}(...)')


def describe_objective(experiment: Experiment) -> dict[str, str]:
    """The objective in words: label -> text; nothing for a loss alone.

    >>> from jaxdist.training.experiment import ConstraintSettings
    >>> describe_objective(Experiment(constraints=ConstraintSettings(hold=('squared_norm(bound=1.0)',))))
    {'holds': 'squared_norm(bound=1.0)', 'multipliers': 'sgd(0.01), alternating, every=1, penalty=0.0'}
    """
    asked = experiment.constraints
    if not asked.hold:
        return {}
    how = f'{asked.dual}, {asked.order}, every={asked.every}, penalty={asked.penalty}'
    return {'holds': ', '.join(asked.hold), 'multipliers': how}


def objective_lines(experiment: Experiment) -> list[str]:
    """The calls of an experiment's objective, as lines.

    >>> objective_lines(Experiment())
    ['sgd(0.01)', '0.0']
    """
    asked = experiment.constraints
    return [asked.dual, str(asked.penalty), *(line.check_constraint(text)[1] for text in asked.hold)]
