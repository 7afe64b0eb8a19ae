"""The flax modules of the models; imported when a model is built, since flax takes long to import."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdist.models.attention import attend, local, positions


def wide(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Float32, or this dtype if it is wider: for what must not be rounded."""
    return jnp.promote_types(dtype, jnp.float32)


def norm() -> nn.Module:
    """The normalisation before the outputs."""
    return nn.RMSNorm()


class PerceptronLayers(nn.Module):
    """Inputs [B, ...] to float32 outputs [B, outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for layer, size in enumerate(self.hidden):
            x = nn.relu(nn.Dense(size, name=f'hidden{layer}')(x))
        return nn.Dense(self.outputs, name='head')(x.astype(wide(x.dtype)))


class ConvNetLayers(nn.Module):
    """Images [B, H, W, C] to float32 outputs [B, outputs]."""

    channels: tuple[int, ...]
    dense: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, size in enumerate(self.channels):
            x = nn.relu(nn.Dense(size, name=f'conv{layer}')(_patches(x)))
        x = nn.relu(nn.Dense(self.dense, name='dense')(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.outputs, name='head')(x.astype(wide(x.dtype)))


def _patches(x: jax.Array) -> jax.Array:
    """Every second 3 x 3 patch of [B, H, W, C], as [B, ceil(H / 2), ceil(W / 2), 9 C].

    Patches times a matrix is still a matrix product when simulated workers have different weights. XLA would turn a
    convolution into a grouped one, which took four times as long on CPU.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = [(row, column) for row in range(3) for column in range(3)]
    return jnp.concatenate([padded[:, i : i + height : 2, j : j + width : 2] for i, j in offsets], axis=-1)


class Decoder(nn.Module):
    """Tokens [B, T] to float32 logits [B, T, vocabulary], of this device's positions."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    mlp: int
    key_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(0.02), name='embed')
        x = embed(local(tokens))
        for layer in range(self.layers):
            x = Block(self.heads, self.key_heads, self.mlp, name=f'block{layer}')(x)
        x = nn.RMSNorm(name='norm')(x)
        return jnp.einsum('btd,vd->btv', x, embed.embedding, preferred_element_type=wide(x.dtype))


class Attention(nn.Module):
    """Attention added to its input, [B, T, D]."""

    heads: int
    key_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self._attended(x)

    def _attended(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        q, k, v = self._project(nn.RMSNorm(name='norm_attention')(x), width // self.heads)
        y = attend(_rotate(q), _rotate(k), v)
        return x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name='proj')(y)

    def _project(self, y: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, with heads of this size."""
        if self.key_heads == self.heads:
            qkv = nn.DenseGeneral((3, self.heads, size), use_bias=False, name='qkv')(y)
            return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        q = nn.DenseGeneral((self.heads, size), use_bias=False, name='q')(y)
        kv = nn.DenseGeneral((2, self.key_heads, size), use_bias=False, name='kv')(y)
        return q, kv[..., 0, :, :], kv[..., 1, :, :]


class Block(Attention):
    """One block, from [B, T, D] to [B, T, D]."""

    mlp: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = self._attended(x)
        y = nn.RMSNorm(name='norm_mlp')(x)
        y = nn.gelu(nn.Dense(self.mlp * width, use_bias=False, name='up')(y))
        return x + nn.Dense(width, use_bias=False, name='down')(y)


def _rotate(x: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotary positions: rotates pairs of entries of [B, T, H, K] by angles proportional to the position."""
    length, size = x.shape[1], x.shape[-1]
    angles = positions(length)[:, None, None] * base ** (-jnp.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
