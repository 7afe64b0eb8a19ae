"""Every algorithm that synchronises, with every kind of codec: simulated, on a mesh, and on a mesh with a model axis.

Each update line trains, resumes bit for bit from a saved state, resumes with another number of workers, and sends the
bytes that the ledger reports. `python tests/laws/test_composition.py` measures and writes the table in
docs/composition.md.
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
from jaxdist.core.errors import InputError
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
    'accumulate': f'accumulate(every=2, update=mean({{}}) | {SGD})',
    'average': f'{SGD} | average(every=3, {{}})',
    'slowmo': f'{SGD} | slowmo(every=3, beta=0.3, {{}})',
    'diloco': f'{SGD} | diloco(every=3, {OUTER}, {{}})',
    'eager_diloco': f'{SGD} | eager_diloco(every=2, outer=sgd(0.7), {{}})',
    'streaming_diloco': f'{SGD} | streaming_diloco(every=4, fragments=2, {OUTER}, overlap=1, mixing=0.2, {{}})',
    'easgd': f'{SGD} | easgd(every=2, {{}})',
    'des_loc': "des_loc(optimizer=sgd(0.2, momentum=0.5), every=3, moments={{'trace': 6}}, {})",
    'post_local': 'post_local(optimizer=sgd(0.3), start=4, every=3, {})',
    'fed_admm': 'fed_admm(every=3, optimizer=sgd(0.3), rho=0.3, {})',
    'parameter_server': 'parameter_server(optimizer=sgd(0.2, momentum=0.5), {})',
    'gossip': f'{SGD} | gossip({{}})',
    'choco': f'{SGD} | choco({{}}, gamma=0.3)',
    'exact_diffusion': f'{SGD} | exact_diffusion()',
    'extra': f'{SGD} | extra()',
    'push_sum': f'{SGD} | push_sum()',
}
WITHOUT_CODECS = ('exact_diffusion', 'extra', 'push_sum')
CODECS = {
    'none': '',
    'int4, feedback': 'codec=int4(block=32), feedback=True',
    'top_k, feedback': 'codec=top_k(k=8, block=32), feedback=True',
    'power_sgd, feedback': 'codec=power_sgd(rank=4), feedback=True',
}
REFUSED = {
    ('parameter_server', 'power_sgd, feedback'): 'its parts are no matrices',
    ('gossip', 'power_sgd, feedback'): 'it takes means of all workers',
    ('choco', 'power_sgd, feedback'): 'it takes means of all workers',
    ('choco', 'none'): 'it is for codecs',
}
CELLS = [
    (name, codec)
    for name in LINES
    for codec in CODECS
    if (name, codec) not in REFUSED and not (name in WITHOUT_CODECS and codec != 'none')
]
PLACEMENTS: dict[str, Workers] = {
    'simulated': workers.simulated(W),
    'mesh': workers.on_mesh(mesh.make({'workers': W})),
    'workers x model': workers.on_mesh(mesh.make({'workers': W, 'model': 2})),
}


def text(name: str, codec: str) -> str:
    """The update line; the parameter server has one codec to push and one to pull."""
    arguments = CODECS[codec]
    if name == 'parameter_server' and arguments:
        each = arguments.removeprefix('codec=').removesuffix(', feedback=True')
        arguments = f'push={each}, pull={each}' + (', feedback=True' if 'feedback' in arguments else '')
    if name == 'choco':  # its differences are a feedback
        arguments = arguments.removesuffix(', feedback=True')
    return LINES[name].format(arguments)


def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    """Half the squared distance to a worker's targets."""
    del key
    terms = jax.tree.map(lambda p, x: 0.5 * jnp.sum((p - x) ** 2), params, dict(batch))
    return {'loss': sum(jax.tree.leaves(terms))}, jnp.float32(next(iter(batch.values())).shape[0])


@cache
def targets(count: int) -> dict[str, np.ndarray]:
    """One row per worker, around a common point far from the initial parameters."""
    rng = np.random.default_rng(0)
    centre = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: np.float32(c + 0.3 * rng.normal(size=(count, *c.shape))) for name, c in centre.items()}


def build_program(update: str, placement: Workers) -> Program:
    start = lambda key: {name: jnp.zeros(shape) for name, shape in SHAPES.items()}  # noqa: E731
    rules = RULES if placement.mesh is not None and 'model' in placement.mesh.shape else ()
    return make_step(loss, start, line.build(update), targets(placement.count), placement, rules=rules, guard=False)


def result(state: Any, program: Program, count: int) -> tuple[dict[str, np.ndarray], float]:
    """The workers' mean parameters, and their distance from the optimum as a fraction of the initial distance."""
    params = jax.device_get(jax.jit(lambda state: shared_params(state, program.layout))(state))
    optimum = {name: x.mean(0) for name, x in targets(count).items()}
    squared = sum(np.sum((params[name] - x) ** 2) for name, x in optimum.items())
    return params, float(np.sqrt(squared / sum(np.sum(x**2) for x in optimum.values())))


def distance(state: Any, program: Program, count: int) -> float:
    """The distance of `result`."""
    return result(state, program, count)[1]


class Measured(NamedTuple):
    """The results of one update line on one placement of the workers.

    Attributes:
        params: the workers' mean parameters after the steps.
        distance: the distance of `result`, after the steps.
        resumed: whether a state that is saved and loaded between two steps resumes with the same bits.
        sent: bytes that one worker sends on an average step.
        totals: the bytes over the worker axis in the trace, and in the compiled program.
    """

    params: dict[str, np.ndarray]
    distance: float
    resumed: bool
    sent: Fraction | None
    totals: tuple[Any, Any]


