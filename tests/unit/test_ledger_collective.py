"""Formulas of the bytes of one collective, and traced programs that the ledger refuses."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType

from jaxdist import ledger
from jaxdist.ledger.collective import axes_spanned, sent

P = jax.P
W = 'workers'


def test_unknown_collectives_and_meshes_are_refused() -> None:
    mesh = jax.sharding.AbstractMesh((4,), (W,), axis_types=(AxisType.Auto,))

    def broadcast(x: jax.Array) -> jax.Array:
        return lax.pbroadcast(x, (W,), 0)

    code = jax.shard_map(broadcast, mesh=mesh, in_specs=P(W), out_specs=P(W))
    with pytest.raises(NotImplementedError, match=r"'pbroadcast' sends over \('workers',\)"):
        ledger.traced(code, mesh.shape, jax.ShapeDtypeStruct((16, 2), 'float32'))
    code = jax.shard_map(lambda x: lax.psum(x, W), mesh=mesh, in_specs=P(W), out_specs=P())
    with pytest.raises(ValueError, match=r"for a mesh of \{'workers': 4\}, not for one of \{'workers': 8\}"):
        ledger.traced(code, {W: 8}, jax.ShapeDtypeStruct((16, 2), 'float32'))
    with pytest.raises(ValueError, match=r"over \['workers'\], but the mesh has the axes \{'w': 4\}"):
        ledger.traced(code, {'w': 4}, jax.ShapeDtypeStruct((16, 2), 'float32'))


def test_formulas_against_a_ring() -> None:
    """A ring all-reduce of n chunks sends n - 1 chunks to reduce and n - 1 to gather."""
    for n in (2, 3, 8):
        chunk = Fraction(5)
        ring = sum((chunk for _ in range(2) for _ in range(n - 1)), Fraction(0))
        assert sent('all_reduce', n * chunk, [n], n) == ring
        assert sent('reduce_scatter', n * chunk, [n], n) == sent('all_to_all', n * chunk, [n], n) == ring / 2
        assert sent('all_gather', chunk, [n], n) == ring / 2
    assert sent('all_reduce', Fraction(8), [4], 8) == 6  # half of the devices are in no group
    assert sent('all_gather', Fraction(8), [3, 1], 4) == 12


def test_groups_that_follow_no_axis_span_several() -> None:
    sizes = {'a': 2, 'b': 2, 'c': 2}
    assert axes_spanned([(0, 3), (1, 2)], sizes) == ('b', 'c')
    assert axes_spanned([(0, 1)], sizes) == ('c',)
    assert axes_spanned([(0,), (5,)], sizes) == ()


def test_what_a_ragged_exchange_sends_depends_on_data() -> None:
    mesh = jax.sharding.AbstractMesh((4,), (W,), axis_types=(AxisType.Auto,))

    def ragged(x: jax.Array) -> jax.Array:
        four = jnp.zeros(4, jnp.int32) + lax.axis_index(W)
        return lax.ragged_all_to_all(x, x, four, four, four, four, axis_name=W)

    code = jax.shard_map(ragged, mesh=mesh, in_specs=P(W), out_specs=P(W))
    found = ledger.traced(code, mesh.shape, jax.ShapeDtypeStruct((16, 2), 'float32'))
    assert [(each.kind, each.dtype, each.sent, each.times) for each in found] == [
        ('ragged_all_to_all', 'float32', 24, None)  # three quarters of four rows of eight bytes
    ]
