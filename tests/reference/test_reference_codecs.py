"""Codecs, exchanges and error feedback against the NumPy reference implementation, and against known properties.

Float32 rounding could move an entry over the boundary between two codes; the data are such that none is near one (the
reference implementation measures the margin), so the codes are the same. A trial has one copy of the parameters for
each kind of feedback, in one program, because compilation takes most of the time.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import numpy_codecs as reference
import optax
import pytest
from flax.traverse_util import unflatten_dict
from numpy_exchanges import (
    AllReduce,
    Average,
    Exchanges,
    Gather,
    Mean,
    Parts,
    Shapes,
    TwoPhases,
    by_path,
    by_size,
    power_sgd,
)

from jaxdist import laws, line

STEPS = 6
MARGIN = 1e-6  # several times the rounding errors of float32, for numbers near one
VECTOR = {'w': (11, 4), 'b': (3,)}
TENSORS = {'c': (6, 2, 1, 6), 'm': (12, 9), 's': (4, 3), 'v': (5,)}  # c is 6 x 12 for power_sgd, and not 12 x 6
TREE = {'l/k': (7, 5), 'l/b': (4,), 't': (9,)}
FEEDBACKS: tuple[bool | str, ...] = (False, True, 'ef21')
EXCHANGES = {'gather': Gather, 'two_phases': TwoPhases, 'all_reduce': AllReduce}
TOP, AT = 'top_k(k=3, block=8)', 'threshold(at=0.75, most=3, block=8)'
CODECS: dict[str, Callable[[], reference.Codec]] = {
    'int8(block=8)': lambda: reference.Int(8, 8),
    'int4(block=16)': lambda: reference.Int(4, 16),
    'int2(block=8)': lambda: reference.Int2(8),
    'sign(block=8)': lambda: reference.Sign(8),
    TOP: lambda: reference.TopK(3, 8),
    'top_k(k=3, block=8, values=bf16())': lambda: reference.TopK(3, 8, reference.Cast(7, -126, 127)),
    'top_k(k=3, block=8, values=int8(block=4))': lambda: reference.TopK(3, 8, reference.Int(8, 4)),
    AT: lambda: reference.Threshold(0.75, 3, 8),
    'bf16()': lambda: reference.Cast(7, -126, 127),
    'fp16()': lambda: reference.Cast(10, -14, 15),
    'majority(block=8)': lambda: reference.Sign(8, scaled=False),
}
# The numbers of workers for each exchange. With others, means of casts are not exact in float32.
MOST, CASTS = {'gather': (2,), 'two_phases': (3,)}, {'gather': (8,), 'two_phases': (2,)}
COUNTS = dict.fromkeys(CODECS, MOST) | {'majority(block=8)': {'two_phases': (3,)}, 'bf16()': CASTS, 'fp16()': CASTS}
COUNTS['int8(block=8)'] = {'gather': (2,), 'two_phases': (1, 2, 3, 8), 'all_reduce': (3, 8)}
COUNTS['int4(block=16)'] = {'gather': (8,), 'two_phases': (3,), 'all_reduce': (5,)}
CASES = [(codec, exchange, count) for codec in CODECS for exchange, counts in COUNTS[codec].items() for count in counts]


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a nested tree by path, as 'l/k', without None."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in leaves}


class Tree(laws.Trial):
    """A trial with nested parameters."""

    def gradients(self, steps: int, seed: int = 0) -> Any:
        return unflatten_dict(super().gradients(steps, seed), sep='/')


@cache
def trial_of(text: str, count: int, vector: bool = True, feedbacks: tuple[bool | str, ...] = FEEDBACKS) -> laws.Trial:
    """A trial of a transformation, `text` without its last bracket, with each feedback on separate parameters."""
    updates = {str(each): line.build(f'{text}, feedback={each!r})') for each in feedbacks}
    shapes = VECTOR if vector else TREE if '/k' in text else TENSORS

    init = lambda params: {name: each.init(params[name]) for name, each in updates.items()}  # noqa: E731

    def update(gradients: Any, state: Any, params: Any) -> Any:
        out = {name: each.update(gradients[name], state[name], params[name]) for name, each in updates.items()}
        return {name: each[0] for name, each in out.items()}, {name: each[1] for name, each in out.items()}

    all_shapes = {f'{each}/{name}': shape for each in feedbacks for name, shape in shapes.items()}
    return Tree(optax.GradientTransformation(init, update), count, all_shapes)


def normal(shapes: Shapes, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random gradients, {name: [T, W, ...]}: multiples of 2**-12, so that float32 sums are exact."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: np.rint(rng.normal(size=(STEPS, count, *shape)) * 4096) / 4096  # noqa: E731
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


# The reference mean after T steps, the gradients [T, W, ...], and the updates [T, 1 or W, ...].
Trajectory = tuple[Mean, Parts, Parts]


def follow(mean: Mean, gradients: Parts, every: int = 0, start: Parts | None = None) -> Trajectory:
    """The trajectory of the reference implementation; with `every`, in local SGD from `start`."""
    rows: list[Parts] = []
    params = {name: np.asarray(each, np.float64)[None] for name, each in (start or {}).items()}
    average = Average(every, mean, params)
    for t in range(len(next(iter(gradients.values())))):
        values = {name: array[t].astype(np.float64) for name, array in gradients.items()}
        rows.append(average(values, params) if every else {name: each[None] for name, each in mean(values).items()})
        params = {name: params[name] + rows[-1][name] for name in params}
    return mean, gradients, {name: np.array([row[name] for row in rows]) for name in gradients}


def clear_trajectory(
    exchanges: Callable[[], Exchanges], feedback: bool | str, shapes: Shapes, count: int, **local: Any
) -> Trajectory:
    """The first random trajectory that stays away from the boundaries between codes."""
    trajectories = (follow(Mean(exchanges(), feedback), normal(shapes, count, seed), **local) for seed in range(100))
    trajectory = next((each for each in trajectories if each[0].margin > MARGIN), None)
    assert trajectory, 'all trajectories come near a boundary'
    return trajectory


def check(trial: laws.Trial, place: str, trajectories: dict[str, Trajectory], close: float = 1e-5) -> None:
    """Asserts that jaxdist follows the reference trajectory of each feedback, and that feedback conserves sums."""
    inputs = {each: unflatten_dict(gradients, sep='/') for each, (_, gradients, _) in trajectories.items()}
    path = trial.run(inputs, program=trial.on_mesh if place == 'mesh' else None)
    for each, (mean, gradients, expected) in trajectories.items():
        updates, residual = flat(path.updates[each]), flat(path.state[1][each].compression.residual)
        assert (updates.keys(), residual.keys()) == (expected.keys(), mean.residual.keys())
        for name, update in expected.items():
            update = np.broadcast_to(update, updates[name].shape)
            np.testing.assert_allclose(updates[name], update, close, close / 5, err_msg=f'{each}: update of {name}')
        for name, expected_residual in mean.residual.items():
            # The error of the second message is stored W-fold, and so are its rounding errors.
            far = trial.count * close / 5
            np.testing.assert_allclose(
                residual[name], expected_residual, close, far, err_msg=f'{each}: residual of {name}'
            )
            if expected[name].shape[1] == 1:  # not in local SGD
                # EF21's estimates average to the last mean; else the means and the residual sum to the exact means.
                total = updates[name][-1, 0] if each == 'ef21' else gradients[name].mean(1, np.float64).sum(0)
                sent = 0 if each == 'ef21' else updates[name][:, 0].sum(0, np.float64)
                np.testing.assert_allclose(sent + residual[name].mean(0, np.float64), total, close, close)


def slow_unless(quick: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    'codec, exchange, count, place',
    [slow_unless(i % 12 == 2, *case, ('simulated', 'mesh')[i % 2]) for i, case in enumerate(CASES)],
)
def test_every_codec(codec: str, exchange: str, count: int, place: str) -> None:
    kinds = FEEDBACKS[:1] if 'majority' in codec else FEEDBACKS
    exchanges = lambda: dict.fromkeys(VECTOR, EXCHANGES[exchange](CODECS[codec]()))  # noqa: E731
    trial = trial_of(f'mean(codec={codec}, exchange={exchange!r}', count, feedbacks=kinds)
    check(trial, place, {str(each): clear_trajectory(exchanges, each, VECTOR, count) for each in kinds})


@pytest.mark.parametrize('rank, count, place', [(2, 3, 'mesh'), slow_unless(False, 1, 8, 'simulated')])
def test_power_sgd(rank: int, count: int, place: str) -> None:
    trial, trajectories = trial_of(f'mean(codec=power_sgd(rank={rank})', count, vector=False), {}
    for name, state in trial.simulated.init()[1].items():
        warm = flat(state.compression.warm)
        mean = Mean(power_sgd(TENSORS, rank, warm), {str(each): each for each in FEEDBACKS}[name])
        assert {name for name, exchange in mean.exchanges.items() if exchange} == warm.keys()
        trajectories[name] = follow(mean, normal(TENSORS, count))
    check(trial, place, trajectories, 5e-4)  # an orthonormal basis magnifies rounding errors


I8, I4 = (lambda: TwoPhases(reference.Int(8, 8))), (lambda: TwoPhases(reference.Int(4, 8)))
GROUPS: dict[str, Callable[[Shapes], Exchanges]] = {
    'by_size(int8(8), below=12)': lambda s: by_size(s, I8(), 12),
    'by_size(int8(8), below=73, small=int4(8))': lambda s: by_size(s, I8(), 73, I4()),
    "by_path({'v': None, 'c|s': int8(8), '.': int4(8)})": lambda s: by_path(s, {'v': None, 'c|s': I8(), '.': I4()}),
    "by_path({'t|k': None, '.*/k': int8(8)}, int4(8))": lambda s: by_path(s, {'t|k': None, '.*/k': I8()}, I4()),
    # Each rule's codec has a separate vector.
    "by_path({'c': int8(8), 'm': int8(8)}, int8(8))": lambda s: by_path(s, {'c': I8(), 'm': I8()}, I8()),
}


@pytest.mark.parametrize('i, codec', [slow_unless(case[0] % 3 == 0, *case) for case in enumerate(GROUPS)])
def test_a_codec_for_each_tensor(i: int, codec: str) -> None:
    count, kinds, shapes = (2, 3, 8)[i % 3], FEEDBACKS[1 + i % 2 :], TREE if '/k' in codec else TENSORS
    trial = trial_of(f"mean(codec={codec}, exchange='two_phases'", count, vector=False, feedbacks=kinds)
    trajectories = {str(each): clear_trajectory(lambda: GROUPS[codec](shapes), each, shapes, count) for each in kinds}
    check(trial, ('simulated', 'mesh')[i % 2], trajectories)


@pytest.mark.slow
def test_local_sgd() -> None:
    trial, trajectories = trial_of("average(every=2, codec=int8(block=8), exchange='two_phases'", 3), {}
    for each in FEEDBACKS:
        local = {'every': 2, 'start': trial.start()[str(each)]}
        trajectories[str(each)] = clear_trajectory(lambda: dict.fromkeys(VECTOR, I8()), each, VECTOR, 3, **local)
    check(trial, 'simulated', trajectories)


FLOATS = np.float32([1e5, -65500.0, 65504.0, 3.4e38, -3.4e38, 1.0, 3e-6, 0.0, 1.003, 1.007, -1.0002])
CLIPPED = {'b': np.zeros((1, 1, 3), np.float32), 'w': np.tile(FLOATS[:, None], (1, 1, 1, 4))}
EQUALS = {name: np.rint(array) for name, array in normal(VECTOR, 1).items()}


EDGES = [('fp16()', CLIPPED), ('bf16()', CLIPPED), (TOP, EQUALS), (AT, EQUALS)]


@pytest.mark.parametrize('codec, gradients', [slow_unless(i % 3 == 0, *case) for i, case in enumerate(EDGES)])
def test_clipped_floats_and_ties(codec: str, gradients: Parts) -> None:
    trajectory = follow(Mean(dict.fromkeys(VECTOR, Gather(CODECS[codec]()))), gradients)
    check(trial_of(f"mean(codec={codec}, exchange='gather'", 1, feedbacks=(False,)), 'simulated', {'False': trajectory})


VOTE, SUM = "majority(block=8), exchange='two_phases'", "int4(block=8), exchange='all_reduce'"


@pytest.mark.parametrize('codec, kind', [(VOTE, True), (VOTE, 'ef21'), (SUM, False)])
def test_refused(codec: str, kind: bool | str) -> None:
    with pytest.raises(ValueError, match='feedback' if kind else r'\b8\b.*\b4\b|\b4\b.*\b8\b'):
        _ = trial_of(f'mean(codec={codec}', 8, feedbacks=(kind,)).path


def test_top_k_of_a_whole_block_is_the_exact_mean() -> None:
    trial = trial_of("mean(codec=top_k(k=8, block=8), exchange='two_phases'", 3, feedbacks=(False, 'ef21'))
    gradients = normal(VECTOR, 3)
    for updates in trial.run({'False': gradients, 'ef21': gradients}).updates.values():
        for name, array in gradients.items():
            np.testing.assert_allclose(updates[name][:, 0], array.mean(1), 1e-5, 1e-6)


@pytest.mark.slow
def test_power_sgd_is_exact_for_a_mean_of_low_rank() -> None:
    gradients = normal(TENSORS, 2)
    gradients['m'] = normal({'m': (12, 1)}, 2)['m'] @ normal({'m': (1, 9)}, 2)['m']
    updates = trial_of('mean(codec=power_sgd(rank=2)', 2, False, (False,)).run({'False': gradients}).updates['False']
    off = {name: np.abs(updates[name][:, 0] - array.mean(1)).max() for name, array in gradients.items()}
    assert max(off[name] for name in 'msv') < 1e-4 < 0.1 < off['c']


@pytest.mark.parametrize('codec, exchange', [(TOP, 'gather'), slow_unless(False, 'int8(block=8)', 'two_phases')])
def test_the_estimate_of_a_constant_converges_to_it(codec: str, exchange: str) -> None:
    trial = trial_of(f'mean(codec={codec}, exchange={exchange!r}', 3, feedbacks=('ef21',))
    batch = {name: array[0] for name, array in normal(VECTOR, 3).items()}
    state, errors = trial.simulated.init(), [sum(np.sum(array**2) for array in batch.values())]
    for _ in range(4):
        state, _ = trial.counted_step(state, {'ef21': batch})
        estimates = flat(state[1]['ef21'].compression.residual)
        errors.append(sum(np.sum((estimates[name] - batch[name]) ** 2) for name in batch))
    assert all(after < max(0.7 * before, 1e-9) for before, after in pairwise(errors))


@pytest.mark.slow
def test_majority() -> None:
    gradients = normal(VECTOR, 3)
    updates = trial_of(f'mean(codec={VOTE}', 3, feedbacks=(False,)).run({'False': gradients}).updates['False']
    for name, array in gradients.items():
        np.testing.assert_array_equal(updates[name][:, 0], np.sign(np.sign(array).sum(1)))
