"""A small convolutional network for images."""

from dataclasses import dataclass

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
        from jaxdist.models import _layers

        if task.kind == 'tokens' or len(task.shape) != 3:
            raise misfit('ConvNet', 'images [H, W, C]', task)
        if min(*self.channels, self.dense, 1) < 1:
            raise InputError(f'every size of a ConvNet must be 1 or more: {self}')
        return model(_layers.ConvNetLayers(self.channels, self.dense, task.classes), task, RULES)
