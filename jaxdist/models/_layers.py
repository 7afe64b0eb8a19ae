"""The flax modules of the models; imported when a model is built, since flax takes long to import."""

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    """Tokens [B, T] to float32 logits [B, T, vocabulary]."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    mlp: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(0.02), name='embed')
        x = embed(tokens)
        for layer in range(self.layers):
            x = Block(self.heads, self.mlp, name=f'block{layer}')(x)
        x = nn.RMSNorm(name='norm')(x)
        return jnp.einsum('btd,vd->btv', x, embed.embedding, preferred_element_type=wide(x.dtype))


class Block(nn.Module):
    """One block, from [B, T, D] to [B, T, D]."""

    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.RMSNorm(name='norm_attention')(x)
        qkv = nn.DenseGeneral((3, self.heads, width // self.heads), use_bias=False, name='qkv')(y)
        y = _attend(_rotate(qkv[..., 0, :, :]), _rotate(qkv[..., 1, :, :]), qkv[..., 2, :, :])
        x = x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name='proj')(y)
        y = nn.RMSNorm(name='norm_mlp')(x)
        y = nn.gelu(nn.Dense(self.mlp * width, use_bias=False, name='up')(y))
        return x + nn.Dense(width, use_bias=False, name='down')(y)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention over [B, T, H, K], with the softmax in float32.

    Written out, since at contexts of 64 to 128 it took a tenth less time on CPU than `jax.nn.dot_product_attention`.
    """
    scores = jnp.einsum('bthk,bshk->bhts', q, k, preferred_element_type=wide(q.dtype)) * q.shape[-1] ** -0.5
    causal = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    return jnp.einsum('bhts,bshk->bthk', weights.astype(v.dtype), v)


def _rotate(x: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotary positions: rotates pairs of entries of [B, T, H, K] by angles proportional to the position."""
    length, size = x.shape[1], x.shape[-1]
    angles = jnp.arange(length)[:, None, None] * base ** (-jnp.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
