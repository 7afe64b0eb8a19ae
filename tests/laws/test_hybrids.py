"""Every algorithm that synchronises, on workers of several devices: fully sharded, with a model axis, in stages.

Meshes and codecs are chosen in turn: every algorithm has an exact mean, and every second one a codec as well.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tree_fixtures import GOSSIP, LINES

from jaxdist import line
from jaxdist.core import mesh, workers
from jaxdist.core.program import Program
from jaxdist.core.types import Parts
from jaxdist.laws.universal import reloaded
from jaxdist.models import from_parts
from jaxdist.parallel import Pipeline
from jaxdist.training.step import make_step, shared_params

W, STEPS = 2, 8
MESHES = [
    {'workers': W, 'fsdp': 4},
    {'workers': W, 'fsdp': 2, 'model': 2},
    {'workers': W, 'stage': 2, 'fsdp': 2},
    {'workers': W, 'stage': 4},
    {'workers': W, 'stage': 2, 'model': 2},
]
CODECS = ['int4(block=32)', 'top_k(k=8, block=32)', 'power_sgd(rank=4)']
PARTS = Parts(
    first=lambda edge, batch: batch['x'] @ edge['in'],
    block=lambda row, x: x + jnp.tanh(x @ row['up'] + row['bias']) @ row['down'],
    last=lambda edge, x, batch: ({'loss': 0.5 * jnp.sum((x @ edge['out'] - batch['y']) ** 2)}, x.shape[0]),
)


def edge(key: jax.Array) -> Any:
    return {'in': 0.3 * jax.random.normal(key, (6, 16)), 'out': jnp.ones(16) / 16}


def block(key: jax.Array) -> Any:
    up, down = (
        0.2 * jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), ((16, 12), (12, 16)), strict=True)
    )
    return {'up': up, 'down': down, 'bias': jnp.zeros(12)}


RULES = (('blocks/up', (None, None, 'model')), ('blocks/bias', (None, 'model')), ('blocks/down', (None, 'model', None)))
MODEL = from_parts(edge, block, 4, PARTS, rules=RULES)


def data() -> dict[str, np.ndarray]:
    """A regression that is not the same on both workers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6)).astype(np.float32)
    return {'x': x, 'y': x[:, 0] * x[:, 1] + x[:, 2] + np.repeat([0.2, -0.2], 8).astype(np.float32)}


BATCH = data()


def cells() -> list[Any]:
    """(name of the line, number of the mesh, codec or '')."""
    chosen = []
    names = [name for name in LINES if name not in ('fed_adagrad', 'fed_yogi', *GOSSIP)]  # outer optimisers as fed_adam
    for number, name in enumerate([*names, *GOSSIP]):
        chosen.append((name, number % 5, ''))
        if number % 2 == 0 and '{}' in LINES[name]:
            codecs = [codec for codec in CODECS if name not in GOSSIP or 'power_sgd' not in codec]  # it has collectives
            chosen.append((name, (number // 2) % 5, codecs[(number // 2) % len(codecs)]))
    return chosen


def text(name: str, codec: str) -> str:
    """The line, with a third of its learning rates: they are for a quadratic."""
    if not codec:
        update = LINES[name].format('')
    elif name == 'parameter_server':
        codec = 'int4(block=32)' if 'power_sgd' in codec else codec  # its parts are no matrices
        update = LINES[name].format(f'push={codec}, pull={codec}, feedback=True')
    else:
        update = LINES[name].format(f'codec={codec}, feedback=True')
    for rate, less in (
        ('sgd(0.3', 'sgd(0.1'),
        ('sgd(0.2', 'sgd(0.07'),
        ('outer=fed_adagrad(0.1', 'outer=fed_adagrad(0.01'),
    ):
        update = update.replace(rate, less)
    return update


def build(update: str, **axes: int) -> Program[Any]:
    placement = workers.on_mesh(mesh.make(axes))
    rules = RULES if len(axes) > 1 else ()
    pipeline = Pipeline(PARTS, 2)
    return make_step(MODEL.loss, MODEL.init, line.build(update), BATCH, placement, rules=rules, pipeline=pipeline)


def trained(program: Program[Any], state: Any, steps: int) -> Any:
    for _ in range(steps):
        state, _ = jax.block_until_ready(program.step(state, BATCH))
    return state


def parameters(program: Program[Any], state: Any) -> Any:
    return jax.device_get(jax.jit(lambda s: shared_params(s, program.layout))(state))


@cache
def expected(name: str) -> Any:
    """The parameters with an exact mean, on workers of one device each."""
    program = build(text(name, ''), workers=W)
    return parameters(program, trained(program, program.init(jax.random.key(0)), STEPS))


def loss(params: Any) -> float:
    return float(MODEL.loss(params, BATCH, None)[0]['loss'])


QUICK = ('diloco', '')
"""The name and the codec of the one in the quick run."""


@pytest.mark.parametrize(
    'name, axes, codec', [pytest.param(*cell, marks=[pytest.mark.slow] * (cell[::2] != QUICK)) for cell in cells()]
)
def test_hybrid(name: str, axes: int, codec: str) -> None:
    program = build(text(name, codec), **MESHES[axes])
    first = program.init(jax.random.key(0))
    before = loss(parameters(program, first))
    state = trained(program, first, STEPS - 3)
    saved = reloaded(state)
    state = trained(program, state, 3)
    for a, b in zip(jax.tree.leaves(trained(program, saved, 3)), jax.tree.leaves(state), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    params, exact = parameters(program, state), expected(name)
    if not codec and name != 'choco':
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-6), params, exact)
        return
    # The blocks of a codec begin anew in each shard, so the numbers are near, and not the same.
    assert loss(params) < 0.6 * before + 0.4 * loss(exact), (loss(params), loss(exact), before)


def table() -> str:
    """A row for each algorithm: the mesh of its exact mean, and that of its codec."""
    of: dict[str, list[str]] = {}
    for name, axes, codec in cells():
        shape = ' x '.join(f'{size} {axis}' for axis, size in MESHES[axes].items())
        of.setdefault(name, []).append(f'`{codec}` on {shape}' if codec else shape)
    rows = [f'| `{name}` | {found[0]} | {"".join(found[1:])} |' for name, found in of.items()]
    return '\n'.join(['| line with | exact mean on | codec on |', '|---|---|---|', *rows])


def test_the_page_has_the_meshes() -> None:
    page = Path(__file__).parents[2] / 'docs' / 'composition.md'
    assert table() in page.read_text(), f'the table of meshes differs; it is\n{table()}'
