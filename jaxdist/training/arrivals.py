"""Training by a table of arrivals: a scan over messages that reach a server, behind the same `init` and `step`.

A message is a worker's gradient at the version of the parameters that it has read. What stands in the line before the
rule runs at the worker, what stands after it at the server, which is given `staleness`, `read` and `worker` of the
message that closes the update. Nothing of this grows with the number of workers but the versions that are kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist.clock.arrivals import Arrival
from jaxdist.core.donating_step import DonatingStep
from jaxdist.core.errors import InputError
from jaxdist.core.gradient import gradients, has_state
from jaxdist.core.guard import is_bounded
from jaxdist.core.model_state import variables
from jaxdist.core.program import Program
from jaxdist.core.types import Batch, Loss, Metrics, Params
from jaxdist.core.workers import Workers
from jaxdist.line.arriving import Arriving
from jaxdist.training.step import State


class ServerState(NamedTuple):
    """The optimiser state of training by arrivals.

    Attributes:
        server: the state of what the server does.
        workers: the state of what each worker does, [W, ...].
        kept: the versions that somebody computes with, [W + 1, ...]; the last one is for what nobody reads.
        total: the weighted sum of the messages since the last update.
    """

    server: optax.OptState
    workers: optax.OptState
    kept: Params
    total: optax.Updates


class Rows(NamedTuple):
    """Rows of the table as arrays, [E]; `keep` is W where nothing is kept."""

    worker: Any
    turn: Any
    staleness: Any
    weight: Any
    closes: Any
    slot: Any
    keep: Any


def rows_of(table: list[Arrival], workers: int) -> Rows:
    """Rows of the table as arrays.

    >>> rows_of([Arrival(0.0, 1.0, 3, 0, 0, 2, 1.0, True, 0, -1)], workers=4).keep
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
        keep=np.where(keep < 0, workers, keep).astype(np.int32),
    )


def make_arrivals(
    loss: Loss,
    init: Callable[[jax.Array], Params],
    line: Arriving,
    workers: Workers,
    *,
    accumulate: int = 1,
    compute: jax.typing.DTypeLike | None = None,
    guard: bool = True,
) -> Program[State]:
    """The program that trains by arrivals: `step(state, {'rows': rows [E], 'examples': [E, b, ...]})`.

    Args:
        loss: `(params, batch, key) -> (sums, count)`, as in `make_step`.
        init: `key -> params`.
        line: what workers and the server do.
        workers: the simulated workers.
        accumulate, compute: as in `make_step`.
        guard: whether a message that is not finite counts nothing.

    Raises:
        InputError: the model has a state.

    >>> from jaxdist import line
    >>> from jaxdist.clock.arrivals import arrivals
    >>> from jaxdist.core.workers import simulated
    >>> loss = lambda p, b, key: ({'loss': 0.5 * jnp.sum((p - b) ** 2)}, jnp.float32(b.size))
    >>> asgd = line.split_rule('k_async(k=1) | sgd(0.5)')
    >>> program = make_arrivals(loss, lambda key: jnp.zeros(()), asgd, simulated(2))
    >>> rows = rows_of(arrivals(asgd.rule.begin(2), 2, lambda worker, turn: 1.0, rows=2), workers=2)
    >>> state = program.init(jax.random.key(0))
    >>> state, _ = program.step(state, {'rows': rows, 'examples': jnp.array([[1.0], [1.0]])})
    >>> float(state.params)  # both gradients are taken at zero
    1.0
    """
    of_worker = gradients(loss, accumulate, compute)
    count = workers.count

    def first(key: jax.Array) -> State:
        params, values = variables(init(key))
        if has_state(values):
            raise InputError('a model with a state does not train by arrivals: it is not defined whose state counts')
        zero = jnp.zeros((), jnp.int32)
        copies = lambda n, tree: jax.tree.map(lambda x: jnp.tile(x[None], (n, *[1] * jnp.ndim(x))), tree)  # noqa: E731
        total = jax.tree.map(jnp.zeros_like, params)
        at_workers = copies(count, line.at_workers.init(params))
        opt_state = ServerState(line.at_server.init(params), at_workers, copies(count + 1, params), total)
        return State(zero, params, opt_state, key, zero)

    def arrive(state: State, arrival: dict[str, Any]) -> tuple[State, Metrics]:
        row, examples, held = arrival['rows'], arrival['examples'], state.opt_state
        read, own = _taken(held.kept, row.slot), _taken(held.workers, row.worker)
        draw = jax.random.fold_in(jax.random.fold_in(state.key, row.turn), row.worker)
        sums, examples_seen, gradient, _ = of_worker(read, (), examples, draw)
        ok = is_bounded((gradient, sums)) if guard else jnp.bool(True)
        message, own_after = line.at_workers.update(gradient, own, read)
        own = jax.tree.map(lambda new, old: jnp.where(ok, new, old), own_after, own)
        weighted = lambda s, m: s + jnp.where(ok, row.weight.astype(m.dtype) * m, 0)  # noqa: E731
        total = jax.tree.map(weighted, held.total, message)

        def update(params: Params, server: Any, total: Any) -> Any:
            known = {'staleness': row.staleness, 'read': read, 'worker': row.worker}
            updates, server = line.at_server.update(total, server, params, **known)
            return optax.apply_updates(params, updates), server, jax.tree.map(jnp.zeros_like, total)

        unchanged = lambda *same: same  # noqa: E731
        params, server, total = lax.cond(row.closes, update, unchanged, state.params, held.server, total)
        kept, at_workers = _put(held.kept, row.keep, params), _put(held.workers, row.worker, own)
        opt_state = ServerState(server, at_workers, kept, total)
        state = state._replace(params=params, opt_state=opt_state, skipped=state.skipped + ~ok)
        return state, {**sums, 'count': examples_seen, 'skipped': (~ok).astype(jnp.int32)}

    def run(state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = lax.scan(arrive, state, batch)
        return state._replace(step=state.step + 1), metrics

    shapes = jax.eval_shape(first, jax.eval_shape(lambda: jax.random.key(0)))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    layout = jax.tree.map(lambda _: False, state)
    step = DonatingStep(jax.jit(run, donate_argnums=0))
    program = Program(jax.jit(first), step, run, state, layout, workers, on_mesh=lambda: program)
    return program


def _taken(rows: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), rows)


def _put(rows: Any, index: jax.Array, row: Any) -> Any:
    return jax.tree.map(lambda x, each: lax.dynamic_update_index_in_dim(x, each, index, 0), rows, row)
