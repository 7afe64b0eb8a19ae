"""Local training, loss against bytes: a small byte-level transformer, with four workers.

./scripts/train configs/local_text.py
jaxdist compare configs/local_text.py --seeds 3        (the sweep below)
"""

import dataclasses
from collections.abc import Iterator

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh

ADAMW = 'adamw(learning_rate=3e-3)'
MUON = 'contrib.muon(learning_rate=0.02)'
# The published momentum of 0.9 averages over too many rounds for a run of twenty.
NESTEROV = 'outer=sgd(0.7, momentum=0.5, nesterov=True)'


def experiment() -> Experiment:
    return Experiment(
        update=f'{ADAMW} | diloco(every=30, {NESTEROV}, codec=int4())',
        model=Transformer(layers=2, width=64, heads=4),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=4, simulate=True),
        batch=32,
        steps=600,
        log_every=30,
        evaluate_every=600,
        save_every=600,
    )


def sweep() -> Iterator[Experiment]:
    """Data parallelism; DiLoCo with H of 1, 5, 30 and 100, dense and in four bits; related algorithms with H = 30."""
    lines = [f'mean() | {ADAMW}', f'mean() | {MUON}', f'{ADAMW} | diloco(every=1, {NESTEROV})']
    for every in (5, 30, 100):
        lines += [f'{ADAMW} | diloco(every={every}, {NESTEROV}{codec})' for codec in ('', ', codec=int4()')]
    lines += [
        f'{ADAMW} | diloco(every=30, outer=sgd(0.7, momentum=0.9, nesterov=True))',
        f'{ADAMW} | average(every=30)',
        f'{ADAMW} | slowmo(every=30, beta=0.5)',
        f'des_loc(optimizer={ADAMW}, every=30)',
        f'{ADAMW} | eager_diloco(every=30, {NESTEROV})',
        f'{ADAMW} | streaming_diloco(every=30, fragments=5, {NESTEROV}, overlap=1, mixing=0.5, codec=int4())',
        # SparseLoCo, 3 % and 1 %: 123 or 41 of 4096 entries in two bits each, with error feedback that decays.
        *(
            f'{ADAMW} | diloco(every=30, outer=sgd(1.0), codec=top_k(k={k}, block=4096, values=int2()), feedback=0.95, '
            "exchange='gather')"
            for k in (123, 41)
        ),
        f'{MUON} | diloco(every=30, {NESTEROV})',
        f'{MUON} | diloco(every=30, {NESTEROV}, codec=int2(), feedback=True)',  # MuLoCo
    ]
    for line in lines:
        yield dataclasses.replace(experiment(), update=line)
