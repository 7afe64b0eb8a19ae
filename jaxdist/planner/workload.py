"""What the planner's formulas need of a model and its batch."""

from collections.abc import Mapping
from typing import NamedTuple


class Workload(NamedTuple):
    """A model of blocks, and its batch. FLOPs and bytes are those of one example, such as a sequence.

    Attributes:
        layers: the number of blocks L; 0 if the model has no parts, which makes it one block without stages.
        block: parameters of one block; of the whole model if it has no parts.
        edge: parameters outside of blocks.
        block_flops: FLOPs of the matrix products of one block, forward; backward is twice that.
        edge_flops: those outside of blocks.
        passed: bytes that go from block to block.
        kept: bytes that a block keeps for its backward pass if it is not evaluated again.
        head: bytes of the logits and their gradient.
        model_share: the share of a block's parameters that the model's rules shard over `model`.
        pairs: the all-reduces over `model` in the forward pass of a block.
        limits: for each axis, the number that its size has to divide. The axes `stage`, `context`, `expert` and `model`
            can only be used if they are in it.
        keys: bytes of the keys and values of one block.
        batch: examples of a step, of all workers.
        optimizer_bytes: bytes of optimiser state for each parameter; 8 for Adam.
        compute_bytes: bytes of a number in the dtype of the forward pass; 2 for bfloat16.
        expert_share: the share of a block's parameters that are those of experts.
        routed: bytes of one example that a block sends to experts, on all devices; of dropless experts its tokens.
        dropless: whether experts take all tokens, which each device then gathers.
        edge_share: the share of the parameters outside of blocks that the model's rules shard over `model`.
    """

    layers: int
    block: float
    edge: float
    block_flops: float
    edge_flops: float
    passed: float
    kept: float
    head: float
    model_share: float
    pairs: int
    limits: Mapping[str, int]
    keys: float
    batch: int
    optimizer_bytes: float = 8
    compute_bytes: int = 2
    expert_share: float = 0.0
    routed: float = 0.0
    dropless: bool = False
    edge_share: float = 0.0

    @property
    def blocks(self) -> int:
        """The number of blocks, at least 1."""
        return max(self.layers, 1)

    @property
    def parameters(self) -> float:
        """All parameters."""
        return self.blocks * self.block + self.edge


def decoder(
    layers: int, width: int, mlp: int, vocabulary: int, context: int, batch: int, heads: int, key_heads: int = 0
) -> Workload:
    """The workload of a decoder-only transformer with a gated MLP, a tied embedding and Adam, in bfloat16.

    The causal half of the attention's products is counted, and its scores are not kept, as in FlashAttention (Dao et
    al. 2022, arXiv 2205.14135). Logits are kept in bfloat16 and float32. Norms and biases have no parameters here.

    Args:
        layers: the number of blocks.
        width: the size of the residual stream.
        mlp: the inner size of the MLP.
        vocabulary: the number of tokens that there are.
        context: tokens of a sequence.
        batch: sequences of a step.
        heads: attention heads.
        key_heads: heads of keys and values; 0 for as many as `heads`.

    >>> round(decoder(16, 2048, 8192, 128256, 4096, batch=1024, heads=32, key_heads=8).parameters / 1e9, 2)
    1.24
    """
    keys = 2 * width * (key_heads or heads) // heads
    block = width * (2 * width + keys + 3 * mlp)
    return Workload(
        layers=layers,
        block=block,
        edge=vocabulary * width,
        block_flops=2 * block * context + 2 * context**2 * width,
        edge_flops=2 * vocabulary * width * context,
        passed=2 * context * width,
        # The residual stream twice, each normalised; queries, keys, values, attention; gate, up and their product.
        kept=2 * context * (6 * width + keys + 3 * mlp),
        head=6 * context * vocabulary,
        model_share=1.0,
        pairs=2,
        limits={'stage': layers, 'model': key_heads or heads, 'context': context // 2},
        keys=2 * context * keys,
        batch=batch,
    )
