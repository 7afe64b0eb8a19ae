"""The training step: `init` and `step` as pure functions of a loss, an update and the workers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxdist.core import mesh as meshes
from jaxdist.core import collectives, workers
from jaxdist.core.guard import Accord, local_parts
from jaxdist.constraints.checking import check_shared
from jaxdist.constraints.dual_ascent import DualAscent
from jaxdist.constraints.objective import Constrained, Plain
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.core.workers import Program, Workers


class State(NamedTuple):
    """All that training goes on from.

    Attributes:
        step: steps taken, an int32 scalar; with the seed it is the position in the data too.
        params: the model's parameters; [W, ...] where workers differ.
        opt_state: the update's state; [W, ...] where workers differ.
        key: a random key that never changes; each step draws from it and `step`.
        skipped: steps left out because a gradient was not finite; [W] if workers decide alone.
        duals: the multipliers of constraints and what moves them; () without constraints.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array
    duals: Any = ()


def make_step(
    loss: Loss,
    init: Callable[[jax.Array], Params],
    update: optax.GradientTransformation,
    batch: Batch,
    where: Workers,
    *,
    rules: meshes.Rules = (),
    accumulate: int = 1,
    compute: jax.typing.DTypeLike | None = None,
    guard: bool = True,
    constraints: DualAscent | None = None,
) -> Program:
    """The program that trains: `init(key) -> State` and `step(state, batch) -> (state, metrics)`.

    Metrics are the loss's sums, its `count` and `skipped`, each [W], not yet reduced: see `means`.

    The gradient that the update gets is each worker's own. Where workers share the parameters, the mean of these
    gradients over workers is that of the mean loss over all examples, exactly: if counts can differ between workers,
    a worker's is of its sum over the mean count (workers tell each other their counts: 4 bytes). Where they work
    locally, it is of the worker's sum over its own count.

    Args:
        loss: `(params, batch, key) -> (sums, count)`, see `jaxdist.core.types.Loss`.
        init: `key -> params`, float32.
        update: an optax transformation, such as `optax.chain(mean(), optax.adam(1e-3))` or `jaxdist.line.build(text)`.
        batch: the whole batch of all workers, or its shapes: [B, ...].
        where: the workers.
        rules: how parameters are cut over the mesh's other axes.
        accumulate: parts that each worker's batch is taken in, one after the other; the result is that of the whole.
        compute: the dtype in which the loss sees the parameters, if another than theirs: `jnp.bfloat16`.
        guard: whether a step whose gradient is not finite is left out. Where all share the parameters, nobody takes it
            (the workers vote: 4 bytes); where they work locally, the worker whose gradient it is sits out alone.
        constraints: what the parameters are to hold, and how its multipliers move. Metrics then have `constraints`,
            see `jaxdist.constraints.DualAscent.shown`.

    Raises:
        ValueError: the batch does not fit, or workers would drift apart though nothing in the update works locally, or
            they work locally under constraints.

    >>> import jaxdist.core.workers
    >>> loss = lambda p, b, key: ({'loss': jnp.sum((p - b['x']) ** 2)}, jnp.float32(b['x'].size))
    >>> batch = {'x': jnp.arange(4.0)}
    >>> mean_then_sgd = optax.chain(
    ...     optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (collectives.mean(g), s)), optax.sgd(0.5)
    ... )
    >>> program = make_step(loss, lambda key: jnp.zeros(()), mean_then_sgd, batch, jaxdist.core.workers.simulated(2))
    >>> state, metrics = program.step(program.init(jax.random.key(0)), batch)
    >>> float(state.params), means(metrics)
    (1.5, {'loss': 3.5, 'skipped': 0.0})
    """
    check_batch(batch, where.count, accumulate)
    update = optax.with_extra_args_support(update)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(init, key)
    _refuse_cuts_over_workers(rules, where.axis)
    specs = meshes.specs(params, rules, where.mesh)
    cuts = specs if where.mesh is not None and len(where.mesh.shape) > 1 else None
    uneven = _counts_differ(loss, params, batch, where)
    primal: Plain | Constrained = Plain(loss, accumulate, compute, where.axis)
    if constraints is not None:
        constraints.check(params, batch, where, accumulate)
        primal = Constrained(constraints, loss, accumulate, compute, uneven, where.axis)
    own = workers.part_shapes(batch, where.count)

    def first(key: jax.Array) -> State:
        params = jax.tree.map(lambda p: jnp.asarray(p, p.dtype), init(key))  # a weak type would compile the step twice
        zero = jnp.zeros((), jnp.int32)
        with meshes.cut_as(cuts):
            return State(zero, params, update.init(params), key, zero, primal.begin(params, own))

    def step(state: State, batch: Batch, accord: Accord | None = None) -> tuple[State, dict[str, jax.Array]]:
        draw = jax.random.fold_in(jax.random.fold_in(state.key, state.step), collectives.index(where.axis))

        def moved(grads: Params, told: dict[str, Any]) -> tuple[Params, optax.OptState]:
            with meshes.cut_as(cuts):
                updates, opt_state = update.update(grads, state.opt_state, state.params, **told)
            return optax.apply_updates(state.params, updates), opt_state

        found = primal.gradient(state, batch, draw, lambda grads: moved(grads, {})[0])
        ok, grads, told = jnp.bool(True), found.grads, {}
        if accord is not None:
            ok, grads = accord.before(grads, found.counted, found.multipliers)
            told = accord.extras(ok)
        new_params, opt_state = moved(grads, told)
        duals = primal.after(new_params, found.duals, state.step, batch, draw)
        new = state._replace(params=new_params, opt_state=opt_state, duals=duals)
        if accord is not None:
            new = accord.after(ok, new, state)
        skipped = 1 - ok.astype(jnp.int32)
        metrics = {**found.sums, 'count': found.counted, 'skipped': skipped.astype(jnp.float32), **found.shown}
        return new._replace(step=state.step + 1, skipped=state.skipped + skipped), metrics

    layout = workers.find_layout(first, step, where, (key,), batch)
    alone = _works_locally(layout.opt_state)
    if alone and constraints is not None:
        raise ValueError(
            f'{", ".join(constraints.names)}: constraints are judged at parameters that all workers share, at every '
            'step, and this update lets workers train alone in between. Put mean() before the optimiser instead'
        )
    if not alone:
        _refuse_drift(layout.params)
    if constraints is not None:
        check_shared(constraints.constraints, layout.duals.multipliers)
    layout = layout._replace(skipped=guard and alone)
    agreed = functools.partial(step, accord=Accord(layout, alone, guard, uneven and constraints is None, where.axis))

    def cut(rows: State) -> State:
        whole = jax.tree.map(lambda _: P(), rows)
        sizes = where.mesh.shape if where.mesh is not None else {}
        return whole._replace(params=specs, opt_state=meshes.follow(rows.opt_state, rows.params, specs, sizes))

    return workers.spread(first, agreed, layout, where, (key,), cut)


