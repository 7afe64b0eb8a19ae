"""Every algorithm through which workers meet, with every kind of codec, simulated, on a mesh, and on a mesh with a
model axis.

Each such line trains, goes on bit for bit from a saved state, goes on with another number of workers, and is metered as
compiled. The table in docs/composition.md is measured here: `python tests/laws/test_composition.py` writes it.
"""

import inspect
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import ledger, line
from jaxdist.core import mesh, registry, workers
from jaxdist.core.program import Program
from jaxdist.core.workers import Workers
from jaxdist.laws.universal import reloaded
from jaxdist.training.resize import resized
from jaxdist.training.step import make_step, shared_params

PAGE = Path(__file__).parents[2] / 'docs' / 'composition.md'
SLOW = pytest.mark.slow
W, STEPS, MEASURED = 4, 12, 48
SHAPES = {'b': (5,), 'v': (16, 6), 'w': (24, 16), 'x': (3, 8, 7)}
RULES = (('w', (None, 'model')), ('v', ('model', None)), ('x', (None, 'model', None)))
SGD, OUTER = 'sgd(0.3)', 'outer=sgd(1.0, momentum=0.3)'
LINES = {
    'mean': f'mean({{}}) | {SGD}',
    'average': f'{SGD} | average(every=3, {{}})',
    'slowmo': f'{SGD} | slowmo(every=3, beta=0.3, {{}})',
    'diloco': f'{SGD} | diloco(every=3, {OUTER}, {{}})',
    'eager_diloco': f'{SGD} | eager_diloco(every=2, outer=sgd(0.7), {{}})',
    'streaming_diloco': f'{SGD} | streaming_diloco(every=4, fragments=2, {OUTER}, overlap=1, mixing=0.2, {{}})',
    'easgd': f'{SGD} | easgd(every=2, {{}})',
    'des_loc': "des_loc(optimizer=sgd(0.2, momentum=0.5), every=3, moments={{'trace': 6}}, {})",
    'fed_admm': 'fed_admm(every=3, optimizer=sgd(0.3), rho=0.3, {})',
    'parameter_server': 'parameter_server(optimizer=sgd(0.2, momentum=0.5), {})',
}
CODECS = {
    'none': '',
    'int4, feedback': 'codec=int4(block=32), feedback=True',
    'top_k, feedback': 'codec=top_k(k=8, block=32), feedback=True',
    'power_sgd, feedback': 'codec=power_sgd(rank=4), feedback=True',
}
NOT = {('parameter_server', 'power_sgd, feedback'): 'its parts are no matrices'}
CELLS = [(name, codec) for name in LINES for codec in CODECS if (name, codec) not in NOT]
PLACES: dict[str, Workers] = {
    'simulated': workers.simulated(W),
    'mesh': workers.on_mesh(mesh.make({'workers': W})),
    'workers x model': workers.on_mesh(mesh.make({'workers': W, 'model': 2})),
}


def text(name: str, codec: str) -> str:
    """The line; the server has a codec each way."""
    words = CODECS[codec]
    if name == 'parameter_server' and words:
        made = words.removeprefix('codec=').removesuffix(', feedback=True')
        words = f'push={made}, pull={made}' + (', feedback=True' if 'feedback' in words else '')
    return LINES[name].format(words)


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    """Half the squared distance to a worker's targets."""
    del key
    terms = jax.tree.map(lambda p, x: 0.5 * jnp.sum((p - x) ** 2), params, dict(batch))
    return {'loss': sum(jax.tree.leaves(terms))}, jnp.float32(next(iter(batch.values())).shape[0])


@cache
def targets(count: int) -> dict[str, np.ndarray]:
    """One row a worker, around a common point far from where training begins."""
    rng = np.random.default_rng(0)
    centre = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: np.float32(c + 0.3 * rng.normal(size=(count, *c.shape))) for name, c in centre.items()}


def program(update: str, where: Workers) -> Program:
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    rules = RULES if where.mesh is not None and 'model' in where.mesh.shape else ()
    return make_step(loss, start, line.build(update), targets(where.count), where, rules=rules, guard=False)


def end_of(state: Any, made: Program, count: int) -> tuple[dict[str, np.ndarray], float]:
    """The workers' mean parameters, and their distance from the best as a part of that from the start."""
    params = jax.device_get(jax.jit(lambda state: shared_params(state, made.layout))(state))
    best = {name: x.mean(0) for name, x in targets(count).items()}
    off = sum(np.sum((params[name] - x) ** 2) for name, x in best.items())
    return params, float(np.sqrt(off / sum(np.sum(x**2) for x in best.values())))


def distance(state: Any, made: Program, count: int) -> float:
    """The distance of `end_of`."""
    return end_of(state, made, count)[1]


class Seen(NamedTuple):
    """What one line did in one place.

    Attributes:
        params: the workers' mean after the steps.
        far: see `distance`, after the steps.
        resumed: whether a state that was saved and loaded on the way goes on with the same bits.
        sent: bytes that one worker sends on an average step.
        metered: the bytes over the worker axis that the trace shows, and those of the compiled program.
    """

    params: dict[str, np.ndarray]
    far: float
    resumed: bool
    sent: Fraction | None
    metered: tuple[Any, Any]


