"""Measures a step with virtual shards against the same step without: time and bytes.

    NPROC=8 python experiments/speed/virtual_shards.py

Eight virtual shards on one and on eight of eight emulated devices, in turns. The digest of the state after the same
steps must be the same on all numbers of devices.
"""

import hashlib
import json
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
from jaxdist.core.program import Program
from jaxdist.core.types import Task
from jaxdist.models import Perceptron, Transformer

HERE = Path(__file__).parent
SHARDS, BATCH, STEPS = 8, 64, 5
RNG = np.random.default_rng(0)
MODELS: dict[str, tuple[Any, Any]] = {
    'transformer 2 x 128': (
        Transformer(layers=2, width=128).build(Task('tokens', (64,), 256)),
        {'tokens': RNG.integers(0, 256, (BATCH, 65)).astype(np.int32)},
    ),
    'perceptron 64-1024-1024-10': (
        Perceptron(hidden=(1024, 1024)).build(Task('classes', (64,), 10)),
        {'x': RNG.normal(size=(BATCH, 64)).astype(np.float32), 'y': RNG.integers(0, 10, BATCH).astype(np.int32)},
    ),
}


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)
    results: dict[str, Any] = {'jax': jax.__version__}
    for name, (model, batch) in MODELS.items():
        digests = {workers: digest(program(model, batch, workers, SHARDS), batch) for workers in (1, 2, 4, 8)}
        assert len(set(digests.values())) == 1, digests
        for workers in (1, 8):
            programs = {shards: program(model, batch, workers, shards) for shards in (0, SHARDS)}
            times = in_turns({str(shards): running(made, batch) for shards, made in programs.items()})
            sent = {shards: bytes_sent(made, batch) for shards, made in programs.items()}
            row = {'sent': sent[SHARDS], 'without': sent[0], **ratios(name, times[str(SHARDS)], times['0'])}
            results[f'{name}, {workers} devices'] = row
            print(f'{name}, {workers} devices', row)
    (HERE / 'virtual_shards.json').write_text(json.dumps(results, indent=2) + '\n')


def program(model: Any, batch: Any, workers: int, shards: int) -> Program[Any]:
    update = optax.adamw(1e-3) if shards else optax.chain(jaxdist.mean(), optax.adamw(1e-3))
    mesh = meshes.make({'workers': workers})
    return jaxdist.make_step(model.loss, model.init, update, batch, jaxdist.on_mesh(mesh), virtual_shards=shards)


def placed(made: Program[Any], batch: Any) -> Any:
    return jax.device_put(batch, NamedSharding(made.workers.mesh, P('workers')))  # type: ignore[arg-type]


def running(made: Program[Any], batch: Any) -> Any:
    return runner(made.init(jax.random.key(0)), made.step, placed(made, batch))


def bytes_sent(made: Program[Any], batch: Any) -> int:
    rows = ledger.compiled(made.step.lower(made.state, placed(made, batch)).compile(), made.workers.mesh)
    return sum(round(row.sent * (row.times or 0)) for row in rows)


def digest(made: Program[Any], batch: Any) -> str:
    """Of parameters and optimiser state after a few steps."""
    state = made.init(jax.random.key(0))
    for _ in range(STEPS):
        state, metrics = made.step(state, placed(made, batch))
        jax.block_until_ready(metrics)
    leaves = jax.tree.leaves(jax.device_get((state.params, state.opt_state)))
    return hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


if __name__ == '__main__':
    main()
