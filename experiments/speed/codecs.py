"""Measures the speed of codecs: a round trip against a copy of the array, and a step against one with the exact mean.

    python experiments/speed/codecs.py

Every number is a ratio of times that are measured in turns within one run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from measure import in_turns, ratios, runner, transformer

from jaxdist import line
from jaxdist.core import mesh, workers
from jaxdist.laws import CodecTrial
from jaxdist.training.step import make_step

HERE = Path(__file__).parent
SIDE = 2048
"""Side of the square matrix of a round trip: 16.8 MB of float32."""
CODECS = (
    'bf16()',
    'fp8()',
    'int8()',
    "int8(rounding='stochastic')",
    'int4()',
    'int2()',
    'natural()',
    'qsgd(bits=4)',
    'ternary()',
    'sign()',
    'majority()',
    'top_k(k=41)',
    'threshold(at=2.5, most=41)',
    'random_k(k=41)',
    'power_sgd(rank=2)',
)


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)
    results = {
        f'there and back over a copy, {SIDE} x {SIDE}': round_trips(),
        'a step over one with the exact mean, transformer 2 x 128, 8 devices': steps(),
    }
    for name, result in results.items():
        print(name, *(f'    {k:<48}{v}' for k, v in result.items()), sep='\n')
    (HERE / 'codecs.json').write_text(json.dumps({'jax': jax.__version__, **results}, indent=2) + '\n')


def round_trips() -> dict[str, Any]:
    """By codec, the time of encoding and decoding over that of a copy of the array."""
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    runners: dict[str, Callable[[], None]] = {'copy': call(jax.jit(jnp.copy), x)}
    for text in CODECS:
        trial = CodecTrial(line.build_codec(text))
        shaped = x if not trial.of_vectors else x.reshape(-1)
        runners[text] = call(jax.jit(trial.round_trip), shaped, jax.random.key(1))
    times = in_turns(runners, rounds=15)
    base = times.pop('copy')
    return {name: ratios(name, seconds, base)[f'{name}: clock'] for name, seconds in times.items()}


def call(f: Any, *args: Any) -> Callable[[], None]:
    """A function that calls `f` with these arguments and waits for its result."""
    return lambda: jax.block_until_ready(f(*args))


def steps() -> dict[str, Any]:
    """By codec, the time of a training step, with error feedback if the codec allows it, over that with `mean()`."""
    model, batch = transformer(32)
    devices = mesh.make({'workers': 8})
    put = jax.device_put(batch, NamedSharding(devices, jax.P('workers')))
    runners = {}
    for text in ('', *CODECS):
        codec = line.build_codec(text) if text else None
        feedback = codec is not None and getattr(codec, 'contracts', True)
        update = line.build(f'mean(codec={text or None}, feedback={feedback}) | adamw(1e-3)')
        program = make_step(model.loss, model.init, update, batch, workers.on_mesh(devices))
        runners[text or 'exact'] = runner(program.init(jax.random.key(0)), program.step, put)
    times = in_turns(runners, rounds=15)
    base = times.pop('exact')
    return {name: ratios(name, seconds, base)[f'{name}: clock'] for name, seconds in times.items()}


if __name__ == '__main__':
    main()
