"""One transformer, trained by the same lines on eight devices that are laid out in different ways.

jaxdist compare configs/layouts.py --seeds 1 --out experiments/layouts
jaxdist plan configs/layouts.py --mesh.stage 2 --mesh.fsdp 2
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxdist.data import Text
from jaxdist.models import Transformer
from jaxdist.training.experiment import Experiment, Mesh, PipelineSettings

SYNCHRONOUS = 'mean() | adamw(learning_rate=3e-3)'
LOCAL = 'adamw(learning_rate=3e-3) | diloco(every=10, outer=sgd(learning_rate=0.7, momentum=0.9, nesterov=True))'
LAYOUTS = {
    '2 workers': Mesh(workers=2),
    'fsdp 4': Mesh(workers=2, fsdp=4),
    'model 4': Mesh(workers=2, model=4),
    'stage 4': Mesh(workers=2, stage=4),
    'fsdp 2, model 2': Mesh(workers=2, fsdp=2, model=2),
    'stage 2, fsdp 2': Mesh(workers=2, stage=2, fsdp=2),
    'stage 2, model 2': Mesh(workers=2, stage=2, model=2),
    'context 4': Mesh(workers=2, context=4),
    'fsdp 2, context 2': Mesh(workers=2, fsdp=2, context=2),
    'stage 2, context 2': Mesh(workers=2, stage=2, context=2),
    '1 worker, stage 2, fsdp 2, model 2': Mesh(workers=1, stage=2, fsdp=2, model=2),
}


def experiment() -> Experiment:
    return Experiment(
        update=SYNCHRONOUS,
        model=Transformer(layers=4, width=64, heads=4, stacked=True),
        data=Text(context=64, held_out=0.01),
        mesh=Mesh(workers=2, emulate=True),
        pipeline=PipelineSettings(microbatches=4),
        batch=32,
        steps=100,
        evaluate_every=20,
    )


def sweep() -> Iterator[tuple[str, Experiment]]:
    for name, mesh in LAYOUTS.items():
        yield name, replace(experiment(), mesh=replace(mesh, emulate=True))
    chunked = replace(experiment(), model=replace(experiment().model, chunks=2))
    yield 'stage 2 in 2 chunks', replace(chunked, mesh=replace(LAYOUTS['stage 4'], stage=2, emulate=True))
    for name in ('2 workers', 'stage 2, fsdp 2', 'fsdp 2, context 2'):
        yield f'DiLoCo, {name}', replace(experiment(), update=LOCAL, mesh=replace(LAYOUTS[name], emulate=True))
