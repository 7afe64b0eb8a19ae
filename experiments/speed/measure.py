"""Measures the speed of a step against a hand-written data-parallel one, and of simulated workers against devices.

    python experiments/speed/measure.py

Every number is a ratio of times that are measured in turns within one run, since a machine's speed varies over time.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from jaxdist import ledger, mean
from jaxdist.core import mesh, workers
from jaxdist.core.types import Model, Task
from jaxdist.models import Perceptron, Transformer
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
MANY = 32


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', MANY)
    results = {'step against a hand-written one, 8 devices': against_hand(*transformer(32))}
    for name, (model, batch) in {
        'perceptron 64-32-10': perceptron((32,)),
        'perceptron 64-1024-1024-10': perceptron((1024, 1024)),
        'transformer 2 x 128': transformer(32),
    }.items():
        results[f'{MANY} simulated workers against {MANY} emulated devices, {name}'] = against_devices(model, batch)
    for name, result in results.items():
        print(name, *(f'    {k:<36}{v}' for k, v in result.items()), sep='\n')
    (HERE / 'results.json').write_text(json.dumps({'jax': jax.__version__, **results}, indent=2) + '\n')


def against_hand(model: Model, batch: Any) -> dict[str, Any]:
    """The time of jaxdist's step over that of a plain `jit` step of the same model and mesh; and the bytes of each."""
    devices = mesh.make({'workers': 8})
    mesh_workers, optimiser = workers.on_mesh(devices), optax.adamw(1e-3)
    put = jax.device_put(batch, NamedSharding(devices, jax.P('workers')))
    steps = {'hand-written': hand_written(model, optimiser, devices)}
    for guard in (False, True):
        program = make_step(model.loss, model.init, optax.chain(mean(), optimiser), batch, mesh_workers, guard=guard)
        steps[f'jaxdist, guard {"on" if guard else "off"}'] = (program.init(jax.random.key(0)), program.step)
    sent = {
        name: sum(e.sent for e in ledger.compiled(step.lower(state, put).compile(), devices))
        for name, (state, step) in steps.items()
    }
    times = in_turns({name: runner(state, step, put) for name, (state, step) in steps.items()})
    base = times.pop('hand-written')
    out: dict[str, Any] = {}
    for name, seconds in times.items():
        out |= ratios(name, seconds, base)
    return out | {f'{name}: bytes sent': int(n) for name, n in sent.items()}


def hand_written(model: Model, optimiser: Any, devices: Any) -> tuple[Any, Any]:
    """Data parallelism as in the JAX documentation: the compiler inserts the all-reduce."""
    whole = NamedSharding(devices, jax.P())
    params = model.init(jax.random.key(0))

    def step(state: Any, batch: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            sums, count = model.loss(params, batch, jax.random.key(0))
            return sums['loss'] / count

        value, grads = jax.value_and_grad(loss)(state[0])
        updates, opt_state = optimiser.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    state = jax.device_put((params, optimiser.init(params)), whole)
    return state, jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))


def against_devices(model: Model, batch: Any) -> dict[str, Any]:
    """The time of a step of simulated workers over that of as many emulated devices."""
    devices = mesh.make({'workers': MANY})
    update = optax.chain(mean(), optax.adamw(1e-3))
    runners = {}
    for name, place in (('devices', workers.on_mesh(devices)), ('simulated', workers.simulated(MANY))):
        program = make_step(model.loss, model.init, update, batch, place)
        rows = NamedSharding(devices, jax.P('workers')) if place.mesh is not None else None
        runners[name] = runner(program.init(jax.random.key(0)), program.step, jax.device_put(batch, rows))
    times = in_turns(runners)
    return dict(ratios('simulated', times['simulated'], times['devices']))


def runner(state: Any, step: Any, batch: Any) -> Callable[[], None]:
    """A function that takes one step at each call, and waits for it."""
    states = [state]

    def run() -> None:
        states[0], out = step(states[0], batch)
        jax.block_until_ready(out)

    return run


def in_turns(runners: dict[str, Callable[[], None]], rounds: int = 30) -> dict[str, list[tuple[float, float]]]:
    """Seconds per step by the clock and of all processors, of each runner once per round, after two warm-up rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for turn in range(rounds + 2):
        for name, run in runners.items():
            start = time.perf_counter(), time.process_time()
            run()
            if turn >= 2:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def ratios(name: str, ours: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, str]:
    """The median and the quartiles of the ratios within a round, by the clock and by processor time."""
    out = {}
    for i, kind in enumerate(('clock', 'processors')):
        low, middle, high = statistics.quantiles([a[i] / b[i] for a, b in zip(ours, base, strict=True)], n=4)
        out[f'{name}: {kind}'] = f'{middle:.3f} ({low:.3f} to {high:.3f})'
    return out


def transformer(size: int) -> tuple[Model, Any]:
    tokens = np.random.default_rng(0).integers(0, 256, (size, 65)).astype(np.int32)
    return Transformer(layers=2, width=128, heads=4).build(Task('tokens', (64,), 256)), {'tokens': tokens}


def perceptron(hidden: tuple[int, ...], examples: int = 256) -> tuple[Model, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(examples, 64)).astype(np.float32), rng.integers(0, 10, examples).astype(np.int32)
    return Perceptron(hidden).build(Task('classes', (64,), 10)), {'x': x, 'y': y}


if __name__ == '__main__':
    main()
