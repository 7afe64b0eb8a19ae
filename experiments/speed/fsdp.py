"""Measures a fully sharded step against one that leaves it to the compiler: bytes and time.

    python experiments/speed/fsdp.py

Eight emulated devices, a transformer of 4 x 256. The compiler's step is a `jit` with parameters, moments and batch
sharded over the axis. Times are ratios within one run, in turns.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from measure import in_turns, ratios, runner

import jaxdist
from jaxdist import ledger
from jaxdist.core import mesh as meshes
from jaxdist.core.types import Task
from jaxdist.models import Transformer
from jaxdist.parallel import Fsdp, Pipeline

HERE = Path(__file__).parent
DEVICES, BATCH = 8, 32


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', DEVICES)
    results: dict[str, Any] = {'jax': jax.__version__}
    for stacked in (False, True):
        model = Transformer(layers=4, width=256, heads=4, stacked=stacked).build(Task('tokens', (64,), 256))
        steps = {'compiler': compilers(model), 'jaxdist': ours(model, Fsdp())}
        if stacked:
            steps['jaxdist, regather'] = ours(model, Fsdp(regather=True))
        runners = {name: run for name, (run, _) in steps.items()}
        times = in_turns(runners)
        for name, (_, facts) in steps.items():
            row = facts | ({} if name == 'compiler' else ratios(name, times[name], times['compiler']))
            results[f'{"stacked, " if stacked else ""}{name}'] = row
            print(f'{"stacked" if stacked else "":<8} {name:<20}', row)
    (HERE / 'fsdp.json').write_text(json.dumps(results, indent=2) + '\n')


def batch() -> dict[str, Any]:
    return {'tokens': np.random.default_rng(0).integers(0, 256, (BATCH, 65)).astype(np.int32)}


def read(program: Any, mesh: Any) -> dict[str, Any]:
    """Bytes that one device sends, by kind, and its temporaries."""
    sent: dict[str, int] = {}
    for row in ledger.compiled(program, mesh):
        sent[row.kind] = sent.get(row.kind, 0) + round(row.sent * (row.times or 0))
    return {'sent': sum(sent.values()), **sent, 'temporaries': program.memory_analysis().temp_size_in_bytes}


def ours(model: Any, fsdp: Fsdp) -> tuple[Callable[[], None], dict[str, Any]]:
    workers = jaxdist.on_mesh(meshes.make({'workers': 1, 'fsdp': DEVICES}))
    update = optax.chain(jaxdist.mean(), optax.adamw(1e-3))
    pipeline = Pipeline(model.parts) if model.parts else None
    made = jaxdist.make_step(
        model.loss, model.init, update, batch(), workers, guard=False, fsdp=fsdp, pipeline=pipeline
    )
    placed = jax.device_put(batch(), NamedSharding(workers.mesh, P('workers')))
    return runner(made.init(jax.random.key(0)), made.step, placed), read(
        made.step.lower(made.state, placed).compile(), workers.mesh
    )


def compilers(model: Any) -> tuple[Callable[[], None], dict[str, Any]]:
    """By the compiler, from the same shardings."""
    mesh = meshes.make({'workers': 1, 'fsdp': DEVICES})
    update = optax.adamw(1e-3)
    like = jaxdist.make_step(
        model.loss, model.init, optax.chain(jaxdist.mean(), update), batch(), jaxdist.on_mesh(mesh), guard=False,
        pipeline=Pipeline(model.parts) if model.parts else None,
    ).state  # fmt: skip
    shardings = jax.tree.map(lambda x: x.sharding, (like.params, like.opt_state[1]))

    def init(key: jax.Array) -> Any:
        params = model.init(key)
        return params, update.init(params)

    def step(state: Any, batch: Any) -> Any:
        def mean(params: Any) -> jax.Array:
            sums, count = model.loss(params, batch, None)
            return sums['loss'] / count

        params, opt_state = state
        value, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = update.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    placed = jax.device_put(batch(), NamedSharding(mesh, P('fsdp')))
    facts = read(jitted.lower(state, placed).compile(), mesh)
    return runner(state, jitted, placed), facts


if __name__ == '__main__':
    main()
