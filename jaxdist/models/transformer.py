"""A small decoder-only transformer: pre-norm, causal attention with rotary positions, tied embedding.

Vaswani et al. 2017 (arXiv 1706.03762); rotary positions: Su et al. 2021 (2104.09864); RMSNorm: Zhang and Sennrich 2019
(1910.07467); grouped queries: Ainslie et al. 2023 (2305.13245); tied embedding: Press and Wolf 2017 (1608.05859);
tensor parallelism: Shoeybi et al. 2019 (1909.08053).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Model, Parts, Task
from jaxdist.models.parts import from_parts, walk
from jaxdist.models.scoring import Rules, model, score
from jaxdist.models.token_edge import check_decoder, token_edge


def attention_rules(prefix: str, heads: int, key_heads: int) -> Rules:
    """Megatron's rules for attention: over heads, so that none is split, with one all-reduce.

    Args:
        prefix: the path before the names of the matrices.
        heads: heads of queries.
        key_heads: heads of keys and values; 0 for as many.

    >>> [pattern for pattern, dims in attention_rules('block0/', 4, 2)]
    ['block0/q/kernel', 'block0/kv/kernel', 'block0/proj/kernel']
    """
    grouped: Rules = (('q/kernel', (None, 'model', None)), ('kv/kernel', (None, None, 'model', None)))
    same: Rules = (('qkv/kernel', (None, None, 'model', None)),)
    rules = (same if key_heads in (0, heads) else grouped) + (('proj/kernel', ('model', None, None)),)
    return tuple((prefix + pattern, dims) for pattern, dims in rules)


MLP: Rules = (('up/kernel', (None, 'model')), ('down/kernel', ('model', None)))
"""Megatron's tensor parallelism: activations between a pair of matrices are sharded, with one all-reduce."""


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
    key_heads: int = 0
    """Heads of keys and values per block, which the heads of queries share evenly; 0 for as many as these."""
    stacked: bool = False
    """Store the blocks as rows of one tensor for each of their parameters: for pipelines, and to compile many layers in
    the time of one. Each block is evaluated again for the gradient."""
    chunks: int = 1
    """Chunks in which stacked blocks are stored, for an interleaved pipeline: each stage has a part of every chunk."""
    spare: int = 0
    """Stacked blocks that are stored and not evaluated, so that the last stage of a pipeline, which has the head too,
    has fewer."""

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

        check_decoder(self, task)
        if self.stacked:
            return self._stacked(task)
        if self.chunks > 1 or self.spare:
            raise InputError('chunks and spare blocks are of stacked blocks: stacked=True')
        sizes = self.layers, self.width, self.heads, self.mlp, self.key_heads or self.heads
        rules = tuple((rf'block\d+/{pattern}', dims) for pattern, dims in self._rules())
        return model(_layers.Decoder(task.classes, *sizes), task, rules)

    def _rules(self) -> Rules:
        """The sharding rules of one block."""
        return attention_rules('', self.heads, self.key_heads) + MLP

    def _stacked(self, task: Task) -> Model:
        """The model with its blocks as rows of one tensor."""
        from jaxdist.models import _layers

        one = _layers.Block(self.heads, self.key_heads or self.heads, self.mlp)
        edge, length = token_edge(task.classes, self.width), task.shape[0]

        def block(key: jax.Array) -> Any:
            return one.init(key, jnp.zeros((1, length, self.width)))['params']

        parts = Parts(
            first=edge.embed,
            block=lambda params, x: one.apply({'params': params}, x),
            last=lambda params, x, batch: score(
                task, edge.logits(params, x), batch['tokens'][:, 1:], batch.get('weight')
            ),
            chunks=self.chunks,
            spare=self.spare,
        )

        def outputs(params: Any, batch: Batch) -> jax.Array:
            return edge.logits(params['edge'], walk(parts, params, batch))

        rules = tuple((f'blocks/{pattern}', (None, *dims)) for pattern, dims in self._rules())
        return from_parts(edge.init, block, self.layers, parts, task=task, rules=rules, outputs=outputs)
