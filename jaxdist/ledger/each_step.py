"""What is sent at each step, and what of it lies ready when the step begins."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdist.ledger._dependence import NOTHING, Labels, dependence
from jaxdist.ledger.collective import Collective
from jaxdist.ledger.frequency import count_branches, jitted
from jaxdist.ledger.traced import Flow

PARAMS, STATE, BATCH = 'params', 'state', 'batch'
INPUTS = frozenset({PARAMS, STATE, BATCH})


class Sending(NamedTuple):
    """A collective of a step, and when it runs.

    Attributes:
        collective: the collective.
        runs: how often it runs at each step, [steps]; None if that, or what it sends, depends on data.
        needs: of 'params', 'state' (its other parts) and 'batch', what it sends depends on: without the batch nothing
            of the step has to be computed.
        path: where it stands in the program; operands of one collective have the same.
        after: the paths of the collectives on whose results, in the same step, what it sends depends.
        pairs: of a permute which position sends to which, along its axes; () for the other kinds.
    """

    collective: Collective
    runs: np.ndarray | None
    needs: Labels
    path: str
    after: Labels
    pairs: tuple[tuple[int, int], ...]


def each_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> list[Sending]:
    """The collectives of the traced program in order, with the steps at which they run; arguments as in `frequencies`.

    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def code(count, x):
    ...     mean = lambda x: jax.lax.pcast(jax.lax.pmean(x, 'workers'), 'workers', to='varying')
    ...     return count + 1, jax.lax.cond((count + 1) % 2 == 0, mean, lambda x: x, x)
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=specs)
    >>> [mean] = each_step(step, np.int32(0), jax.ShapeDtypeStruct((8,), 'float32'), mesh.shape, steps=4)
    >>> mean.collective.kind, mean.runs.tolist(), sorted(mean.needs)
    ('all_reduce', [0, 1, 0, 1], ['batch'])
    """
    traced = jitted(step).trace(state, batch)
    flow = Flow.of(traced.jaxpr, sizes)
    counts = count_branches(flow, traced.out_info, state, steps, initial)
    of_state = [PARAMS if _is_param(path) else STATE for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    names = of_state + [BATCH] * len(jax.tree.leaves(batch))
    labels = dependence(flow.program, dict(enumerate(names)))
    of = lambda path: labels.get(path, NOTHING)  # noqa: E731
    return [
        Sending(collective, _runs(collective, flow, counts, steps), of(path) & INPUTS, path, of(path) - INPUTS, pairs)
        for collective, path, pairs in zip(flow.collectives, flow.paths, flow.pairs, strict=True)
    ]


def _is_param(path: tuple[Any, ...]) -> bool:
    return bool(path) and getattr(path[0], 'name', getattr(path[0], 'key', '')) == 'params'


def _runs(collective: Collective, flow: Flow, counts: Mapping[str, np.ndarray], steps: int) -> np.ndarray | None:
    """How often a collective runs at each step."""
    if collective.times is None:
        return None
    if not collective.branch:
        return np.full(steps, collective.times)
    cond, index = collective.branch[-1].cond, collective.branch[-1].index
    turns = flow.conditionals[cond].times
    if cond not in counts or not turns:
        return None
    return counts[cond][:, index] * collective.times // turns
