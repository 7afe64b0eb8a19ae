"""A small convolutional network for images."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.types import Model, Task
from jaxdist.models.scoring import Rules, misfit, model

RULES: Rules = (
    ('dense/kernel', (None, 'model')),
    ('dense/bias', ('model',)),
    ('head/kernel', ('model', None)),
)


@dataclass(frozen=True)
class ConvNet:
    """A convolutional network: 3 x 3 convolutions with stride 2, which halve the image, then a hidden layer."""

    channels: tuple[int, ...] = (16, 32)
    """Channels of each convolution."""
    dense: int = 64
    """Size of the hidden layer after the convolutions."""

    def build(self, task: Task) -> Model:
        """The model for images [H, W, C]; the hidden layer and the head are sharded over the `model` axis, as in
        Megatron.

        Raises:
            InputError: the task's inputs are not images, or a size is below 1.

        >>> import jax
        >>> model = ConvNet(channels=(4,), dense=5).build(Task('classes', (8, 8, 1), 10))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))
        >>> params['conv0']['kernel'].shape, params['dense']['kernel'].shape
        ((9, 4), (64, 5))
        """
        if task.kind == 'tokens' or len(task.shape) != 3:
            raise misfit('ConvNet', 'images [H, W, C]', task)
        if min(*self.channels, self.dense, 1) < 1:
            raise InputError(f'every size of a ConvNet must be 1 or more: {self}')
        return model(_Layers(self.channels, self.dense, task.classes), task, RULES)


class _Layers(nn.Module):
    """Images [B, H, W, C] to float32 outputs [B, outputs]."""

    channels: tuple[int, ...]
    dense: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, size in enumerate(self.channels):
            x = nn.relu(nn.Dense(size, name=f'conv{layer}')(_patches(x)))
        x = nn.relu(nn.Dense(self.dense, name='dense')(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs, name='head')(x.astype(jnp.float32))


def _patches(x: jax.Array) -> jax.Array:
    """Every second 3 x 3 patch of [B, H, W, C], as [B, ceil(H / 2), ceil(W / 2), 9 C].

    Patches times a matrix is still a matrix product when simulated workers have different weights. XLA would turn a
    convolution into a grouped one, which took four times as long on CPU.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = [(row, column) for row in range(3) for column in range(3)]
    return jnp.concatenate([padded[:, i : i + height : 2, j : j + width : 2] for i, j in offsets], axis=-1)
