"""Local training, delays and the parameter server match their reference implementations, simulated and on a mesh.

The reference implementations were written from the papers' rules by somebody who had not seen the code. As in
test_reference_training.py: float64 without codecs; with one, data on which no entry is near the edge between two codes.
"""

import numpy as np
import numpy_training
import pytest
from numpy_local import (
    Average,
    DecayingFeedback,
    DesLoc,
    Desynced,
    DiLoCo,
    Eager,
    OuterAdam,
    OuterFederated,
    OuterSgd,
    PostLocal,
    SlowMo,
    Streaming,
    top_k,
)
from numpy_server import Arrivals, DcAsgd, Easgd, Server
from reference_fixtures import NETWORK, PLANE, STEPS
from reference_runs import Case, check_matches, unambiguous_run

NESTEROV = 'sgd(0.7, momentum=0.9, nesterov=True)'
STRIDED = [np.r_[0:6, 39:57], np.r_[6:9], np.r_[9:39]]
"""The entries of NETWORK's tensors in three fragments by the rule `strided`."""


def nesterov() -> OuterSgd:
    return OuterSgd(0.7, 0.9, nesterov=True)


def exact_mean() -> numpy_training.Mean:
    return numpy_training.Mean(numpy_training.Exact())


def int8_mean(block: int = 4, feedback: bool = False) -> numpy_training.TwoPhases:
    return numpy_training.TwoPhases(numpy_training.Int8(block), feedback)


def delay_of(worker: int) -> int:
    return (3, 0, 5, 1)[worker % 4]


