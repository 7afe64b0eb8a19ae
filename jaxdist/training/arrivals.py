"""Training by a table of arrivals: a scan over messages that reach a server, behind the same `init` and `step`.

A message is a worker's gradient at the version of the parameters that it has read. Links of the line before `arrive`
run at the worker, those after it at the server, which are given `staleness`, `read` and `worker` of the message that
closes the update. Nothing of this grows with the number of workers but the versions that are kept.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist.clock.arrivals import Arrival
from jaxdist.core.donating_step import DonatingStep
from jaxdist.core.gradient import gradients
from jaxdist.core.guard import is_bounded
from jaxdist.core.types import Batch, Loss, Metrics, Params


class ArrivalsState(NamedTuple):
    """All that training goes on from.

    Attributes:
        step: steps taken, an int32 scalar; a step has as many arrivals as there are workers.
        params: the server's parameters.
        opt_state: the state of the links at the server.
        key: a random key that never changes; each message draws from it, its worker and its turn.
        skipped: messages that were not finite, and so counted nothing.
        kept: the versions that somebody computes with, or may, [S, ...].
        total: the weighted sum of the messages since the last update.
        at_workers: the state of the links at the workers, [W, ...].
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array
    kept: Params
    total: optax.Updates
    at_workers: optax.OptState


class Rows(NamedTuple):
    """Rows of the table as arrays, [E]; `slot` and `keep` are below S, and `keep` is S where nothing is kept."""

    worker: Any
    turn: Any
    staleness: Any
    weight: Any
    closes: Any
    slot: Any
    keep: Any


class ArrivalsProgram(NamedTuple):
    """`init(key) -> state`, and `step(state, (rows, examples)) -> (state, metrics)`; examples are [E, b, ...]."""

    init: Any
    step: Any
    run: Any


def rows_of(table: list[Arrival], slots: int) -> Rows:
    """Rows of the table as arrays.

    Args:
        table: the rows.
        slots: how many versions are kept at once, S.

    >>> rows_of([Arrival(0.0, 1.0, 3, 0, 0, 2, 1.0, True, 0, -1)], slots=4).keep
    array([4], dtype=int32)
    """
    column = lambda name, dtype: np.array([getattr(row, name) for row in table], dtype)  # noqa: E731
    keep = column('keep', np.int32)
    return Rows(
        worker=column('worker', np.int32),
        turn=column('turn', np.int32),
        staleness=column('staleness', np.int32),
        weight=column('weight', np.float64),
        closes=column('closes', bool),
        slot=column('slot', np.int32),
        keep=np.where(keep < 0, slots, keep).astype(np.int32),
    )


def make_arrivals(
    loss: Loss,
    init: Any,
    at_worker: optax.GradientTransformation,
    at_server: optax.GradientTransformation,
    workers: int,
    slots: int,
    *,
    guard: bool = True,
) -> ArrivalsProgram:
    """The program that trains by arrivals.

    Args:
        loss: `(params, batch, key) -> (sums, count)`, as in `make_step`.
        init: `key -> params`.
        at_worker: makes a message of a gradient; `optax.identity()` for the gradient itself.
        at_server: makes updates of the sum of messages.
        workers: the number of workers W.
        slots: how many versions are kept at once, S.
        guard: whether a message that is not finite counts nothing.

    >>> from jaxdist.clock.arrivals import arrivals
    >>> from jaxdist.clock.rules import k_async
    >>> loss = lambda p, b, key: ({'loss': 0.5 * jnp.sum((p - b) ** 2)}, jnp.float32(b.size))
    >>> program = make_arrivals(loss, lambda key: jnp.zeros(()), optax.identity(), optax.sgd(0.5), 2, slots=2)
    >>> rows = rows_of(arrivals(k_async(k=1).begin(2), 2, lambda worker, turn: 1.0, rows=2), slots=2)
    >>> state, _ = program.step(program.init(jax.random.key(0)), (rows, jnp.array([[1.0], [1.0]])))
    >>> float(state.params)  # both gradients are taken at zero
    1.0
    """
    before, after = optax.with_extra_args_support(at_worker), optax.with_extra_args_support(at_server)
    of_worker = gradients(loss, 1, None)

    def first(key: jax.Array) -> ArrivalsState:
        params, zero = init(key), jnp.zeros((), jnp.int32)
        copies = lambda n, tree: jax.tree.map(lambda x: jnp.tile(x[None], (n, *[1] * x.ndim)), tree)  # noqa: E731
        at_workers = copies(workers, before.init(params))
        total = jax.tree.map(jnp.zeros_like, params)
        # One more is for what nobody reads.
        return ArrivalsState(zero, params, after.init(params), key, zero, copies(slots + 1, params), total, at_workers)

    def arrive(state: ArrivalsState, arrival: tuple[Rows, Batch]) -> tuple[ArrivalsState, Metrics]:
        row, examples = arrival
        read, own = _taken(state.kept, row.slot), _taken(state.at_workers, row.worker)
        draw = jax.random.fold_in(jax.random.fold_in(state.key, row.turn), row.worker)
        sums, count, gradient, _ = of_worker(read, (), examples, draw)
        ok = is_bounded((gradient, sums)) if guard else jnp.bool(True)
        message, own_after = before.update(gradient, own, read)
        own = jax.tree.map(lambda new, old: jnp.where(ok, new, old), own_after, own)
        weighted = lambda s, m: s + jnp.where(ok, row.weight.astype(m.dtype) * m, 0)  # noqa: E731
        total = jax.tree.map(weighted, state.total, message)

        def update(params: Params, opt_state: Any, total: Any) -> Any:
            known = {'staleness': row.staleness, 'read': read, 'worker': row.worker}
            updates, opt_state = after.update(total, opt_state, params, **known)
            return optax.apply_updates(params, updates), opt_state, jax.tree.map(jnp.zeros_like, total)

        unchanged = lambda *same: same  # noqa: E731
        params, opt_state, total = lax.cond(row.closes, update, unchanged, state.params, state.opt_state, total)
        state = state._replace(
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + ~ok,
            kept=_put(state.kept, row.keep, params),
            total=total,
            at_workers=_put(state.at_workers, row.worker, own),
        )
        return state, {**sums, 'count': count, 'skipped': (~ok).astype(count.dtype)}

    def run(state: ArrivalsState, batch: tuple[Rows, Batch]) -> tuple[ArrivalsState, Metrics]:
        state, metrics = lax.scan(arrive, state, batch)
        return state._replace(step=state.step + 1), metrics

    return ArrivalsProgram(jax.jit(first), DonatingStep(jax.jit(run, donate_argnums=0)), run)


def _taken(rows: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), rows)


def _put(rows: Any, index: jax.Array, row: Any) -> Any:
    return jax.tree.map(lambda x, each: lax.dynamic_update_index_in_dim(x, each, index, 0), rows, row)
