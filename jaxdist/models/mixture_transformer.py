"""A decoder-only transformer whose MLPs are mixtures of experts.

Switch Transformer (Fedus et al. 2022, arXiv 2101.03961) with top-k routing as in GShard (Lepikhin et al. 2021,
2006.16668). All else is as in `Transformer`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.core.errors import InputError
from jaxdist.core.types import Batch, Model, Parts, Task
from jaxdist.models.experts import mixture
from jaxdist.models.parts import from_parts, walk
from jaxdist.models.scoring import Rules, score
from jaxdist.models.token_edge import check_decoder, token_edge
from jaxdist.models.transformer import attention_rules

EXPERTS: Rules = (
    ('experts/up', ('expert', None, 'model')),
    ('experts/down', ('expert', 'model', None)),
)
"""Experts are divided over the axis `expert`, and each of them over `model`."""


@dataclass(frozen=True)
class MixtureTransformer:
    """A decoder-only transformer for tokens, with a mixture of experts in each block; in parts."""

    layers: int = 2
    """Number of blocks of attention and experts."""
    width: int = 128
    """Size of the residual stream; a multiple of twice `heads`."""
    heads: int = 4
    """Attention heads per block."""
    mlp: int = 4
    """Hidden size of an expert, as a multiple of the width."""
    key_heads: int = 0
    """Heads of keys and values per block, which the heads of queries share evenly; 0 for as many as these."""
    experts: int = 8
    """Experts per block."""
    choices: int = 2
    """Experts that each token goes to."""
    capacity: float = 1.25
    """Room of an expert for the tokens of a sequence, as a multiple of an even share, beyond which they are dropped; 0
    for no limit."""
    balance: float = 0.01
    """Coefficient of the balance loss, which is added to the training loss for each block."""

    def build(self, task: Task) -> Model:
        """The model for a task of tokens, for contexts of any length.

        The training loss has the balance loss; the held-out loss does not. `balance` is 1 if experts share the tokens
        evenly, and `dropped` the share of choices that found no room.

        Raises:
            InputError: the task has no tokens, or sizes do not fit each other.

        >>> model = MixtureTransformer(layers=1, width=16, heads=2, experts=4).build(Task('tokens', (8,), 256))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))
        >>> params['blocks']['experts']['up'].shape  # [layers, experts, width, mlp * width]
        (1, 4, 16, 64)
        """
        from jaxdist.models import _layers

        check_decoder(self, task)
        if not 1 <= self.choices <= self.experts:
            raise InputError(f'choices={self.choices}: a token goes to 1 to {self.experts} experts')
        if self.capacity < 0 or self.balance < 0:
            raise InputError(f'capacity={self.capacity} and balance={self.balance} must be 0 or more')
        edge, norm = token_edge(task.classes, self.width), _layers.norm()
        attention = _layers.Attention(self.heads, self.key_heads or self.heads)

        def init(key: jax.Array) -> Any:
            keys, zeros, hidden = (
                jax.random.split(key, 4),
                jnp.zeros((1, task.shape[0], self.width)),
                self.mlp * self.width,
            )
            return {
                'attention': attention.init(keys[0], zeros)['params'],
                'norm': norm.init(key, zeros)['params'],
                'router': {'kernel': _normal(keys[1], self.width, self.experts)},
                'experts': {
                    'up': _normal(keys[2], self.experts, self.width, hidden),
                    'down': _normal(keys[3], self.experts, hidden, self.width),
                },
            }

        def block(params: Any, carried: Any) -> Any:
            x, terms = carried
            x = jnp.asarray(attention.apply({'params': params['attention']}, x))
            normed: Any = norm.apply({'params': params['norm']}, x)
            logits = jnp.einsum(
                'btd,dn->btn', normed, params['router']['kernel'], preferred_element_type=_layers.wide(x.dtype)
            )
            up, down = params['experts']['up'], params['experts']['down']
            expert = lambda rows, product: product(jax.nn.gelu(product(rows, up)), down)  # noqa: E731
            mixed = mixture(normed, logits, expert, choices=self.choices, capacity=self.capacity or None)
            return x + mixed.y, terms + jnp.stack([mixed.balance, mixed.dropped], -1)

        def first(params: Any, batch: Batch) -> Any:
            x = edge.embed(params, batch)
            # The balance and the dropped share of each token, of all blocks; varying as x does.
            return x, jnp.stack([jnp.zeros_like(x[..., 0], _layers.wide(x.dtype))] * 2, -1)

        def last(params: Any, carried: Any, batch: Batch) -> Any:
            x, terms = carried
            weight = batch.get('weight')
            sums, count = score(task, edge.logits(params, x), batch['tokens'][:, 1:], weight)
            terms = terms if weight is None else terms * weight[:, None, None].astype(terms.dtype)
            balance, dropped = terms.sum((0, 1))
            means = {'balance': balance / self.layers, 'dropped': dropped / self.layers}
            return {**sums, **means, 'loss': sums['loss'] + self.balance * balance}, count

        parts = Parts(first, block, last)

        def outputs(params: Any, batch: Batch) -> jax.Array:
            return edge.logits(params['edge'], walk(parts, params, batch)[0])

        def evaluate(params: Any, batch: Batch) -> Any:
            return score(task, outputs(params, batch), batch['tokens'][:, 1:], batch.get('weight'))

        rules = attention_rules('attention/', self.heads, self.key_heads) + EXPERTS
        stacked = tuple((f'blocks/{pattern}', (None, *dims)) for pattern, dims in rules)
        made = from_parts(edge.init, init, self.layers, parts, task=task, rules=stacked, outputs=outputs)
        return made._replace(evaluate=evaluate)


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    """A matrix, or one for each expert, that keeps the size of what it multiplies (LeCun et al. 1998)."""
    return jax.random.normal(key, shape) * shape[-2] ** -0.5
