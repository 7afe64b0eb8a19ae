"""What workers settle around an update: who takes the step, and how much each one's gradient counts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.core import collectives
from jaxdist.core.gradient import inverse
from jaxdist.core.types import Params


class Accord(NamedTuple):
    """How workers agree, or that they need not.

    Attributes:
        layout: which leaves of the state, a NamedTuple with `params` and `opt_state`, differ between workers.
        alone: whether workers go their own ways, each deciding for what is its own; else all decide together.
        guard: whether a gradient that is not finite is left out.
        uneven: whether workers' counts of examples may differ.
        axis: the worker axis.
    """

    layout: Any
    alone: bool
    guard: bool
    uneven: bool
    axis: str

    def before(self, grads: Params, count: jax.Array, also: Any = ()) -> tuple[jax.Array, Params]:
        """Whether this worker takes the step, and the gradient that it takes it with; `also` has to be finite too."""
        finite = is_finite((grads, also))
        if self.alone:
            # The others may meet with this worker at this very step: nothing that is not finite may reach them.
            ok = finite if self.guard else jnp.bool(True)
            return ok, jax.tree.map(lambda g: jnp.where(ok, g, 0), grads) if self.guard else grads
        told = {'bad': 1 - finite.astype(count.dtype)} if self.guard else {}
        told |= {'count': count} if self.uneven else {}
        everyone = collectives.total(told, self.axis) if told else {}
        if self.uneven:
            share = count * collectives.size(self.axis) * inverse(everyone['count'])
            grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
        return everyone['bad'] == 0 if self.guard else jnp.bool(True), grads

    def extras(self, ok: jax.Array) -> dict[str, jax.Array]:
        """What the update is told: with `idle`, a part that works locally leaves out this worker's own movement."""
        return {'idle': ~ok} if self.alone and self.guard else {}

    def after(self, ok: jax.Array, new: Any, old: Any) -> Any:
        """The new state or, where the step is not taken, the old one bit for bit.

        Of workers on their own, what is kept is their optimisers' state. Parameters and the state of what works locally
        are that part's to settle, for the worker may just have met the others.
        """
        if not self.guard:
            return new
        if not self.alone:
            return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)

        def keep(varies: Any, new: Any, old: Any) -> Any:
            return jnp.where(ok, new, old) if varies is True else new

        return new._replace(
            opt_state=jax.tree.map(keep, self.layout.opt_state, new.opt_state, old.opt_state, is_leaf=_says_so)
        )


def is_finite(tree: Any) -> jax.Array:
    """Whether every number of a pytree is finite: one bool.

    >>> is_finite({'a': jnp.ones(2), 'b': jnp.array([jnp.inf]), 'steps': jnp.int32(3)})
    Array(False, dtype=bool)
    """
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]).all()


def local_parts(opt_state: Any) -> list[Any]:
    """The parts of an update's state whose algorithm lets workers differ on purpose: `works_locally` of them is true.

    >>> local_parts(({'mu': 0.0},))
    []
    """
    return [node for node in jax.tree.leaves(opt_state, is_leaf=_says_so) if _says_so(node)]


def _says_so(node: Any) -> bool:
    return bool(getattr(node, 'works_locally', False))
