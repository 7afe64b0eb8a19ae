"""What an update line says about learners: what each does by itself, and how a synchroniser merges them."""

import dataclasses
from typing import NamedTuple

import optax

from jaxdist import line
from jaxdist.algorithms._fragments import Rule
from jaxdist.clock.settings import Clock
from jaxdist.codecs._compressed_mean import Feedback
from jaxdist.codecs.codec import AnyCodec, PerTensor
from jaxdist.core.errors import InputError
from jaxdist.core.mesh import axis_text
from jaxdist.core.optimizers import check_optimizer
from jaxdist.learners.messages import check_codec
from jaxdist.training.experiment import Experiment

LAST = ('diloco', 'streaming_diloco')
"""The transformations that learners and a synchroniser can do together."""


class Terms(NamedTuple):
    """How learners and a synchroniser work together.

    Attributes:
        learners: how many learners there are.
        every: a learner's steps from one round of a fragment to its next.
        outer: the outer optimiser.
        fragments: the number of fragments.
        rule: which tensors form a fragment.
        overlap: a learner's steps from handing in a fragment to adopting the merged one.
        mixing: the weight of a learner's own parameters when it adopts the merged ones.
        codec: the codec of the messages to the synchroniser; None for float32.
        feedback: False, True, or the fraction of the residual that is kept.
        seed: the seed of the codec's stochastic rounding.
    """

    learners: int
    every: int
    outer: optax.GradientTransformation
    fragments: int = 1
    rule: Rule = 'balanced'
    overlap: int = 0
    mixing: float = 0.0
    codec: AnyCodec | None = None
    feedback: Feedback = False
    seed: int = 0


def terms_of(experiment: Experiment) -> Terms:
    """The terms that the end of the update line gives; each worker of the mesh is a learner.

    Raises:
        InputError: the line does not end in one of `LAST`, or the experiment has what learners cannot do.

    >>> terms_of(Experiment(update='sgd(0.1) | diloco(every=30, outer=sgd(0.7))')).every
    30
    """
    if experiment.constraints.hold:
        raise InputError('learners have no multipliers in common: leave constraints.hold out, or use jaxdist train')
    for field in ('spike', 'virtual_shards', 'check_replicas'):
        if getattr(experiment, field):
            raise InputError(f'{field} is for jaxdist train, and learners do not have it: leave it out')
    if experiment.clock != Clock():
        raise InputError('learners take the time that they take: leave clock out, or use jaxdist train')
    _, name, given = line.split_last(experiment.update)
    if name not in LAST:
        raise InputError(
            f'learners synchronise by the last transformation of the update line, {" or ".join(LAST)}: '
            f'{name} is neither. As in: adamw(1e-3) | diloco(every=30, outer=sgd(0.7, momentum=0.9, nesterov=True))'
        )
    if callable(given['every']):
        raise InputError(f'{name}: every is a schedule; learners count their own steps, in a fixed number of them')
    line.build(experiment.update)  # its own checks of the arguments
    if given['feedback'] == 'ef21':
        raise InputError(
            f"{name}: feedback='ef21' needs the synchroniser to know what each learner has sent, which a lost learner "
            'forgets: take feedback=True'
        )
    if given['exchange'] is not None:
        raise InputError(
            f'{name}: exchange={given["exchange"]!r} is for workers of one program; learners send messages to a '
            'synchroniser: leave it out'
        )
    if not isinstance(given['codec'], PerTensor):  # such a choice is checked when the tensors are known
        check_codec(given['codec'], given['feedback'])
    outer = check_optimizer(name, given['outer'])
    same = {key: given[key] for key in ('fragments', 'rule', 'overlap', 'mixing') if key in given}
    compression = {key: given[key] for key in ('codec', 'feedback', 'seed')}
    return Terms(experiment.mesh.workers, given['every'], outer, **same, **compression)


def of_one_learner(experiment: Experiment) -> Experiment:
    """The experiment of one learner: the line without its last transformation, on one worker of the mesh.

    >>> one = of_one_learner(Experiment(update='sgd(0.1) | diloco(every=30, outer=sgd(0.7))'))
    >>> one.update, one.mesh.workers, one.batch
    ('mean() | sgd(0.1)', 1, 8)
    """
    before, name, _ = line.split_last(experiment.update)
    if not before:
        raise InputError(f'{name} is the only transformation of the line: put the optimiser of learners before it')
    workers = experiment.mesh.workers
    if experiment.batch % workers:
        raise InputError(
            f'batch={experiment.batch} cannot be divided among {workers} learners: use '
            f'{experiment.batch // workers * workers or workers} or {(experiment.batch // workers + 1) * workers}'
        )
    # The mean over one worker is what lets parameters be replicated over the worker axis; it sends nothing.
    mesh = dataclasses.replace(experiment.mesh, workers=1)
    return dataclasses.replace(experiment, update=f'mean() | {before}', mesh=mesh, batch=experiment.batch // workers)


def check_processes(one: Experiment, processes: int) -> None:
    """Checks that so many processes can share the devices of a learner.

    Args:
        one: the experiment of one learner; see `of_one_learner`.
        processes: their number.

    Raises:
        InputError: they do not divide its devices, or it is simulated.

    >>> from jaxdist.training.experiment import Mesh
    >>> check_processes(Experiment(mesh=Mesh(workers=1, fsdp=4)), 3)
    Traceback (most recent call last):
    jaxdist.InputError: --processes 3 do not divide the 4 devices of a learner (1 workers x 4 fsdp): use 1, 2 or 4
    """
    if processes < 1:
        raise InputError(f'--processes {processes} must be 1 or more')
    if processes > 1 and one.mesh.simulate:
        raise InputError('simulated learners are a process each: leave out --processes, or leave out --simulate')
    n = one.mesh.devices
    if n % processes:
        *few, most = (str(d) for d in range(1, n + 1) if n % d == 0)
        raise InputError(
            f'--processes {processes} do not divide the {n} device{"s" * (n > 1)} of a learner '
            f'({axis_text(one.mesh.axes)}): use {", ".join(few)}{" or " * bool(few)}{most}'
        )


def emulated(one: Experiment) -> Experiment:
    """The same on emulated devices, for a process that has not all devices of a learner of several processes.

    >>> emulated(Experiment()).mesh.emulate
    True
    """
    return dataclasses.replace(one, mesh=dataclasses.replace(one.mesh, emulate=True))
