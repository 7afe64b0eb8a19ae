"""Layouts that the search compiles for TPUs: exact bytes and memory, and one that does not fit."""

import dataclasses

import pytest
from jax.experimental.topologies import TopologyDescription as Chips

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.planner.layouts import Layout
from jaxdist.planner.machines import MACHINES
from jaxdist.training.experiment import Experiment
from jaxdist.training.layout_search import laid_out, search
from jaxdist.training.tpu_layouts import Compiled, compile_layout

SMALL = Experiment(
    update='mean() | adam(1e-3)',
    model=Transformer(layers=4, width=256, heads=2, stacked=True),
    data=Text(context=256),
    batch=32,
    precision='bfloat16',
    guard=False,
)


def compiled(experiment: Experiment, layout: Layout) -> tuple[Compiled, dict[str, float]]:
    """What the compiler says, and the estimated bytes that a device sends."""
    found = search(experiment, MACHINES['v5e'], layout.devices)
    (cost,) = (cost for cost in found.ranked if cost.layout == layout)
    return compile_layout(laid_out(experiment, cost), found.data, found.model, 'v5e'), cost.sent


def test_ring_attention_over_context(chips: Chips) -> None:
    out, estimated = compiled(SMALL, Layout(workers=2, context=4, again=True))
    assert out.fits
    assert float(out.sent['context']) == pytest.approx(estimated['context'], rel=0.01)
    assert float(out.sent['workers']) == pytest.approx(estimated['workers'], rel=0.01)


def test_a_slice_of_256_chips(chips: Chips) -> None:
    out, estimated = compiled(dataclasses.replace(SMALL, batch=512), Layout(workers=8, fsdp=16, model=2, again=True))
    assert out.fits
    assert out.memory < 2e9
    assert float(out.sent['model']) == pytest.approx(estimated['model'], rel=0.02)


def test_a_layout_that_does_not_fit(chips: Chips) -> None:
    wide = dataclasses.replace(SMALL, model=Transformer(layers=12, width=4096, heads=32, stacked=True))
    out, _ = compiled(wide, Layout(workers=4, again=True))
    assert not out.fits
    assert out.memory > 1.1 * MACHINES['v5e'].memory
    assert out.sent == {}
