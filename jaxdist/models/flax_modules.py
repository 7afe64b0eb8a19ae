"""Models from flax modules, NNX and Linen: dropout, running statistics and any other state included."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Metric, Model, Task, Variables
from jaxdist.models.scoring import ACCURACY, Rules, inputs_of, score

if TYPE_CHECKING:
    from flax import linen, nnx

LossOfOutputs = Callable[[Any, Batch], tuple[dict[str, jax.Array], Any]]
"""`(outputs, batch) -> (sums, count)`: see `jaxdist.core.types.Loss`."""

Mode = Mapping[str, Any]
"""Keyword arguments of a module's call."""

MODES = {'train': True, 'training': True, 'is_training': True, 'deterministic': False, 'use_running_average': False}
"""Arguments of modules that tell training from evaluation, and their values in training."""

_IGNORED = ('params', 'intermediates')
"""Linen's collections that are no model state."""


def from_linen(
    module: 'linen.Module',
    loss: LossOfOutputs | Task,
    *,
    example: Batch | None = None,
    inputs: Callable[[Batch], Any] | None = None,
    train: Mode | None = None,
    evaluate: Mode | None = None,
    rngs: tuple[str, ...] = ('dropout',),
    rules: Rules = (),
    metrics: Mapping[str, Metric] | None = None,
) -> Model:
    """The model of a flax Linen module.

    Collections other than `params`, such as `batch_stats`, are the model state. If the module's call has an argument
    called `train`, `training`, `is_training`, `deterministic` or `use_running_average`, it is set in training and in
    evaluation.

    Args:
        module: the module.
        loss: `(outputs, batch) -> (sums, count)`, or a task, whose loss and accuracy are then taken.
        example: a batch, or its shapes, for the module's `init`; not needed with a task.
        inputs: `batch -> inputs`, the module's argument, or a tuple of its arguments. By default `batch['x']`, and for
            a task of tokens all but the last.
        train: keyword arguments of the module's call in training.
        evaluate: keyword arguments of the module's call in evaluation.
        rngs: names of the random streams that it uses in training.
        rules: sharding rules of the parameters; see `jaxdist.core.mesh.Rules`.
        metrics: see `jaxdist.core.types.Model`.

    Raises:
        InputError: there is neither a task nor an example.

    >>> from flax import linen
    >>> net = linen.Sequential([linen.Dense(8), linen.BatchNorm(use_running_average=False), linen.Dense(3)])
    >>> model = from_linen(net, Task('classes', (4,), 3))
    >>> sorted(model.init(jax.random.key(0)).state)
    ['batch_stats']
    """
    mode = {name: value for name, value in MODES.items() if name in inspect.signature(module.__call__).parameters}
    in_training = mode if train is None else dict(train)
    in_evaluation = {name: not value for name, value in mode.items()} if evaluate is None else dict(evaluate)
    task = loss if isinstance(loss, Task) else None
    of_batch = inputs or inputs_of(task)
    shapes = _example(task, example)

    def arguments(batch: Batch) -> tuple[Any, ...]:
        given = of_batch(batch)
        return given if isinstance(given, tuple) else (given,)

    def init(key: jax.Array) -> Any:
        streams = {'params': key, **{name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}}
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        collections = jax.tree.map(lambda x: x, dict(module.init(streams, *arguments(zeros), **in_training)))
        state = {name: values for name, values in collections.items() if name not in _IGNORED}
        return Variables(collections['params'], state) if state else collections['params']

    def forward(variables: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        params, state = _split(variables)
        streams = {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}
        all_variables = {'params': params, **state}
        return module.apply(all_variables, *arguments(batch), **in_training, rngs=streams, mutable=list(state))

    def outputs(variables: Any, batch: Batch) -> Any:
        params, state = _split(variables)
        return module.apply({'params': params, **state}, *arguments(batch), **in_evaluation)

    return _model(init, forward, outputs, loss, rules, metrics)


def from_nnx(
    make: Callable[['nnx.Rngs'], 'nnx.Module'],
    loss: LossOfOutputs | Task,
    *,
    inputs: Callable[[Batch], Any] | None = None,
    trained: Any = None,
    rules: Rules = (),
    metrics: Mapping[str, Metric] | None = None,
) -> Model:
    """The model of a flax NNX module.

    Variables that are not trained, such as `nnx.BatchStat`, are the model state. Random streams, as of dropout, are
    seeded anew at every step and on every worker. The module is in its training mode in the loss (`module.train()`),
    and in its evaluation mode elsewhere (`module.eval()`).

    Args:
        make: makes the module, as `lambda rngs: Net(64, rngs=rngs)`.
        loss: `(outputs, batch) -> (sums, count)`, or a task, whose loss and accuracy are then taken.
        inputs: `batch -> inputs`, the module's argument, or a tuple of its arguments. By default `batch['x']`, and for
            a task of tokens all but the last.
        trained: the variables that are trained, an NNX filter; by default `nnx.Param`.
        rules: sharding rules of the parameters; see `jaxdist.core.mesh.Rules`.
        metrics: see `jaxdist.core.types.Model`.

    >>> from flax import nnx
    >>> make = lambda rngs: nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs))
    >>> model = from_nnx(make, Task('classes', (4,), 8))
    >>> jax.eval_shape(model.init, jax.random.key(0)).state['layers'][1]['mean'].shape
    (8,)
    """
    from flax import nnx

    kinds: Any = (trained or nnx.Param, nnx.RngState, ...)
    of_batch = inputs or inputs_of(loss if isinstance(loss, Task) else None)

    def structure(training: bool) -> tuple[Any, Any]:
        """The static structure in a mode, and the shapes of the random state."""
        module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        if training:
            module.train()
        else:
            module.eval()
        parts: Any = nnx.split(module, *kinds)
        return parts[0], parts[2]

    in_training, in_evaluation = structure(True), structure(False)

    def init(key: jax.Array) -> Any:
        parts: Any = nnx.split(make(nnx.Rngs(key)), *kinds)
        params, state = nnx.to_pure_dict(parts[1]), nnx.to_pure_dict(parts[3])
        return Variables(params, state) if jax.tree.leaves(state) else params

    def call(mode: tuple[Any, Any], variables: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        params, state = _split(variables)
        graph, rng = mode
        module = nnx.merge(graph, params, _seeded(rng, key), state)
        given = of_batch(batch)
        out = module(*given) if isinstance(given, tuple) else module(given)
        parts: Any = nnx.split(module, *kinds)
        return out, nnx.to_pure_dict(parts[3])

    def forward(variables: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        return call(in_training, variables, batch, key)

    def outputs(variables: Any, batch: Batch) -> Any:
        return call(in_evaluation, variables, batch, jax.random.key(0))[0]

    return _model(init, forward, outputs, loss, rules, metrics)


def _model(
    init: Callable[[jax.Array], Any],
    forward: Callable[[Any, Batch, jax.Array], tuple[Any, Any]],
    outputs: Callable[[Any, Batch], Any],
    loss: LossOfOutputs | Task,
    rules: Rules,
    metrics: Mapping[str, Metric] | None,
) -> Model:
    """The model of `forward`, `(variables, batch, key) -> (outputs in training, state)`, and of `outputs`."""
    task = loss if isinstance(loss, Task) else None

    def scored(out: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any]:
        if not isinstance(loss, Task):
            return loss(out, batch)
        targets = batch['tokens'][:, 1:] if loss.kind == 'tokens' else batch['y']
        return score(loss, out, targets, batch.get('weight'))

    def train_loss(variables: Any, batch: Batch, key: jax.Array) -> Any:
        out, state = forward(variables, batch, key)
        return (*scored(out, batch), state) if isinstance(variables, Variables) else scored(out, batch)

    def evaluate(variables: Any, batch: Batch) -> Any:
        return scored(outputs(variables, batch), batch)

    known = ACCURACY if task is not None and task.kind != 'values' else {}
    return Model(init, train_loss, rules, outputs, task, evaluate, {**known, **(metrics or {})})


def _split(variables: Any) -> tuple[Any, Any]:
    return variables if isinstance(variables, Variables) else (variables, {})


def _seeded(rng: Any, key: jax.Array) -> Any:
    """NNX's random state with streams from this key, counted from 0."""
    leaves, treedef = jax.tree.flatten(rng)
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    seeded = [
        jax.random.fold_in(key, i) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
        for i, (leaf, is_key) in enumerate(zip(leaves, keys, strict=True))
    ]
    return jax.tree.unflatten(treedef, seeded)


def _example(task: Task | None, example: Batch | None) -> Batch:
    """The shapes of a batch of one example."""
    if example is not None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x)), dict(example))
    if task is None:
        raise InputError(
            'from_linen needs the shape of its inputs: give example=, a batch or its shapes; or a task as the loss'
        )
    if task.kind == 'tokens':
        return {'tokens': jax.ShapeDtypeStruct((1, task.shape[0] + 1), jnp.int32)}
    return {'x': jax.ShapeDtypeStruct((1, *task.shape), jnp.float32)}
