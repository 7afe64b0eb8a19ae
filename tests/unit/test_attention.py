"""Attention over sequences that devices share, beside attention to a whole sequence: values, gradients, bytes, work."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxdist import ledger
from jaxdist.core import mesh as meshes
from jaxdist.models.attention import Attention, attend, attention_by
from jaxdist.models.attention.zigzag import order

SCHEMES = get_args(Attention)
SPEC = P(None, 'context')


def arrays(heads: int, keys: int, dtype: Any = np.float64) -> list[np.ndarray]:
    """Queries, keys, values, and weights of the outputs: 2 sequences of 16 positions, and heads of 4 entries."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 16, n, 4)).astype(dtype) for n in (heads, keys, keys, heads)]


def plain(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Attention by loops in NumPy."""
    out = np.zeros_like(q)
    heads, share = q.shape[2], q.shape[2] // k.shape[2]
    for b, h, t in np.ndindex(q.shape[0], heads, q.shape[1]):
        seen = slice(t + 1) if causal else slice(None)
        s = k[b, seen, h // share] @ q[b, t, h] / np.sqrt(q.shape[3])
        p = np.exp(s - s.max())
        out[b, t, h] = p @ v[b, seen, h // share] / p.sum()
    return out


def value(causal: bool) -> Callable[..., jax.Array]:
    return lambda q, k, v, w: jnp.sum(attend(q, k, v, causal) * w)


def divided(scheme: Attention, causal: bool, args: list[Any], **axes: int) -> tuple[Any, Any]:
    """The output and the gradients on a mesh, in the order of positions; and the compiled program with its mesh."""
    mesh = meshes.make(meshes.axis_table(**axes))
    lie = order(axes['context'], args[0].shape[1] // axes['context'])

    def on_device(*args: Any) -> Any:
        with attention_by(scheme):
            return attend(*args[:3], causal), *jax.grad(value(causal), (0, 1, 2))(*args)

    def worker(*args: Any) -> Any:
        if 'model' in axes:
            args = jax.lax.with_sharding_constraint(args, P(None, None, 'model'))
        return jax.shard_map(on_device, in_specs=(SPEC,) * 4, out_specs=SPEC, axis_names={'context'})(*args)

    code = jax.shard_map(worker, mesh=mesh, in_specs=P('workers'), out_specs=P('workers'), axis_names={'workers'})
    compiled = jax.jit(code).lower(*(x[:, lie] for x in args)).compile()
    out = compiled(*(x[:, lie] for x in args))
    return jax.tree.map(lambda x: np.asarray(x)[:, np.argsort(lie)], out), (compiled, mesh)


CASES = [
    pytest.param(scheme, causal, keys, marks=[pytest.mark.slow] * ((causal, keys) != (True, 2)))
    for scheme in SCHEMES
    for causal in (True, False)
    for keys in (4, 2)
]


@pytest.mark.parametrize('scheme, causal, keys', CASES)
def test_outputs_and_gradients_are_those_of_a_whole_sequence(scheme: Attention, causal: bool, keys: int) -> None:
    with jax.enable_x64(True):
        args = arrays(4, keys)
        out, *grads = divided(scheme, causal, args, workers=2, context=2 if scheme == 'ulysses' else 4)[0]
        np.testing.assert_allclose(out, plain(*args[:3], causal), rtol=1e-12, atol=1e-13)
        expected = jax.grad(value(causal), (0, 1, 2))(*map(jnp.asarray, args))
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('causal', [True, False])
def test_attention_on_one_device_is_that_of_the_loops(causal: bool) -> None:
    q, k, v, _ = arrays(4, 2, np.float32)
    np.testing.assert_allclose(attend(q, k, v, causal), plain(q, k, v, causal), rtol=2e-5, atol=2e-6)


def sent(scheme: Attention, n: int, b: int, t: int, h: int, g: int, size: int) -> dict[str, Fraction]:
    """The formulas for the bytes of one device, forward and backward, twice the forward ones for the output too."""
    keys, queries = Fraction(b * t * g * 4 * size, n), Fraction(b * t * h * 4 * size, n)
    if scheme == 'ring':
        return {'permute': (2 + 2) * (n - 1) * keys + 2 * n * keys}
    if scheme == 'gathered':
        return {'all_gather': 2 * (n - 1) * keys, 'reduce_scatter': 2 * (n - 1) * keys}
    return {'all_to_all': 2 * Fraction(n - 1, n) * (2 * queries + 2 * keys)}


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('axes', [{'context': 4}, {'workers': 1, 'context': 4, 'model': 2}])
def test_bytes_of_compiled_programs_are_those_of_the_formulas(scheme: Attention, axes: dict[str, int]) -> None:
    args = arrays(16, 8, np.float32)
    compiled, mesh = divided(scheme, True, args, **{'workers': 2, **axes})[1]
    rows = [row for row in ledger.compiled(compiled, mesh) if row.axes == ('context',)]
    got: dict[str, Fraction] = {}
    for row in rows:
        got[row.kind] = got.get(row.kind, Fraction(0)) + row.sent * (row.times or 1)
    expected = sent(scheme, 4, 2 // mesh.shape['workers'], 16, 16, 8, 4)
    assert got == {kind: x / axes.get('model', 1) for kind, x in expected.items()}
