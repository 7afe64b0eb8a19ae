"""Former names of version 0.1.0 still work, with a DeprecationWarning at the line that uses them."""

import importlib
import types
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import pytest
from step_fixtures import RATE, batches, init, loss

import jaxdist
from jaxdist import constraints, laws
from jaxdist._former_names import ALGORITHM_ARGUMENTS, DUAL_ARGUMENTS, LAWS, MOVED, STATE_PROPERTIES
from jaxdist.core import registry
from jaxdist.core.guard import StepGuard
from jaxdist.core.objective import LossObjective
from jaxdist.core.protocol import diverges, diverging_states, sharded_fields
from jaxdist.training.step import State, make_step


def former_attribute(module: types.ModuleType, name: str) -> Any:
    """The attribute, with the warning that it must raise, which must point to this file."""
    with pytest.warns(DeprecationWarning, match=rf'{name}\b.* now$') as warnings:
        value = getattr(module, name)
    assert {warning.filename for warning in warnings} == {__file__}
    return value


def present_attribute(former: str, name: str) -> Any:
    """The attribute `name` at the present place of a former module."""
    modules = [importlib.import_module(module) for module in MOVED[former].modules]
    return next(getattr(module, name) for module in modules if hasattr(module, name))


@pytest.mark.parametrize('former', MOVED)
def test_a_former_module_has_the_present_names(former: str) -> None:
    module, present = importlib.import_module(former), importlib.import_module(MOVED[former].modules[0])
    own = {name: x for name, x in vars(present).items() if getattr(x, '__module__', '').startswith(present.__name__)}
    name = next(name for name in own if not name.startswith('_'))
    assert former_attribute(module, name) is getattr(present, name)


RENAMED = [(former, name) for former, moved in MOVED.items() for name in moved.names]


@pytest.mark.parametrize('former, name', RENAMED)
def test_a_renamed_name_of_a_former_module(former: str, name: str) -> None:
    present = present_attribute(former, MOVED[former].names[name])
    assert former_attribute(importlib.import_module(former), name) is present


def test_a_name_that_a_former_module_never_had() -> None:
    with pytest.raises(AttributeError, match=r"jaxdist.wire, now .*collectives and .*bits, has no 'nothing'"):
        importlib.import_module('jaxdist.wire').nothing  # noqa: B018 (the access must fail)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('jaxdist.nothing')


@pytest.mark.parametrize('name', LAWS)
def test_a_former_name_of_a_law(name: str) -> None:
    assert former_attribute(laws, name) is getattr(laws, LAWS[name])


def test_a_former_name_of_a_constraint() -> None:
    assert former_attribute(constraints, 'DualAscent') is constraints.LagrangianObjective


def test_other_names_are_no_attributes() -> None:
    for module in (laws, constraints, jaxdist):
        with pytest.raises(AttributeError, match='nothing'):
            module.nothing  # noqa: B018 (the access must fail)


def half() -> optax.GradientTransformation:
    return optax.scale(0.5)


@pytest.mark.parametrize(
    'decorator, arguments, value', [('algorithm', ALGORITHM_ARGUMENTS, 'updates'), ('dual', DUAL_ARGUMENTS, True)]
)
def test_former_arguments_of_the_registry(decorator: str, arguments: dict[str, str], value: Any) -> None:
    ((former, present),) = arguments.items()
    register = getattr(registry, decorator)
    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        with pytest.warns(DeprecationWarning, match=f"'{former}' is called '{present}' now"):
            register(paper='none', examples={'half()': ()}, **{former: value})(half)
        entry = getattr(registry, f'{decorator}s')()['half']
        assert getattr(entry, present) == value
        with pytest.raises(TypeError, match='give one of them'):
            register(paper='none', examples={'half()': ()}, **{former: value, present: value})


def test_former_arguments_of_make_step() -> None:
    (batch,) = batches(1)
    update = optax.chain(jaxdist.mean(), optax.sgd(RATE))
    with pytest.warns(DeprecationWarning, match='make_step') as warnings:
        make_step(loss, init, update, batch, where=jaxdist.simulated(2), constraints=LossObjective())
    assert [str(warning.message) for warning in warnings] == [
        "make_step: the argument 'where' is called 'workers' now",
        "make_step: the argument 'constraints' is called 'objective' now",
    ]


def test_the_former_name_of_the_objectives_state() -> None:
    state = State(jnp.int32(0), {}, (), jax.random.key(0), jnp.int32(0), objective='multipliers')
    with pytest.warns(DeprecationWarning, match=r'State.duals is called objective now'):
        assert state.duals == 'multipliers'


class Stored(NamedTuple):
    moments: Any = 0.0


def test_former_properties_of_a_state() -> None:
    """The value of the former property counts, whichever it is."""
    former = type('Former', (Stored,), {STATE_PROPERTIES['workers_diverge']: True})()
    with pytest.warns(DeprecationWarning, match="is called 'workers_diverge' now"):
        assert diverges(former)
    with pytest.warns(DeprecationWarning, match="is called 'workers_diverge' now"):
        assert diverging_states((former, {})) == [former]
    former = type('Former', (Stored,), {STATE_PROPERTIES['workers_diverge']: False})()
    with pytest.warns(DeprecationWarning, match="is called 'workers_diverge' now"):
        assert not diverges(former)
    former = type('Former', (Stored,), {STATE_PROPERTIES['sharded_fields']: ('moments',)})()
    with pytest.warns(DeprecationWarning, match="is called 'sharded_fields' now"):
        assert sharded_fields(former) == ('moments',)


def test_present_properties_of_a_state_do_not_warn() -> None:
    present = type('Present', (Stored,), {'workers_diverge': True, 'sharded_fields': ('moments',)})()
    assert (diverges(present), sharded_fields(present)) == (True, ('moments',))
    assert (diverges(Stored()), sharded_fields(Stored())) == (False, ())


@pytest.mark.parametrize('ok', [False, True])
def test_the_guard_still_passes_idle_beside_rejected(ok: bool) -> None:
    """Only where workers diverge and the guard is active."""

    def extra_of(diverge: bool, active: bool) -> dict[str, bool]:
        names: list[str] = []

        def update(grads: Any, params: Any, state: Any, **extra: Any) -> Any:
            names.extend(extra)
            return jnp.stack([extra[name] for name in extra]) if extra else params, state

        guard = StepGuard((), diverge, active, False, 'workers')
        _, values, _ = guard.apply(jnp.bool(ok), update, jnp.zeros(2), jnp.zeros(2, bool), ())
        return dict(zip(names, map(bool, values), strict=False))

    assert extra_of(diverge=True, active=True) == {'rejected': not ok, 'idle': not ok}
    assert extra_of(diverge=True, active=False) == extra_of(diverge=False, active=True) == {}
