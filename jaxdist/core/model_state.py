"""Model state: what a loss updates beside the parameters, such as running statistics, and its synchronisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.core import collectives
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import has_state
from jaxdist.core.mesh import path_text
from jaxdist.core.parameters import as_array, as_params
from jaxdist.core.types import Params, Variables


class ModelState(NamedTuple):
    """The model state of a training run.

    Attributes:
        values: what the loss gets and returns, a pytree of arrays.
        sync: the state of the transformation that synchronises it.
    """

    values: Any
    sync: Any = ()


class StateSync(NamedTuple):
    """How workers synchronise the model state: what may differ between them, of real or complex numbers.

    Integers and keys stay with each worker, and what is the same on all of them is not sent.

    Attributes:
        update: an optax transformation, which gets the changes of a step in place of updates, and the state before the
            step in place of parameters; None for the default: the mean at every step, or nothing if workers diverge.
        varies: which values the loss returns different on each worker, as bools.
        diverge: whether workers diverge.
        axis: the worker axis.
    """

    update: optax.GradientTransformation | None
    varies: Any
    diverge: bool
    axis: str

    def begin(self, values: Any) -> Any:
        """The state in training of a model with these values; () for a model without state."""
        if not has_state(values):
            return ()
        return ModelState(values, self.update.init(self._sent(values)) if self.update is not None else ())

    def after(self, before: Any, values: Any, ok: jax.Array) -> Any:
        """The model state after a step.

        Args:
            before: the state before it.
            values: this worker's values after the loss.
            ok: whether this worker applies the step. If not, it keeps its values; workers that diverge synchronise
                these with the others, for this step may be a round.
        """
        if not has_state(before):
            return before
        if self.diverge:
            # Each worker decides alone, so that even a count of batches may differ.
            ok = collectives.pvary(ok, self.axis)
            return self._synchronised(before, _chosen(ok, values, before.values))
        return _chosen(ok, self._synchronised(before, values), before)

    def _synchronised(self, before: ModelState, values: Any) -> ModelState:
        if self.update is None:
            mean = values if self.diverge else collectives.pmean(self._sent(values), self.axis)
            return before._replace(values=_merged(mean, values))
        old = self._sent(before.values)
        changes = jax.tree.map(lambda new, old: new - old, self._sent(values), old)
        changes, sync = self.update.update(collectives.pvary(changes, self.axis), before.sync, old)
        return ModelState(_merged(optax.apply_updates(old, changes), values), sync)

    def _sent(self, values: Any) -> Any:
        """The tree with None for what is not synchronised."""
        return jax.tree.map(lambda x, varies: x if varies and _is_number(x) else None, values, self.varies)


def variables(init: Any) -> tuple[Params, Any]:
    """The parameters and the values of the model state that `init` returned; () for a model without state.

    Raises:
        InputError: see `as_params`; or the state is (), or has a leaf that is no array.

    >>> variables({'w': 1.0})
    ({'w': Array(1., dtype=float32)}, ())
    """
    if not isinstance(init, Variables):
        return as_params(init), ()
    if not has_state(init.state):
        raise InputError('init returned Variables with the state (): return the parameters alone, or a dict of arrays')
    return as_params(init.params), jax.tree_util.tree_map_with_path(_as_value, init.state)


def values_of(state: Any) -> Any:
    """The values of a `ModelState`; () for a model without state.

    >>> values_of(ModelState({'count': 3})), values_of(())
    ({'count': 3}, ())
    """
    return state.values if has_state(state) else ()


def check_values(given: Any, returned: Any) -> None:
    """Checks the model state that a loss returns.

    Args:
        given: the values that it got, or their shapes.
        returned: the values that it returned, or their shapes.

    Raises:
        InputError: their structures, shapes or dtypes differ.

    >>> check_values({'mean': jnp.zeros(3)}, {'mean': jnp.zeros(4)})
    Traceback (most recent call last):
    jaxdist.InputError: the loss got the model state 'mean' as float32[3] and returned float32[4]: it must return the
    state in the form that init gives it
    """
    old, new = (
        {path_text(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (given, returned)
    )
    for name in {**old, **new}:
        a, b = (_form(each.get(name)) for each in (old, new))
        if a != b:
            raise InputError(
                f'the loss got the model state {name!r} as {a} and returned {b}: it must return the state in the form '
                'that init gives it'
            )


def shared_values(values: Any, layout: Any) -> Any:
    """One model state for evaluation: where workers differ, the mean over them, of integers the largest; pure.

    Args:
        values: the values, [W, ...] where workers differ.
        layout: which leaves differ, as bools.

    >>> shared_values({'mean': jnp.array([1.0, 3.0]), 'count': jnp.int32(5)}, {'mean': True, 'count': False})
    {'count': Array(5, dtype=int32), 'mean': Array(2., dtype=float32)}
    """
    return jax.tree.map(lambda x, varies: _shared(x) if varies else x, values, layout)


def _shared(x: jax.Array) -> jax.Array:
    if _is_number(x):
        return jnp.mean(x, 0)
    return x[0] if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.max(x, 0)


def _as_value(path: Any, leaf: Any) -> jax.Array:
    return as_array(f'the model state {path_text(path)!r}', leaf)


def _is_number(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _merged(numbers: Any, values: Any) -> Any:
    """`values` with the leaves of `numbers` in place of theirs."""
    return jax.tree.map(lambda x, own: own if x is None else x, numbers, values, is_leaf=lambda x: x is None)


def _chosen(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _form(x: Any) -> str:
    return 'nothing' if x is None else f'{x.dtype}[{",".join(map(str, x.shape))}]'
