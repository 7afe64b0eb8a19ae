"""Measures what a command costs before it trains: imports, the first checkpoint, and programs that it compiles again.

    python experiments/speed/start.py

Times are ratios that are measured in turns within one run; programs are counted.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import ratios

from jaxdist import line
from jaxdist.core import mesh, workers
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
ROUNDS = 5
SLOW = ('jax', 'flax', 'orbax', 'scipy', 'matplotlib', 'sklearn')
"""Libraries that take long to import."""
HELP = 'import atexit, sys; from jaxdist.cli.main import main; sys.argv[1:] = ["--help"]; atexit.register({}); main()'
LOADED = f'lambda: print("loaded:", *(name for name in {SLOW} if name in sys.modules))'


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)
    results = {
        'processor time over that of import jax': imports(),
        'first checkpoint of 40 arrays over the next one, 8 devices': first_save(),
        'a repeated run over the first, configs/quickstart.py with 5 steps': repeated_run(),
    }
    for name, result in results.items():
        print(name, *(f'    {k:<32}{v}' for k, v in result.items()), sep='\n')
    (HERE / 'start.json').write_text(json.dumps({'jax': jax.__version__, **results}, indent=2) + '\n')


def imports() -> dict[str, Any]:
    """The processor time of `import jaxdist` and of `jaxdist --help`; and the slow libraries that the help imports."""
    programs = {
        'import jax': ['-c', 'import jax'],
        'import jaxdist': ['-c', 'import jaxdist'],
        'import jaxdist, a public name': ['-c', 'import jaxdist; jaxdist.mean'],
        'jaxdist --help': ['-m', 'jaxdist', '--help'],
        'jaxdist train --help': ['-m', 'jaxdist', 'train', '--help'],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(ROUNDS + 1):
        for name, words in programs.items():
            seconds = child(words)
            if turn:
                times[name].append(seconds)
    base = times.pop('import jax')
    out = {name: ratios(name, seconds, base)[f'{name}: processors'] for name, seconds in times.items()}
    command = [sys.executable, '-c', HELP.format(LOADED)]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return out | {'jaxdist --help imports': last.removeprefix('loaded:').strip() or 'none of them'}


def first_save() -> dict[str, Any]:
    """The programs that the first checkpoint of a state compiles, and its time over that of the next checkpoint."""
    compiled = [0]

    def count(event: str, duration: float, **_: Any) -> None:
        compiled[0] += event == '/jax/core/compile/backend_compile_duration'

    jax.monitoring.register_event_duration_secs_listener(count)
    times: dict[str, list[tuple[float, float]]] = {'first': [], 'next': []}
    programs = []
    for turn in range(ROUNDS + 1):
        state = adam_state(rows=64 + 20 * turn)  # shapes of no earlier round
        before = compiled[0]
        with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / 'checkpoints', keep=2) as checkpoints:
            for step, name in enumerate(times):
                start = time.perf_counter(), time.process_time()
                checkpoints.save(step, state, {})
                checkpoints.wait()
                if turn:
                    times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        programs.append(compiled[0] - before)
    return {'programs compiled': max(programs), **ratios('first', times['first'], times['next'])}


def adam_state(rows: int) -> Any:
    """The state of Adam for 12 matrices on 8 devices, with all of its programs compiled."""
    shapes = {f'w{i}': (rows + i, 32) for i in range(12)}
    batch = {'x': np.ones(8, np.float32)}
    place = workers.on_mesh(mesh.make({'workers': 8}))

    def init(key: jax.Array) -> Any:
        return {name: jax.numpy.zeros(shape) for name, shape in shapes.items()}

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return {'loss': sum((x**2).sum() for x in params.values()) * batch['x'].sum()}, batch['x'].shape[0]

    program = make_step(loss, init, line.build('mean() | adamw(1e-3)'), batch, place)
    return jax.block_until_ready(program.init(jax.random.key(0)))


def repeated_run() -> dict[str, Any]:
    """The time of a run whose programs are in the compilation cache over that of one with an empty cache."""
    config = HERE.parents[1] / 'configs' / 'quickstart.py'
    times: dict[str, list[tuple[float, float]]] = {'first': [], 'repeated': []}
    kept: dict[str, int] = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / 'cache'
            for name in times:
                run, own = str(Path(folder) / name), str(cache)
                words = ['train', str(config), '--steps', '5', '--run', run, '--compilation-cache', own]
                times[name].append(child(['-m', 'jaxdist', *words]))
                kept[name] = len(list(cache.glob('*/*-cache')))
    added = {'programs compiled: first': kept['first'], 'programs compiled: repeated': kept['repeated'] - kept['first']}
    return {**added, **ratios('repeated', times['repeated'], times['first'])}


def child(words: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of all processors that a Python process takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    subprocess.run([sys.executable, *words], check=True, env=env, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == '__main__':
    main()
