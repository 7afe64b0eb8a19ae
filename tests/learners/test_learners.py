"""Learners and the synchroniser: without Ray, against the same line in one program and against plain NumPy."""

import jax
import numpy as np
import pytest
from learner_fixtures import SGD, World, anchor_of, experiment

ALL_ALIKE = [1.0] * 4


def close_to(a: object, b: object) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.parametrize(
    ('last', 'overlap'),
    [
        (f'diloco(every=3, outer={SGD})', 0),
        ('diloco(every=4, outer=adam(1e-2))', 0),
        (f'streaming_diloco(every=6, fragments=2, outer={SGD}, overlap=0, mixing=0.0)', 0),
        (f'streaming_diloco(every=4, fragments=2, outer={SGD}, overlap=1, mixing=0.5)', 1),
    ],
)
def test_learners_that_all_arrive_are_workers_of_one_program(last: str, overlap: int) -> None:
    whole = experiment(last)
    world = World(whole, quorum=4, grace=0.0, times=ALL_ALIKE)
    world.run(until=lambda: world.rounds.progress.reached[0][0] >= 12)
    while min(learner.step for learner in world.learners) < 12 + overlap:
        world.run(until=lambda n=sum(learner.step for learner in world.learners): sum(l.step for l in world.learners) > n)
    close_to(world.merged.anchor, anchor_of(whole, 12 + overlap))
