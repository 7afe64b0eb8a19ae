"""The training step: `init` and `step` as pure functions of a loss, an update and the workers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist import mesh as meshes
from jaxdist import wire, workers
from jaxdist.task import Batch, Loss, Params
from jaxdist.workers import Program, Workers


class State(NamedTuple):
    """All that training goes on from.

    Attributes:
        step: steps taken, an int32 scalar; with the seed it is the position in the data too.
        params: the model's parameters; [W, ...] where workers differ.
        opt_state: the update's state; [W, ...] where workers differ.
        key: a random key that never changes; each step draws from it and `step`.
        skipped: steps left out because a gradient was not finite; [W] if workers decide alone.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array


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
) -> Program:
    """The program that trains: `init(key) -> State` and `step(state, batch) -> (state, metrics)`.

    Metrics are the loss's sums, its `count` and `skipped`, each [W], not yet reduced: see `means`.

    The gradient that the update gets is each worker's own. Where workers share the parameters, the mean of these
    gradients over workers is that of the mean loss over all examples, exactly: if counts can differ between workers,
    a worker's is of its sum over the mean count (workers tell each other their counts: 4 bytes). Where they work
    locally, it is of the worker's sum over its own count.

    Args:
        loss: `(params, batch, key) -> (sums, count)`, see `jaxdist.task.Loss`.
        init: `key -> params`, float32.
        update: an optax transformation, such as `optax.chain(mean(), optax.adam(1e-3))` or `registry.build(line)`.
        batch: the whole batch of all workers, or its shapes: [B, ...].
        where: the workers.
        rules: how parameters are cut over the mesh's other axes.
        accumulate: parts that each worker's batch is taken in, one after the other; the result is that of the whole.
        compute: the dtype in which the loss sees the parameters, if another than theirs: `jnp.bfloat16`.
        guard: whether a step whose gradient is not finite is left out. Where all share the parameters, nobody takes it
            (the workers vote: 4 bytes); where they work locally, the worker whose gradient it is sits out alone.

    Raises:
        ValueError: the batch does not fit, or workers would drift apart though nothing in the update works locally.

    >>> import jaxdist.workers
    >>> loss = lambda p, b, key: ({'loss': jnp.sum((p - b['x']) ** 2)}, jnp.float32(b['x'].size))
    >>> batch = {'x': jnp.arange(4.0)}
    >>> mean_then_sgd = optax.chain(
    ...     optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (wire.mean(g), s)), optax.sgd(0.5)
    ... )
    >>> program = make_step(loss, lambda key: jnp.zeros(()), mean_then_sgd, batch, jaxdist.workers.simulated(2))
    >>> state, metrics = program.step(program.init(jax.random.key(0)), batch)
    >>> float(state.params), means(metrics)
    (1.5, {'loss': 3.5, 'skipped': 0.0})
    """
    check_batch(batch, where.count, accumulate)
    update = optax.with_extra_args_support(update)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(init, key)
    specs = meshes.specs(params, rules, where.mesh)
    gradients = _gradients(loss, accumulate, compute)
    extras = {'specs': specs} if where.mesh is not None and len(where.mesh.shape) > 1 else {}
    uneven = _counts_differ(loss, params, batch, where)

    def first(key: jax.Array) -> State:
        params = init(key)
        zero = jnp.zeros((), jnp.int32)
        return State(zero, params, update.init(params), key, zero)

    def step(state: State, batch: Batch, accord: Accord | None = None) -> tuple[State, dict[str, jax.Array]]:
        draw = jax.random.fold_in(jax.random.fold_in(state.key, state.step), wire.index(where.axis))
        local = wire.per_worker(state.params, where.axis)  # or the gradient would be summed over workers at once
        sums, count, grads = gradients(local, batch, draw)
        ok = jnp.bool(True)
        if accord is not None:
            ok, grads = accord.before(grads, count)
        updates, opt_state = update.update(grads, state.opt_state, state.params, **extras)
        new = state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        if accord is not None:
            new = accord.after(ok, new, state)
        skipped = 1 - ok.astype(jnp.int32)
        metrics = {**sums, 'count': count, 'skipped': skipped.astype(jnp.float32)}
        return new._replace(step=state.step + 1, skipped=state.skipped + skipped), metrics

    layout = workers.find_layout(first, step, where, (key,), batch)
    alone = works_locally(layout.opt_state)
    if not alone:
        _refuse_drift(layout.params)
    layout = layout._replace(skipped=guard and alone)
    agreed = functools.partial(step, accord=Accord(layout, alone, guard, uneven, where.axis))

    def cut(rows: State) -> State:
        whole = jax.tree.map(lambda _: P(), rows)
        return whole._replace(params=specs, opt_state=meshes.follow(rows.opt_state, rows.params, specs))

    return workers.spread(first, agreed, layout, where, (key,), cut)


