"""Measures the optimiser's part of a step: local steps, synchronisation rounds and the server, against `mean()`.

    python experiments/speed/rounds.py

The loss is half the squared norm of the parameters, so that the gradient costs next to nothing. Times are ratios within
one run, in turns. Copies and temporary memory are read from the compiled program, in sizes of the model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from measure import in_turns, ratios, runner

from jaxdist import line
from jaxdist.algorithms import _periodic as periodic
from jaxdist.core import mesh, workers
from jaxdist.core.conditional import when
from jaxdist.ledger import _hlo as hlo
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
OUTER = 'outer=sgd(0.7, momentum=0.9, nesterov=True)'
ADAM = 'adamw(1e-3)'
BASE = f'mean() | {ADAM}'
SERVER = f'parameter_server(optimizer={ADAM})'
PERIODIC = {
    'average': f'{ADAM} | average(every=EVERY)',
    'diloco': f'{ADAM} | diloco(every=EVERY, {OUTER})',
    'slowmo': f'{ADAM} | slowmo(every=EVERY)',
    'easgd': f'{ADAM} | easgd(every=EVERY)',
    'eager_diloco': f'{ADAM} | eager_diloco(every=EVERY, {OUTER})',
    'streaming_diloco': f'{ADAM} | streaming_diloco(every=EVERY, fragments=1, overlap=0, {OUTER})',
    'des_loc': f"des_loc(optimizer={ADAM}, every=EVERY, moments={{'mu': EVERY, 'nu': EVERY}})",
    'fed_admm': f'fed_admm(optimizer={ADAM}, every=EVERY)',
    'post_local': f'post_local(optimizer={ADAM}, start=0, every=EVERY)',
}
NEVER = 100_000
TENSORS = 12


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 2)
    lines = {'mean': BASE, 'parameter_server': SERVER, 'parameter_server, guard': SERVER, 'mean, guard': BASE}
    lines |= {f'{name}, local step': text.replace('EVERY', str(NEVER)) for name, text in PERIODIC.items()}
    lines |= {f'{name}, round': text.replace('EVERY', '1') for name, text in PERIODIC.items()}
    lines['diloco, local step, by lax.cond'] = lines['diloco, local step']
    results: dict[str, Any] = {}
    runners: dict[str, Callable[[], None]] = {}
    for name, text in lines.items():
        periodic.when = conditional if 'lax.cond' in name else when
        runners[name], results[name] = program(text, guard='guard' in name)
    periodic.when = when
    for name, run in runners.items():
        # In pairs: how fast memory is allocated depends on which programs a process runs.
        times = in_turns({'base': runners['mean'], name: run})
        results[name] |= {
            kind.removeprefix(f'{name}: '): x for kind, x in ratios(name, times[name], times['base']).items()
        }
        print(f'{name:<36}', *(f'{key} {x}' for key, x in results[name].items()), sep='  ')
    (HERE / 'rounds.json').write_text(json.dumps({'jax': jax.__version__, **results}, indent=2) + '\n')


def conditional(go: Any, code: Callable[[Any], Any], operand: Any) -> Any:
    """`when` by a conditional."""
    return lax.cond(go, code, lambda x: x, operand)


def program(text: str, guard: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that takes one step, and what its compiled program copies and needs, in sizes of the model."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {f'w{i}': jax.random.normal(key, (512, 512)) for i in range(TENSORS)}

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        del key
        squares = sum(jnp.sum(x * x) for x in jax.tree.leaves(params))
        return {'loss': 0.5 * squares * batch['x'].sum()}, jnp.float32(len(batch['x']))

    devices = mesh.make({'workers': 2})
    batch = jax.device_put({'x': np.ones(2, np.float32)}, NamedSharding(devices, jax.P('workers')))
    step = make_step(loss, init, line.build(text), batch, workers.on_mesh(devices), guard=guard)
    compiled = step.step.lower(step.state, batch).compile()
    size = 4 * 512 * 512 * TENSORS
    counts = {
        'copies': round(copied(compiled.as_text()) / size, 2),
        'temporary memory': round(compiled.memory_analysis().temp_size_in_bytes / size, 2),
        'bytes accessed, every branch': round(compiled.cost_analysis()['bytes accessed'] / size, 1),
    }
    return runner(step.init(jax.random.key(0)), compiled, batch), counts


def copied(text: str) -> int:
    """Bytes that copies write at a step between rounds."""
    module = hlo.parse(text)
    entry = module.computations[module.entry].instructions.values()
    # Branch 0 of a conditional is the one without a round; a loop does not run its body then.
    idle = [op.called('branch_computations')[0] for op in entry if op.opcode == 'conditional']
    ops = [*entry, *(op for name in idle for op in module.computations[name].instructions.values())]
    return int(sum(sum(hlo.payload(op.shape).values()) for op in ops if op.opcode == 'copy'))


if __name__ == '__main__':
    main()
