"""What algorithms declare: mistakes that one makes in an algorithm of one's own break a law, or are refused."""

from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdist import laws
from jaxdist.core import collectives, registry
from jaxdist.laws import Law, Trial, check_entry, check_law

SHAPES = {'w': (5,), 'b': ()}


class LocalState(NamedTuple):
    """The steps taken; workers diverge between rounds."""

    step: jax.Array

    @property
    def workers_diverge(self) -> bool:
        return True


class SilentState(NamedTuple):
    """The same without its declaration."""

    step: jax.Array


def local(state_type: Any = LocalState, heeds: bool = True, count: float | None = None) -> Any:
    """Local SGD with a round every two steps, with or without its mistakes."""

    def init(params: Any) -> Any:
        del params
        return state_type(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, *, rejected: Any = False, **_: Any) -> Any:
        if heeds:
            updates = jax.tree.map(lambda u: jnp.where(rejected, 0, u), updates)
        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        mean = collectives.pmean(moved)
        if count is not None:
            mean = jax.tree.map(lambda x: x / count, collectives.psum(moved))
        due = (state.step + 1) % 2 == 0
        after = jax.tree.map(lambda m, x: jnp.where(due, m, x), mean, moved)
        return collectives.pvary(jax.tree.map(lambda a, p: a - p, after, params)), state_type(state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def problems(update: Any, *claims: Law, workers: int = 4, syncs: Any = 'parameters') -> list[str]:
    trial = Trial(update, workers, SHAPES)
    results = [check_law(law, trial) for law in (laws.declares(syncs), laws.rejects(), *claims)]
    return [result.law for result in results if result.problem]


def test_a_right_algorithm_keeps_them() -> None:
    assert problems(local()) == []
    assert problems(optax.scale(2.0), syncs='') == []


@pytest.mark.parametrize(
    'update, syncs, broken',
    [
        (local(heeds=False), 'parameters', ['a rejected step has no effect']),
        (local(SilentState), 'parameters', ["declares syncs='parameters'"]),
        (local(), '', ["declares syncs=''"]),
        (local(), 'updates', ["declares syncs='updates'"]),
        (optax.stateless(lambda u, p: collectives.pmean(u)), '', ["declares syncs=''"]),
        (optax.scale(2.0), 'updates', ["declares syncs='updates'"]),
    ],
)
def test_a_mistake_breaks_its_law(update: Any, syncs: Any, broken: list[str]) -> None:
    assert problems(update, syncs=syncs) == broken


def checked(make: Any, claims: Any, syncs: Any = 'parameters', workers: int = 4) -> list[str]:
    """The laws that are broken, of an algorithm `mine`."""

    def mine() -> Any:
        return make()

    with mock.patch.dict('jaxdist.core.registry._ENTRIES'):
        registry.algorithm(paper='none', examples={'mine()': claims}, syncs=syncs)(mine)
        (results,) = check_entry(registry.algorithms()['mine'], workers=workers).values()
    return [result.law for result in results if result.problem]


@pytest.mark.slow
def test_a_number_of_workers_that_is_written_down_is_found() -> None:
    """With four workers all laws hold."""
    claims = (laws.conserves_mean(lambda state: dict.fromkeys(laws.trial.SHAPES)),)
    assert checked(local, claims) == []
    assert checked(lambda: local(count=4.0), claims) == [f'{claims[0].name}, 3 workers']


@pytest.mark.slow
def test_what_is_registered_is_checked_too() -> None:
    assert checked(lambda: optax.stateless(lambda u, p: collectives.pmean(u)), (), syncs='') == ["declares syncs=''"]
    assert checked(lambda: optax.stateless(lambda u, p: collectives.pmean(u)), (), syncs='updates') == []


@pytest.mark.parametrize(
    'claims, problem',
    [
        (laws.agrees(), r"the claims of 'mine\(\)' are one law; write \(law,\) with a comma"),
        (laws.agrees, r'must be a tuple of laws, not a function'),
        ((laws.agrees,), r"agrees among the claims of 'mine\(\)' is no law: call it, as in laws.agrees\(\)"),
        ((laws.Law,), 'Law among the claims of .* is no law'),
        (('exact mean',), "'exact mean' among the claims of .* is no law"),
    ],
)
def test_claims_that_are_no_laws_are_refused(claims: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        checked(local, claims)
