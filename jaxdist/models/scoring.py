"""From a flax module to a `Model`, whose loss is a sum over a batch, in float32 or wider, with its count."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Metric, Model, Params, Task
from jaxdist.models.attention import local

if TYPE_CHECKING:
    import flax.linen as nn

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
"""Sharding rules; see `jaxdist.core.mesh.Rules`."""


ACCURACY = {'accuracy': Metric('higher')}
"""The metric of tokens and classes beside the loss."""


def inputs_of(task: Task | None) -> Callable[[Batch], Any]:
    """`batch -> inputs` of a model for a task: all tokens but the last, else `x`.

    >>> inputs_of(Task('tokens', (2,), 9))({'tokens': jnp.array([[1, 2, 3]])})
    Array([[1, 2]], dtype=int32)
    """
    return lambda batch: batch['tokens'][:, :-1] if task is not None and task.kind == 'tokens' else batch['x']


def model(module: 'nn.Module', task: Task, rules: Rules = ()) -> Model:
    """The `Model` of a module that maps a batch of inputs to outputs [B, ..., classes].

    Parameters are a nested dict. The module computes in their dtype, to which inputs other than tokens are cast.

    Args:
        module: the flax module.
        task: the task, which fixes inputs, outputs and loss.
        rules: how parameters are sharded over the mesh.

    >>> import flax.linen as nn, jax
    >>> m = model(nn.Dense(3), Task('classes', (4,), 3))
    >>> sorted(m.init(jax.random.key(0)))
    ['bias', 'kernel']
    """
    tokens = task.kind == 'tokens'

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.zeros((1, *task.shape), jnp.int32 if tokens else jnp.float32))['params']

    def outputs(params: Params, batch: Batch) -> jax.Array:
        inputs = inputs_of(task)(batch)
        inputs = inputs if tokens else inputs.astype(jnp.result_type(*jax.tree.leaves(params)))
        return jnp.asarray(module.apply({'params': params}, inputs))

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        del key  # these models are deterministic; one with dropout would use the key
        targets = batch['tokens'][:, 1:] if tokens else batch['y']
        return score(task, outputs(params, batch), targets, batch.get('weight'))

    return Model(init, loss, rules, outputs, task, metrics={} if task.kind == 'values' else ACCURACY)


def score(
    task: Task, outputs: Any, targets: jax.Array, weight: jax.Array | None = None
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over a batch, and the count to divide them by for means; scalars in float32, or the outputs' wider dtype.

    Without weights the count is a constant from shapes, and therefore typed as replicated over workers.

    Args:
        task: the task: the loss is the cross entropy in nats for `tokens` and `classes`, with the accuracy, and half
            the squared error for `values`. Where sequences are divided among devices, and outputs are those of a
            device's positions, the targets are too.
        outputs: the model's outputs, [B, T, classes] for tokens, else [B, classes].
        targets: the targets, [B, T] for tokens, else [B].
        weight: the weights of the examples [B], which apply to each of their tokens.

    >>> import jax.numpy as jnp
    >>> sums, count = score(Task('values', (2,), 1), jnp.zeros((3, 1)), jnp.array([1.0, 2.0, 3.0]))
    >>> float(sums['loss']), float(count)
    (7.0, 3.0)
    """
    wide = jnp.promote_types(jnp.result_type(outputs), jnp.float32)
    if task.kind == 'tokens' and outputs.shape[1] < targets.shape[1]:
        targets = local(targets)
    terms = _terms(task, jnp.asarray(outputs, wide), targets)
    shape = targets.shape
    if weight is None:
        return {name: term.sum() for name, term in terms.items()}, jnp.asarray(math.prod(shape), wide)
    weights = weight.astype(wide).reshape(-1, *(1,) * (len(shape) - 1))
    per_row = math.prod(shape[1:])
    return {name: (weights * term).sum() for name, term in terms.items()}, weights.sum() * per_row


def _terms(task: Task, outputs: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """The terms of the sums, one per prediction, in the shape of the targets."""
    if task.kind == 'values':
        return {'loss': 0.5 * jnp.square(outputs[..., 0] - targets)}
    return {
        'loss': optax.softmax_cross_entropy_with_integer_labels(outputs, targets),
        'accuracy': (outputs.argmax(-1) == targets).astype(outputs.dtype),
    }


def misfit(name: str, needs: str, task: Task) -> InputError:
    """The error for a model that does not fit a task; its message names the models that do.

    >>> misfit('Transformer', 'tokens', Task('classes', (8,), 3))
    InputError('Transformer needs tokens, and the task has classes of shape (8,): use Perceptron')
    """
    fits = 'ConvNet or Perceptron' if len(task.shape) == 3 else 'Perceptron'
    fits = 'Transformer' if task.kind == 'tokens' else fits
    return InputError(f'{name} needs {needs}, and the task has {task.kind} of shape {task.shape}: use {fits}')