def _counts_differ(loss: Loss, params: Params, batch: Batch, where: Workers) -> bool:
    """Whether the count that the loss returns depends on the data. Says what is wrong with a loss of another form."""

    def count(params: Params, batch: Batch) -> jax.Array:
        out = loss(collectives.per_worker(params, where.axis), batch, jax.random.key(0))
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], dict) and 'loss' in out[0]):
            raise ValueError(
                "the loss must return (sums, count) with sums a dict that holds 'loss', as in "
                f"({{'loss': jnp.sum(...)}}, batch_size); it returned {out}"
            )
        taken = sorted({'count', 'skipped', 'constraints'} & set(out[0]))
        if taken:
            raise ValueError(f"the loss's sums must not be called {taken}: the step's own metrics have these names")
        for name, x in {**out[0], 'count': out[1]}.items():
            if jnp.shape(x) != ():
                raise ValueError(
                    f'the loss must return scalars, sums over the batch; {name!r} has shape {jnp.shape(x)}'
                )
        return jnp.asarray(out[1])

    return workers.which_vary(count, where, (P(), P(where.axis)), params, batch)


def _refuse_cuts_over_workers(rules: meshes.Rules, axis: str) -> None:
    wrong = [pattern for pattern, dims in rules if axis in dims]
    if wrong:
        raise ValueError(
            f'rules {wrong} cut parameters over {axis!r}, the worker axis: each worker has all of its parameters, and '
            'would have to fetch them at every step. Cut them over another axis of the mesh'
        )