CASES = {
    'average-schedule': Case(
        'sgd(0.1, momentum=0.9) | average(every=piecewise_constant_schedule(1, {4: 3}))',
        lambda w: [numpy_training.Sgd(0.1, 0.9), Average(lambda t: 1 if t < 4 else 3, numpy_training.Exact())],
    ),
    'slowmo': Case(
        'sgd(0.1) | slowmo(every=3, alpha=0.8, beta=0.6, learning_rate=piecewise_constant_schedule(0.125, {5: 0.5}))',
        lambda w: [
            numpy_training.Sgd(0.1),
            SlowMo(3, 0.8, 0.6, lambda t: 0.125 if t < 5 else 0.0625, numpy_training.Exact()),
        ],
    ),
    'diloco': Case(
        f'adamw(0.03, weight_decay=0.1) | diloco(every=4, outer={NESTEROV})',
        lambda w: [numpy_training.AdamW(0.03, 0.1), DiLoCo(4, nesterov(), numpy_training.Exact())],
        weighted=True,
    ),
    'diloco-adam': Case(
        'sgd(0.1) | diloco(every=3, outer=adam(0.05))',
        lambda w: [numpy_training.Sgd(0.1), DiLoCo(3, OuterAdam(0.05), numpy_training.Exact())],
    ),
    **{
        f'fed-{name}': Case(
            f'sgd(0.1) | diloco(every=3, outer=fed_{name}(0.1, b1=0.8, {b2}tau=0.02))',
            lambda w, name=name: [
                numpy_training.Sgd(0.1),
                DiLoCo(3, OuterFederated(name, 0.1, 0.8, 0.9, 0.02), numpy_training.Exact()),
            ],
        )
        for name, b2 in {'adagrad': '', 'adam': 'b2=0.9, ', 'yogi': 'b2=0.9, '}.items()
    },
    'post-local': Case(
        'post_local(optimizer=adamw(0.03, weight_decay=0.1), start=5, every=3)',
        lambda w: [
            PostLocal(numpy_training.AdamW(0.03, 0.1), 5, 3, numpy_training.Exact(), numpy_training.Exact()),
        ],
    ),
    'post-local-int8': Case(
        "post_local(optimizer=sgd(0.1), start=4, every=2, codec=int8(block=4), exchange='two_phases', feedback=True)",
        lambda w: [PostLocal(numpy_training.Sgd(0.1), 4, 2, int8_mean(feedback=True), int8_mean(feedback=True))],
        PLANE,
        coded=True,
    ),
    'diloco-int8': Case(
        f"sgd(0.1) | diloco(every=3, outer={NESTEROV}, codec=int8(block=4), exchange='two_phases', feedback=True)",
        lambda w: [numpy_training.Sgd(0.1), DiLoCo(3, nesterov(), int8_mean(feedback=True))],
        PLANE,
        coded=True,
    ),
    'sparseloco': Case(
        "sgd(0.1) | diloco(every=2, outer=sgd(0.9), codec=top_k(k=2, block=8), exchange='gather', feedback=0.9)",
        lambda w: [numpy_training.Sgd(0.1), DiLoCo(2, OuterSgd(0.9), DecayingFeedback(top_k(2, 8), 0.9))],
        PLANE,
        coded=True,
    ),
    'streaming': Case(
        f"sgd(0.1) | streaming_diloco(every=5, fragments=3, outer={NESTEROV}, overlap=2, mixing=0.25, rule='strided')",
        lambda w: [
            numpy_training.Sgd(0.1),
            Streaming(5, [nesterov() for _ in range(3)], STRIDED, 2, 0.25, lambda p: numpy_training.Exact()),
        ],
    ),
    'streaming-at-once': Case(
        'adamw(0.03, weight_decay=0.1) | streaming_diloco(every=4, fragments=3, outer=adam(0.05), overlap=0, '
        "mixing=0.5, rule='strided')",
        lambda w: [
            numpy_training.AdamW(0.03, 0.1),
            Streaming(4, [OuterAdam(0.05) for _ in range(3)], STRIDED, 0, 0.5, lambda p: numpy_training.Exact()),
        ],
    ),
    'eager': Case(
        f'sgd(0.1) | eager_diloco(every=3, outer={NESTEROV})',
        lambda w: [numpy_training.Sgd(0.1), Eager(3, [nesterov() for _ in range(w)], numpy_training.Exact())],
    ),
    'des-loc': Case(
        "des_loc(optimizer=adamw(0.03, weight_decay=0.1), every=2, moments={'mu': 3, 'nu': 6})",
        lambda w: [DesLoc(numpy_training.AdamW(0.03, 0.1), 2, 3, 6)],
    ),
    'des-loc-momentum': Case(
        "des_loc(optimizer=sgd(0.1, momentum=0.9), every=3, moments={'trace': 2})",
        lambda w: [Desynced(numpy_training.Sgd(0.1, 0.9), 3, {'velocity': 2})],
    ),
    'easgd': Case(
        'sgd(0.1, momentum=0.9) | easgd(every=3, beta=0.8)', lambda w: [numpy_training.Sgd(0.1, 0.9), Easgd(3, 0.8)]
    ),
    'delay-schedule': Case(
        'mean() | delay(steps=piecewise_constant_schedule(1, {3: 4, 8: 0}), longest=4) | sgd(0.1, momentum=0.5)',
        lambda w: [
            exact_mean(),
            Arrivals(lambda worker, t: 1 if t < 3 else 4 if t < 8 else 0, 4, 0.0),
            numpy_training.Sgd(0.1, 0.5),
        ],
    ),
    'delay-per-worker': Case(
        'delay(steps={delays}, damping=0.5) | mean() | sgd(0.1)',
        lambda w: [Arrivals(lambda worker, t: delay_of(worker), 5, 0.5), exact_mean(), numpy_training.Sgd(0.1)],
    ),
    'dc-asgd': Case(
        'dc_asgd(steps={delays}, strength=0.3) | mean() | sgd(0.1)',
        lambda w: [DcAsgd([delay_of(i) for i in range(w)], 0.3, False), exact_mean(), numpy_training.Sgd(0.1)],
    ),
    'dc-asgd-adaptive': Case(
        'mean() | dc_asgd(steps=3, strength=0.3, adaptive=True, decay=0.9) | sgd(0.1)',
        lambda w: [exact_mean(), DcAsgd([3] * w, 0.3, True, 0.9), numpy_training.Sgd(0.1)],
        weighted=True,
    ),
    'server': Case(
        'parameter_server(optimizer=adamw(0.03, weight_decay=0.1), staleness=2)',
        lambda w: [
            Server([numpy_training.AdamW(0.03, 0.1) for _ in range(w)], 2, None, None, NETWORK.shapes, by_count=True)
        ],
        weighted=True,
    ),
    'server-momentum': Case(
        'parameter_server(optimizer=sgd(0.1, momentum=0.5, nesterov=True))',
        lambda w: [
            Server([numpy_training.Sgd(0.1, 0.5, nesterov=True) for _ in range(w)], 0, None, None, NETWORK.shapes)
        ],
    ),
    'server-int8': Case(
        'parameter_server(optimizer=sgd(0.1, momentum=0.5), push=int8(block=4), feedback=True, pull=int8(block=8))',
        lambda w: [
            Server(
                [numpy_training.Sgd(0.1, 0.5) for _ in range(w)],
                0,
                numpy_training.Int8(4),
                numpy_training.Int8(8),
                PLANE.shapes,
                feedback=True,
            )
        ],
        PLANE,
        coded=True,
    ),
}
QUICK = ('diloco', 'streaming', 'dc-asgd', 'server-int8')
SETUPS = [
    pytest.param(*each, id='-'.join(map(str, each)), marks=[pytest.mark.slow] * (each[0] not in QUICK or each[2] != 3))
    for name in CASES
    for each in ((name, 'simulated', 3), (name, 'mesh', 8), *([(name, 'mesh', 1)] if name in QUICK else []))
]


@pytest.mark.parametrize('name, place, count', SETUPS)
def test_matches_the_reference(name: str, place: str, count: int) -> None:
    case = CASES[name]
    delays = str(tuple(delay_of(i) for i in range(count)))
    check_matches(case, place, count, case.line.replace('{delays}', delays))


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if 'every' in case.line])
def test_the_references_workers_diverge(name: str) -> None:
    """Otherwise the comparison would show little."""
    params = unambiguous_run(CASES[name], 3).trajectory.params
    assert np.ptp(params, axis=1).max(1).max() > 1e-2
    assert len(params) == STEPS