class Accord(NamedTuple):
    """What is settled around an update: who takes the step, and how much each worker's gradient counts.

    Attributes:
        layout: which leaves of the state differ between workers.
        alone: whether workers go their own ways, each deciding for what is its own; else all decide together.
        guard: whether a gradient that is not finite is left out.
        uneven: whether workers' counts of examples may differ.
        axis: the worker axis.
    """

    layout: State
    alone: bool
    guard: bool
    uneven: bool
    axis: str

    def before(self, grads: Params, count: jax.Array) -> tuple[jax.Array, Params]:
        """Whether this worker takes the step, and the gradient that it takes it with."""
        finite = jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]).all()
        if self.alone:
            # The others may meet with this worker at this very step: nothing that is not finite may reach them.
            ok = finite if self.guard else jnp.bool(True)
            return ok, jax.tree.map(lambda g: jnp.where(ok, g, 0), grads) if self.guard else grads
        told = {'bad': 1 - finite.astype(count.dtype)} if self.guard else {}
        told |= {'count': count} if self.uneven else {}
        everyone = wire.total(told, self.axis) if told else {}
        if self.uneven:
            share = count * wire.size(self.axis) * _inverse(everyone['count'])
            grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
        return everyone['bad'] == 0 if self.guard else jnp.bool(True), grads

    def after(self, ok: jax.Array, new: State, old: State) -> State:
        """The new state, or the old one bit for bit."""
        if not self.guard:
            return new

        def choose(varies: bool, new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(ok, new, old) if varies or not self.alone else new

        return jax.tree.map(choose, self.layout, new, old)


def _gradients(loss: Loss, accumulate: int, compute: Any) -> Callable[..., Any]:
    """`(params, batch, key) -> (sums, count, gradient of the mean)` of one worker."""

    def part(params: Params, batch: Batch, key: jax.Array, of_the_mean: bool = True) -> Any:
        def objective(params: Params) -> tuple[jax.Array, Any]:
            sums, count = loss(cast(params, compute), batch, key)
            count = lax.stop_gradient(jnp.asarray(count, float))
            return sums['loss'] * (_inverse(count) if of_the_mean else 1), (sums, count)

        (_, (sums, count)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return sums, count, grads

    def whole(params: Params, batch: Batch, key: jax.Array) -> Any:
        cut = lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])  # noqa: E731
        parts = jax.tree.map(cut, batch), jax.random.split(key, accumulate)
        one = lambda args: part(params, args[0], args[1], of_the_mean=False)  # noqa: E731
        begin = one(jax.tree.map(lambda x: x[0], parts))
        add = lambda carry, args: (jax.tree.map(jnp.add, carry, one(args)), None)  # noqa: E731
        sums, count, grads = lax.scan(add, begin, jax.tree.map(lambda x: x[1:], parts))[0]
        return sums, count, jax.tree.map(lambda g: g * _inverse(count).astype(g.dtype), grads)

    return whole if accumulate > 1 else part


def _inverse(count: jax.Array) -> jax.Array:
    """1 / count, and 0 for a worker who has no example."""
    return jnp.where(count > 0, 1 / count, 0)


def cast(params: Params, compute: jax.typing.DTypeLike | None) -> Params:
    """The parameters as the loss sees them: real numbers in the dtype `compute`, if one is given.

    >>> cast({'w': jnp.ones(1)}, jnp.bfloat16)
    {'w': Array([1], dtype=bfloat16)}
    """
    if compute is None:
        return params
    return jax.tree.map(lambda p: p.astype(compute) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)


def _counts_differ(loss: Loss, params: Params, batch: Batch, where: Workers) -> bool:
    """Whether the count that the loss returns depends on the data. Says what is wrong with a loss of another form."""

    def count(params: Params, batch: Batch) -> jax.Array:
        out = loss(wire.per_worker(params, where.axis), batch, jax.random.key(0))
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], dict) and 'loss' in out[0]):
            raise ValueError(
                "the loss must return (sums, count) with sums a dict that holds 'loss', as in "
                f"({{'loss': jnp.sum(...)}}, batch_size); it returned {out}"
            )
        for name, x in {**out[0], 'count': out[1]}.items():
            if jnp.shape(x) != ():
                raise ValueError(
                    f'the loss must return scalars, sums over the batch; {name!r} has shape {jnp.shape(x)}'
                )
        return jnp.asarray(out[1])

    return workers.which_vary(count, where, (P(), P(where.axis)), params, batch)


def works_locally(opt_state: optax.OptState) -> bool:
    """Whether a part of the update lets workers differ on purpose: its state has a true property `works_locally`.

    >>> works_locally((optax.EmptyState(),))
    False
    """
    says_so = lambda node: getattr(node, 'works_locally', False)  # noqa: E731
    return any(says_so(node) for node in jax.tree.leaves(opt_state, is_leaf=says_so))


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
def _sum(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.sum, metrics)


def means(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """A step's metrics as numbers: each sum over all workers' counts; `skipped` is the share of workers who sat out.

    This waits for the step. In several processes all must call it, for what lies elsewhere is fetched.

    >>> means({'loss': jnp.array([2.0, 4.0]), 'count': jnp.array([1.0, 2.0]), 'skipped': jnp.zeros(2)})
    {'loss': 2.0, 'skipped': 0.0}
    """
    w = metrics['skipped'].size
    sums = {name: float(x) for name, x in jax.device_get(_sum(metrics)).items()}
    count = sums.pop('count')
    skipped = sums.pop('skipped') / w
    return {name: x / count if count else float('nan') for name, x in sums.items()} | {'skipped': skipped}


def shared_params(state: State, layout: State) -> Params:
    """One set of parameters for evaluation: where workers differ, the mean over them; pure, for use under `jit`.

    >>> state = State(jnp.int32(0), jnp.array([1.0, 3.0]), (), jax.random.key(0), jnp.int32(0))
    >>> shared_params(state, State(False, True, (), False, False))
    Array(2., dtype=float32)
    """
    return jax.tree.map(lambda varies, p: jnp.mean(p, 0) if varies else p, layout.params, state.params)
