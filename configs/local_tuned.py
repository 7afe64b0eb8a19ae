"""Local training with H = 30, each variant at its best of the same number of trials.

jaxdist tune configs/local_tuned.py --trials 8 --seeds 3 --jobs 2
"""

import dataclasses
from collections.abc import Iterator

from local_text import ADAMW, MUON, NESTEROV
from local_text import experiment as base

from jaxdist.training.experiment import Experiment


def experiment() -> Experiment:
    return base()


def space() -> dict[str, str]:
    """The inner and the outer learning rate, and the outer momentum; a line has those of its calls."""
    return {
        'adamw.learning_rate': 'log(1e-3, 1e-2)',
        'contrib.muon.learning_rate': 'log(5e-3, 5e-2)',
        'sgd.learning_rate': 'uniform(0.2, 1.2)',
        'sgd.momentum': 'uniform(0.0, 0.9)',
        'slowmo.beta': 'uniform(0.0, 0.8)',
    }


def sweep() -> Iterator[tuple[str, Experiment]]:
    """Data parallelism, and local training of H = 30 local steps."""
    sparse = "codec=top_k(k=123, block=4096, values=int2()), feedback=0.95, exchange='gather'"
    overlap = 'overlap=1, mixing=0.5, codec=int4()'
    lines = {
        'data parallel': f'mean() | {ADAMW}',
        'local SGD': f'{ADAMW} | average(every=30)',
        'DiLoCo': f'{ADAMW} | diloco(every=30, {NESTEROV})',
        'SlowMo': f'{ADAMW} | slowmo(every=30, beta=0.5)',
        'eager DiLoCo': f'{ADAMW} | eager_diloco(every=30, {NESTEROV})',
        'streaming DiLoCo, int4': f'{ADAMW} | streaming_diloco(every=30, fragments=5, {NESTEROV}, {overlap})',
        'SparseLoCo, 3 %': f'{ADAMW} | diloco(every=30, outer=sgd(1.0), {sparse})',
        'MuLoCo, int2': f'{MUON} | diloco(every=30, {NESTEROV}, codec=int2(), feedback=True)',
    }
    for label, update in lines.items():
        yield label, dataclasses.replace(base(), update=update)
