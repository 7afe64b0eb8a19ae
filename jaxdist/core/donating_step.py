"""A training step that says what is wrong where a state is given to it twice."""

from typing import Any

import jax

from jaxdist.core.errors import InputError


class DonatingStep:
    """A jitted step whose state's buffers are donated, with an error that says so where a state is given twice.

    `lower`, `trace` and the like are those of the jitted function.

    Args:
        jitted: `(state, batch) -> (state, out)`, jitted.

    >>> import jax.numpy as jnp
    >>> step = DonatingStep(jax.jit(lambda state, batch: (state + batch, None), donate_argnums=0))
    >>> step(jnp.ones(2), 1.0)[0].tolist()
    [2.0, 2.0]
    """

    def __init__(self, jitted: Any) -> None:
        self.__wrapped__ = jitted

    def __call__(self, state: Any, batch: Any) -> Any:
        """The next state, and what the step returns beside it.

        Raises:
            InputError: the state was given to a step before.
        """
        # Without this check JAX raises an error about buffers, and on a mesh of emulated devices the process ends with
        # a SIGSEGV. All leaves are donated at once, so it suffices to ask one.
        if next((x.is_deleted() for x in jax.tree.leaves(state) if _is_concrete(x)), False):
            raise InputError(
                'this state was given to step before, which puts the next state in its place: go on from the state '
                'that step returned, or give a copy, jax.tree.map(jnp.copy, state), if both are needed'
            )
        return self.__wrapped__(state, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def _is_concrete(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
