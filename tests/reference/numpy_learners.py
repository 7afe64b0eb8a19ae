"""Learners with plain SGD in NumPy: what the record of rounds says is done again, without jaxdist's learners.

Only the gradient is the model's, by JAX, and encoding and decoding are the codec's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdist.learners.record import Round

Vector = np.ndarray


class NumpyLearner:
    """One start of a learner, on a vector of all parameters."""

    def __init__(self, x: Vector, step: int, size: int) -> None:
        self.x, self.base, self.step, self.first = x.copy(), x.copy(), step, step
        self.residual, self.left, self.handed, self.late = np.zeros(size), np.zeros(size), x, False


def numpy_anchors(
    rounds: list[Round],
    start: Vector,
    gradient: Callable[[Vector, int, int], Vector],
    code: Callable[[Vector], Vector],
    rate: float,
    outer: tuple[float, float],
    feedback: float,
    mixing: float,
    examples: int,
) -> list[Vector]:
    """The anchor after each round, of one fragment.

    Args:
        rounds: the record.
        start: the initial parameters.
        gradient: `(parameters, learner, step) -> gradient`.
        code: encodes and decodes a message.
        rate: the learners' rate.
        outer: the outer rate and Nesterov momentum.
        feedback: the fraction of the residual that is kept.
        mixing: the weight of a learner's parameters when it adopts.
        examples: of a step of one learner.
    """
    anchors, velocity, learners = [start], np.zeros_like(start), dict[Any, NumpyLearner]()
    for each in rounds:
        total, whole = np.zeros_like(start), 0.0
        for entry in each.learners:
            who = entry['learner'], entry['start']
            for call in entry['journal']:
                message = do(call, learners, who, anchors, gradient, code, rate, feedback, mixing)
            steps = entry['end'] - entry['first']
            weight = (steps * examples) ** 2 / steps
            total, whole = total + weight * message, whole + weight
        velocity = outer[1] * velocity + total / whole
        anchors.append(anchors[-1] - outer[0] * (total / whole + outer[1] * velocity))
    return anchors[1:]


def do(
    call: list[Any], learners: dict[Any, NumpyLearner], who: tuple[int, int], anchors: list[Vector],
    gradient: Callable[[Vector, int, int], Vector], code: Callable[[Vector], Vector], rate: float, feedback: float,
    mixing: float,
) -> Vector:  # fmt: skip
    """Does what a learner did; a message, if it handed one in."""
    if call[0] == 'begin':
        learners[who] = NumpyLearner(anchors[call[2][0]], call[1], anchors[0].size)
    one = learners[who]
    if call[0] == 'train':
        for _ in range(call[1]):
            one.x = one.x - rate * gradient(one.x, who[0], one.step)
            one.step += 1
    if call[0] == 'hand_in':
        full = one.base - one.x + feedback * one.residual
        sent = code(full)
        one.left, one.handed, one.late = full - sent, one.x.copy(), call[2]
        return sent
    if call[0] == 'adopt':
        new = anchors[call[2]]
        if call[3]:
            one.residual = one.left
            one.x = new + (one.x - one.handed) if one.late else mixing * one.x + (1 - mixing) * new
        else:
            one.x = new + (one.x - one.base)
        one.base = new
    return np.zeros(0)
