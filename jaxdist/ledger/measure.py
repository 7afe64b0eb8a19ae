"""Measures a step from its traced and its compiled program, and matches the conditionals of the two."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from jaxdist.ledger.collective import Branch, Collective
from jaxdist.ledger.compiled import compiled
from jaxdist.ledger.frequency import Frequencies, count_frequencies, jitted
from jaxdist.ledger.ledger import Ledger, Row, memory_bytes, per_step
from jaxdist.ledger.traced import Flow

_Sends = dict[Branch, dict[tuple[Any, ...], Fraction]]
"""Innermost branch -> (axes, kind, dtype, whether it is in a loop of unknown length) -> bytes sent."""


def traced_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> list[Row]:
    """The rows of a step's traced program, see `traced`; nothing is compiled for the mesh.

    Args and errors are those of `frequencies`.

    >>> import jax
    >>> mesh = jax.sharding.AbstractMesh((8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda count, x: (count + 1, jax.lax.psum(x, 'workers'))
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=(jax.P(), jax.P()))
    >>> state, batch = jax.ShapeDtypeStruct((), 'int32'), jax.ShapeDtypeStruct((80,), 'float32')
    >>> [row] = traced_step(step, state, batch, mesh.shape, steps=10)
    >>> row.kind, row.bytes_per_step
    ('all_reduce', Fraction(70, 1))
    """
    traced = jitted(step).trace(state, batch)
    flow = Flow.of(traced.jaxpr, sizes)
    return per_step(flow.collectives, count_frequencies(flow, traced.out_info, state, steps, initial))


def measure(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    mesh: Any,
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Ledger:
    """The ledger of a compiled step; nothing runs but the part of the step that decides its conditionals.

    The rows are those of the compiled program. Frequencies come from the traced one, whose branches are matched by
    what they send: of the same kinds and dtypes over the same axes, a compiled branch sends the bytes of the traced
    one or, sharded over the other axes, fewer. Where the compiler changed more than that, and the possible
    matchings give different sums, the frequency is None.

    Args:
        step: `(state, batch) -> (state, out)`, jitted or not.
        state: the first state, or its shapes with their shardings.
        batch: a batch, or its shapes with their shardings.
        mesh: the mesh that the step runs on; its devices need not be here.
        steps: how many steps to count over.
        initial: returns the first state; needed if `state` has no values and conditionals depend on it.
        stored: what is stored, as pytrees by name. `state` and `batch` if not given; `temporaries`, which are
            the compiler's, are added.

    Raises:
        InputError, UnknownCollectiveError: see `traced`, `compiled` and `frequencies`.

    >>> import jax
    >>> import numpy as np
    >>> mesh = jax.make_mesh((1,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda count, x: (count + 1, jax.lax.psum(x, 'workers'))
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=(jax.P(), jax.P()))
    >>> ledger = measure(step, np.int32(0), np.ones(8, np.float32), mesh, steps=10)
    >>> ledger.rows, ledger.memory['state'], ledger.memory['batch'], int(ledger.sent('workers'))
    ((), 4, 32, 0)
    """
    traced = jitted(step).trace(state, batch)
    program = traced.lower().compile()
    flow = Flow.of(traced.jaxpr, mesh.shape)
    collectives = compiled(program, mesh)
    frequencies = count_frequencies(flow, traced.out_info, state, steps, initial)
    rows = per_step(collectives, match_branches(collectives, flow.collectives, frequencies, mesh.shape))
    memory = {name: memory_bytes(tree) for name, tree in (stored or {'state': state, 'batch': batch}).items()}
    analysis = program.memory_analysis()
    if analysis is not None:
        memory['temporaries'] = analysis.temp_size_in_bytes
    return Ledger(dict(mesh.shape), tuple(rows), memory)


def match_branches(
    in_compiled: Sequence[Collective],
    in_traced: Sequence[Collective],
    frequencies: Mapping[Branch, Fraction | None],
    sizes: Mapping[str, int],
) -> Frequencies:
    """Frequencies of the branches of a compiled program, from those of the traced program; see `measure`.

    Args:
        in_compiled: the collectives of the compiled program.
        in_traced: the collectives of the traced program.
        frequencies: of the branches of the traced program.
        sizes: the mesh's axes and their sizes.

    >>> traced, compiled = Branch('0.3', 1), Branch('conditional.1', 1)
    >>> psum = Collective(('workers',), 'all_reduce', 'float32', Fraction(70))
    >>> collectives = [psum._replace(branch=(compiled,))], [psum._replace(branch=(traced,))]
    >>> match_branches(*collectives, {traced: Fraction(1, 5)}, {'workers': 8})
    {Branch(cond='conditional.1', index=1): Fraction(1, 5)}
    """
    axes = {collective.axes for collective in in_traced}
    origins = _by_branch(in_traced)
    sends = {b: {k: v for k, v in sent.items() if k[0] in axes} for b, sent in _by_branch(in_compiled).items()}
    pairs = _forced_pairs(sends, origins, sizes)
    matched = {branch: frequencies[origin] for branch, origin in pairs.items()}
    sends = {branch: sent for branch, sent in sends.items() if branch not in pairs}
    origins = {branch: sent for branch, sent in origins.items() if branch not in pairs.values()}
    return matched | {branch: _common_frequency(branch, sends, origins, frequencies) for branch in sends}


def _forced_pairs(sends: _Sends, origins: _Sends, sizes: Mapping[str, int]) -> dict[Branch, Branch]:
    """Branches with their origins, as far as what they send leaves no choice; {} if it leaves no way to pair them.

    As many branches that send the same as there are origins for them take these, in any order: the sums are right.
    """
    options = {
        branch: [o for o in origins if o.index == branch.index and _is_sharded(sent, origins[o], sizes)]
        for branch, sent in sends.items()
    }
    options = {branch: candidates for branch, candidates in options.items() if candidates}
    alike = {b: [c for c in options if c.index == b.index and sends[c] == sends[b]] for b in options}
    pairs: dict[Branch, Branch] = {}
    while forced := [branch for branch in options if len(options[branch]) <= len(alike[branch])]:
        group, candidates = alike[forced[0]], options[forced[0]]
        if len(candidates) < len(group):
            return {}
        pairs.update(zip(group, candidates, strict=True))
        options = {b: [o for o in options[b] if o not in candidates] for b in options if b not in group}
    return pairs


def _is_sharded(sent: Mapping[Any, Fraction], whole: Mapping[Any, Fraction], sizes: Mapping[str, int]) -> bool:
    """Whether the first may be the second once arrays are sharded over the axes that do not communicate."""
    if set(sent) != set(whole):
        return False
    shards = {key: math.prod(n for axis, n in sizes.items() if axis not in key[0]) for key in whole}
    return all(whole[key] / shards[key] <= sent[key] <= whole[key] for key in whole)


def _common_frequency(
    branch: Branch, sends: _Sends, origins: _Sends, frequencies: Mapping[Branch, Fraction | None]
) -> Fraction | None:
    """The frequency of a branch whose bytes the compiler changed, if it makes no difference which it is."""
    sort = lambda sent: {(axes, dtype) for axes, _, dtype, _ in sent}  # noqa: E731
    alike = lambda b, sent: b.index == branch.index and sort(sent) == sort(sends[branch])  # noqa: E731
    peers = [b for b, sent in sends.items() if alike(b, sent)]
    candidates = [b for b, sent in origins.items() if alike(b, sent)]
    if len(peers) == len(candidates) and all(sends[b] == sends[branch] for b in peers):
        # All of them send the same bytes: the sums are right in any order.
        return frequencies[candidates[peers.index(branch)]]
    agreed = {frequencies[b] for b in origins if b.index == branch.index}
    return agreed.pop() if len(agreed) == 1 else None


def _by_branch(collectives: Iterable[Collective]) -> _Sends:
    sends: _Sends = {}
    for collective in collectives:
        if collective.branch:
            sent = sends.setdefault(collective.branch[-1], {})
            key = (collective.axes, collective.kind, collective.dtype, collective.times is None)
            sent[key] = sent.get(key, Fraction(0)) + collective.sent * (collective.times or 1)
    return sends
