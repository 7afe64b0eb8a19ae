"""A multi-layer perceptron for classification and regression."""

from dataclasses import dataclass

from jaxdist.core.errors import InputError
from jaxdist.core.types import Model, Task
from jaxdist.models.scoring import misfit, model


@dataclass(frozen=True)
class Perceptron:
    """A multi-layer perceptron on flattened inputs; without hidden layers, linear or softmax regression."""

    hidden: tuple[int, ...] = (64,)
    """Sizes of the hidden layers."""

    def build(self, task: Task) -> Model:
        """The model for a task of classes or values.

        The last hidden layer and the head are sharded over the `model` axis, as in Megatron; the rest is replicated.

        Raises:
            InputError: the task has tokens, or a hidden layer has no entries.

        >>> import jax
        >>> model = Perceptron(hidden=(5,)).build(Task('classes', (2, 2, 1), 3))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))
        >>> params['hidden0']['kernel'].shape, params['head']['kernel'].shape
        ((4, 5), (5, 3))
        """
        from jaxdist.models import _layers

        if task.kind == 'tokens':
            raise misfit('Perceptron', 'classes or values', task)
        if min(self.hidden, default=1) < 1:
            raise InputError(f'every hidden layer must have 1 entry or more: {self}')
        last = f'hidden{len(self.hidden) - 1}'
        rules = (
            (f'{last}/kernel', (None, 'model')),
            (f'{last}/bias', ('model',)),
            ('head/kernel', ('model', None)),
        )
        return model(_layers.PerceptronLayers(self.hidden, task.classes), task, rules if self.hidden else ())