def measure(update: str, placement: Workers) -> Measured:
    program, batch = build_program(update, placement), targets(placement.count)
    # The first state is reloaded too: JAX compiles the step again for a state with another placement.
    state = middle = reloaded(program.init(jax.random.key(0)))
    for step in range(STEPS):
        state, _ = program.step(state, batch)
        middle = reloaded(state) if step == STEPS - 4 else middle
    jax.block_until_ready(state)  # two programs with collectives at once can deadlock on emulated devices
    for _ in range(3):
        middle, _ = program.step(middle, batch)
    pairs = zip(jax.tree.leaves(middle), jax.tree.leaves(state), strict=True)
    resumed = all(bits(a) == bits(b) for a, b in pairs)
    outcome = *result(state, program, W), resumed
    first = lambda: program.init(jax.random.key(0))  # noqa: E731
    if placement.mesh is None:
        sent = ledger.cost(program, batch, jax.random.key(0), steps=MEASURED).sent('workers')
        return Measured(*outcome, sent, ({}, {}))
    measured = ledger.measure(program.step, program.state, batch, placement.mesh, MEASURED, initial=first)
    traced = ledger.traced(program.run, placement.mesh.shape, program.state, batch)
    compiled = ledger.compiled(program.step.lower(program.state, batch).compile(), placement.mesh)
    return Measured(*outcome, measured.sent('workers'), (over_workers(traced), over_workers(compiled)))


def bits(x: jax.Array) -> bytes:
    data = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(data).tobytes()


def over_workers(entries: Any) -> Any:
    return ledger.totals(entry for entry in entries if 'workers' in entry.axes)


@cache
def cell(name: str, codec: str) -> dict[str, Measured]:
    return {label: measure(text(name, codec), placement) for label, placement in PLACEMENTS.items()}


def row(name: str, codec: str) -> str:
    """A row of the table: bytes on an average step, for each placement."""
    sent = [measured.sent for measured in cell(name, codec).values()]
    numbers = [f'{float(n):,.0f}' for n in sent]
    return f'| `{name}` | {codec} | {" | ".join(numbers)} |'


def table() -> str:
    rows = [row(*each) for each in CELLS]
    rows += [f'| `{name}` | {codec} | refused: {reason} | | |' for (name, codec), reason in REFUSED.items()]
    return '\n'.join([f'| algorithm | codec | {" | ".join(PLACEMENTS)} |', '|---|---|---|---|---|', *rows])


def test_every_algorithm_with_a_codec_has_a_line() -> None:
    arguments = {'codec', 'push'}
    names = {name for name, e in registry.algorithms().items() if arguments & set(inspect.signature(e.make).parameters)}
    assert names == set(LINES) - {'accumulate', *WITHOUT_CODECS}, 'whose mean has the codec'
    assert {name for name, entry in registry.algorithms().items() if entry.syncs} == set(LINES)


@pytest.mark.parametrize(
    'name, codec', [pytest.param(*each, marks=[SLOW] * (each != ('diloco', 'none'))) for each in CELLS]
)
def test_it_trains_resumes_and_sends_the_reported_bytes(name: str, codec: str) -> None:
    limit = 0.8 if 'power_sgd' in codec else 0.5  # random targets do not have a low rank
    for placement, measured in cell(name, codec).items():
        assert measured.distance < limit, (placement, measured.distance)
        assert measured.resumed, placement
        assert measured.sent, placement
    traced, compiled = cell(name, codec)['mesh'].totals
    assert traced == compiled
    # The trace counts a whole tensor where it has no codec; the compiled program sends a shard of it.
    traced, compiled = (sum(totals.values()) for totals in cell(name, codec)['workers x model'].totals)
    assert compiled <= traced
    if codec == 'none':
        simulated, *others = (measured.params for measured in cell(name, codec).values())
        for params in others:
            for path, p in params.items():
                np.testing.assert_allclose(p, simulated[path], 1e-5, 1e-5)
    assert row(name, codec) in PAGE.read_text(), (
        'the table differs: run `python tests/laws/test_composition.py` and review the changes'
    )


@SLOW
@pytest.mark.parametrize('name, codec', [each for each in CELLS if each[1] in ('none', 'int4, feedback')])
def test_it_resumes_with_another_number_of_workers(name: str, codec: str) -> None:
    """Resizing keeps the mean parameters, and training then converges as with a constant number of workers."""
    old, new = (build_program(text(name, codec), each) for each in (PLACEMENTS['simulated'], workers.simulated(3)))
    state = old.init(jax.random.key(0))
    for _ in range(5):
        state, _ = old.step(state, targets(W))
    before = distance(state, old, 3)
    state = resized(state, new)
    assert distance(state, new, 3) == pytest.approx(before, rel=1e-4)
    for _ in range(STEPS):
        state, _ = new.step(state, targets(3))
    assert distance(state, new, 3) < min(0.5, before)


@pytest.mark.parametrize(
    'name, error',
    [
        ('parameter_server', 'takes a codec of messages'),
        ('gossip', 'brings its own collectives of all workers'),
        ('choco', 'brings its own collectives of all workers'),
    ],
)
def test_refused_combinations(name: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        line.build(text(name, 'power_sgd, feedback')).init({'w': jnp.ones((16, 16))})


if __name__ == '__main__':
    head = PAGE.read_text().partition('\n| algorithm')[0]
    PAGE.write_text(f'{head}\n{table()}\n')
    sys.stdout.write(f'{PAGE.name}: {len(CELLS)} rows\n')
