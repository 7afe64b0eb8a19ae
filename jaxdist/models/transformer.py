"""A small decoder-only transformer: pre-norm, causal attention with rotary positions, tied embedding.

Vaswani et al. 2017 (arXiv 1706.03762); rotary positions: Su et al. 2021 (2104.09864); RMSNorm: Zhang and Sennrich 2019
(1910.07467); tied embedding: Press and Wolf 2017 (1608.05859); tensor parallelism: Shoeybi et al. 2019 (1909.08053).
"""

from dataclasses import dataclass

from jaxdist.core.errors import InputError
from jaxdist.core.types import Model, Task
from jaxdist.models.scoring import Rules, misfit, model

RULES: Rules = (
    (r'block\d+/qkv/kernel', (None, None, 'model', None)),  # over heads, so that no head is split
    (r'block\d+/proj/kernel', ('model', None, None)),
    (r'block\d+/up/kernel', (None, 'model')),
    (r'block\d+/down/kernel', ('model', None)),
)
"""Megatron's tensor parallelism: activations between a pair of matrices are sharded, with one all-reduce per pair."""


@dataclass(frozen=True)
class Transformer:
    """A decoder-only transformer for tokens."""

    layers: int = 2
    """Number of blocks of attention and MLP."""
    width: int = 128
    """Size of the residual stream; a multiple of twice `heads`."""
    heads: int = 4
    """Attention heads per block."""
    mlp: int = 4
    """Hidden size of the MLP, as a multiple of the width."""

    def build(self, task: Task) -> Model:
        """The model for a task of tokens, for contexts of any length.

        Raises:
            InputError: the task has no tokens, or the width is no multiple of twice the heads.

        >>> import jax
        >>> model = Transformer(layers=1, width=16, heads=2).build(Task('tokens', (8,), 256))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))
        >>> params['block0']['qkv']['kernel'].shape  # [width, 3, heads, width / heads]
        (16, 3, 2, 8)
        """
        from jaxdist.models import _layers

        if task.kind != 'tokens':
            raise misfit('Transformer', 'tokens', task)
        if min(self.layers, self.width, self.heads, self.mlp) < 1:
            raise InputError(f'every size of a Transformer must be 1 or more: {self}')
        if self.width % (2 * self.heads):
            raise InputError(
                f'width {self.width} cannot be split into {self.heads} heads of an even size (rotary '
                f'positions rotate pairs): use a multiple of {2 * self.heads}'
            )
        return model(_layers.Decoder(task.classes, self.layers, self.width, self.heads, self.mlp), task, RULES)