def _works_locally(opt_state: Any) -> bool:
    """Whether the update lets workers differ on purpose, which one part of it may do."""
    parts = [type(part).__name__ for part in local_parts(opt_state)]
    if len(parts) > 1:
        raise ValueError(
            f'{parts[0]} and {parts[1]} both say where workers meet, and what one does the other undoes: leave one out'
        )
    return bool(parts)


def _refuse_drift(layout: Any) -> None:
    drifting = [meshes.path_text(path) for path, varies in jax.tree_util.tree_flatten_with_path(layout)[0] if varies]
    if drifting:
        more = f' (and {len(drifting) - 1} more)' if len(drifting) > 1 else ''
        raise ValueError(
            f'parameter {drifting[0]!r}{more} would come out different on each worker: the updates that reach it '
            'differ between workers, and nothing in the line says that it works locally. Put mean() before the '
            'optimiser to average gradients at every step, or average(every=...) after it to average parameters '
            'now and then.'
        )


def check_batch(batch: Batch, workers: int, accumulate: int = 1) -> None:
    """Says what is wrong with a batch that workers, or the parts of an accumulation, do not divide.

    Raises:
        ValueError: with the sizes that would do.

    >>> check_batch({'x': jnp.ones(8)}, workers=3)
    Traceback (most recent call last):
    ValueError: a batch of 8 examples cannot be divided among 3 workers; 6 or 9 would do
    """
    sizes = {name: x.shape[0] if x.shape else 0 for name, x in batch.items()}
    size = next(iter(sizes.values()), 0)
    if len(set(sizes.values())) != 1 or size < 1:
        raise ValueError(f'every array of a batch needs the same number of rows, 1 or more; here they have {sizes}')
    if accumulate < 1:
        raise ValueError(f'accumulate={accumulate} must be 1 or more')
    need = workers * accumulate
    if size % need:
        parts = f' in {accumulate} parts each' if accumulate > 1 else ''
        low, high = size // need * need, (size // need + 1) * need
        sizes_text = f'{low} or {high}' if low else f'{high}'
        raise ValueError(
            f'a batch of {size} examples cannot be divided among {workers} workers{parts}; {sizes_text} would do'
        )


@jax.jit
def _reduced(metrics: dict[str, Any]) -> dict[str, Any]:
    """Sums over workers; of each constraint what the worker says where it is violated most."""
    sums = {name: jnp.sum(x) for name, x in metrics.items() if name != 'constraints'}
    held = metrics.get('constraints', {})
    worst = {name: jax.tree.map(lambda x, at=_worst(shown['violation']): x[at], shown) for name, shown in held.items()}
    return {**sums, 'constraints': worst} if held else sums


def _worst(violations: jax.Array) -> jax.Array:
    return jnp.argmax(jnp.where(jnp.isnan(violations), -1.0, violations))


def means(metrics: dict[str, Any]) -> dict[str, Any]:
    """A step's metrics as numbers: each sum over all workers' counts; `skipped` is the share of workers who sat out.

    Under constraints, `constraints` has for each what `DualAscent.shown` tells; where each worker has its own, that of
    the worker who violates it most.

    This waits for the step. In several processes all must call it, for what lies elsewhere is fetched.

    >>> means({'loss': jnp.array([2.0, 4.0]), 'count': jnp.array([1.0, 2.0]), 'skipped': jnp.zeros(2)})
    {'loss': 2.0, 'skipped': 0.0}
    """
    w = metrics['skipped'].size
    numbers = jax.tree.map(float, jax.device_get(_reduced(metrics)))
    held = {'constraints': numbers.pop('constraints')} if 'constraints' in numbers else {}
    count = numbers.pop('count')
    skipped = numbers.pop('skipped') / w
    return {name: x / count if count else float('nan') for name, x in numbers.items()} | {'skipped': skipped} | held


def shared_params(state: State, layout: State) -> Params:
    """One set of parameters for evaluation: where workers differ, the mean over them; pure, for use under `jit`.

    >>> state = State(jnp.int32(0), jnp.array([1.0, 3.0]), (), jax.random.key(0), jnp.int32(0))
    >>> shared_params(state, State(False, True, (), False, False))
    Array(2., dtype=float32)
    """
    return jax.tree.map(lambda varies, p: jnp.mean(p, 0) if varies else p, layout.params, state.params)