def seen(update: str, where: Workers) -> Seen:
    made, batch = program(update, where), targets(where.count)
    # Placed as a loaded state is: JAX compiles anew for a state that is not.
    state = middle = reloaded(made.init(jax.random.key(0)))
    for step in range(STEPS):
        state, _ = made.step(state, batch)
        middle = reloaded(state) if step == STEPS - 4 else middle
    for _ in range(3):
        middle, _ = made.step(middle, batch)
    pairs = zip(jax.tree.leaves(middle), jax.tree.leaves(state), strict=True)
    same = all(bits(a) == bits(b) for a, b in pairs)
    end = *end_of(state, made, W), same
    first = lambda: made.init(jax.random.key(0))  # noqa: E731
    if where.mesh is None:
        placed = program(update, workers.abstract(W))
        sizes = {'workers': W}
        rows = ledger.traced_step(placed.step, placed.state, batch, sizes, MEASURED, initial=first)
        return Seen(*end, ledger.Ledger(sizes, tuple(rows), {}).sent('workers'), ({}, {}))
    book = ledger.measure(made.step, made.state, batch, where.mesh, MEASURED, initial=first)
    traced = ledger.traced(made.run, where.mesh.shape, made.state, batch)
    compiled = ledger.compiled(made.step.lower(made.state, batch).compile(), where.mesh)
    return Seen(*end, book.sent('workers'), (over_workers(traced), over_workers(compiled)))


def bits(x: jax.Array) -> bytes:
    data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(data).tobytes()


def over_workers(entries: Any) -> Any:
    return ledger.totals(entry for entry in entries if 'workers' in entry.axes)


@cache
def cell(name: str, codec: str) -> dict[str, Seen]:
    return {place: seen(text(name, codec), where) for place, where in PLACES.items()}


def row(name: str, codec: str) -> str:
    """The row of the table: bytes on an average step."""
    found = cell(name, codec)
    sent = [found[place].sent for place in PLACES]
    numbers = [f'{float(n):,.0f}' for n in sent]
    return f'| `{name}` | {codec} | {" | ".join(numbers)} |'


def table() -> str:
    rows = [row(*each) for each in CELLS]
    rows += [f'| `{name}` | {codec} | refused: {why} | | |' for (name, codec), why in NOT.items()]
    return '\n'.join([f'| algorithm | codec | {" | ".join(PLACES)} |', '|---|---|---|---|---|', *rows])


def test_every_algorithm_with_a_codec_is_here() -> None:
    takes = {'codec', 'push'}
    found = {name for name, e in registry.algorithms().items() if takes & set(inspect.signature(e.make).parameters)}
    assert found == set(LINES)
    assert {name for name, entry in registry.algorithms().items() if entry.syncs} == found


@pytest.mark.parametrize(
    'name, codec', [pytest.param(*each, marks=[SLOW] * (each != ('diloco', 'none'))) for each in CELLS]
)
def test_it_trains_resumes_and_is_metered(name: str, codec: str) -> None:
    for place, found in cell(name, codec).items():
        assert found.far < (0.8 if 'power_sgd' in codec else 0.5), (place, found.far)  # random targets have no low rank
        assert found.resumed, place
        assert found.sent, place
    traced, compiled = cell(name, codec)['mesh'].metered
    assert traced == compiled
    # The trace does not know that the compiler sends a shard of what has no codec.
    traced, compiled = (sum(found.values()) for found in cell(name, codec)['workers x model'].metered)
    assert compiled <= traced
    if codec == 'none':
        simulated, *others = (found.params for found in cell(name, codec).values())
        for found in others:
            for path, p in found.items():
                np.testing.assert_allclose(p, simulated[path], 1e-5, 1e-5)
    assert row(name, codec) in PAGE.read_text(), (
        'run `python tests/laws/test_composition.py` and look at what has changed'
    )


@SLOW
@pytest.mark.parametrize('codec', ['none', 'int4, feedback'])
@pytest.mark.parametrize('name', LINES)
def test_it_goes_on_with_another_number_of_workers(name: str, codec: str) -> None:
    """Nothing is lost on the way, so it comes as near as if the number had never changed."""
    update, old, new = text(name, codec), program(text(name, codec), PLACES['simulated']), workers.simulated(3)
    state = old.init(jax.random.key(0))
    for _ in range(5):
        state, _ = old.step(state, targets(W))
    made = program(update, new)
    before = distance(state, old, 3)
    state = resized(state, made)
    assert distance(state, made, 3) == pytest.approx(before, rel=1e-4)
    for _ in range(STEPS):
        state, _ = made.step(state, targets(3))
    assert distance(state, made, 3) < min(0.5, before)


@pytest.mark.parametrize('name, codec', NOT)
def test_what_cannot_be_is_refused(name: str, codec: str) -> None:
    with pytest.raises(line.LineError, match='takes a codec of messages'):
        line.build(text(name, codec))


if __name__ == '__main__':
    head = PAGE.read_text().partition('\n| algorithm')[0]
    PAGE.write_text(f'{head}\n{table()}\n')
    sys.stdout.write(f'{PAGE.name}: {len(CELLS)} rows\n')
