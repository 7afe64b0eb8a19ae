"""Measuring a step: its traced and its compiled program, and what of the one became what in the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from jaxdist.ledger.collective import Branch, Collective
from jaxdist.ledger.compiled import compiled
from jaxdist.ledger.frequency import Frequencies, count_frequencies, jitted
from jaxdist.ledger.ledger import Ledger, Row, memory_bytes, per_step
from jaxdist.ledger.traced import Flow

_Sends = dict[Branch, dict[Any, Any]]
"""Innermost branch -> (axes, dtype, whether it can be counted) -> bytes sent."""


def traced_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    sizes: Mapping[str, int],
    steps: int,
    *,
    initial: Callable[[], Any] | None = None,
) -> list[Row]:
    """What a step asks for, with the share of steps on which it does; nothing is compiled for the mesh.

    Args and errors are those of `shares`; what is counted is said at `traced`.

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
    """Compiles a step and reads what it sends and holds; nothing runs but what decides how often it sends.

    The rows are the compiled program's. Frequencies come from the traced one: a branch of the compiled program is
    the traced one that sends the same bytes. Where the compiler changed those, it is one of as many that send
    the same dtypes over the same axes, if it does not matter which; or all that are left have one share; or
    the share is None.

    Args:
        step: `(state, batch) -> (state, out)`, jitted or not.
        state: the first state, or its shapes with their shardings.
        batch: a batch, or its shapes with their shardings.
        mesh: the mesh that the step runs on; its devices need not be here.
        steps: over how many steps shares are counted.
        initial: makes the first state; needed if `state` has no values and conditionals depend on it.
        stored: what is stored, as pytrees by name. `state` and `batch` if not given; `temporaries`, which are
            the compiler's, are added.

    Raises:
        InputError, UnknownCollectiveError: see `traced`, `compiled` and `shares`.

    >>> import jax
    >>> mesh = jax.make_mesh((1,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> code = lambda count, x: (count + 1, jax.lax.psum(x, 'workers'))
    >>> specs = jax.P(), jax.P('workers')
    >>> step = jax.shard_map(code, mesh=mesh, in_specs=specs, out_specs=(jax.P(), jax.P()))
    >>> ledger = measure(step, jax.numpy.int32(0), jax.numpy.ones(8), mesh, steps=10)
    >>> ledger.rows, ledger.memory['state'], ledger.memory['batch'], int(ledger.sent('workers'))
    ((), 4, 32, 0)
    """
    traced = jitted(step).trace(state, batch)
    program = traced.lower().compile()
    flow = Flow.of(traced.jaxpr, mesh.shape)
    wanted = flow.collectives
    found = compiled(program, mesh)
    shares = count_frequencies(flow, traced.out_info, state, steps, initial)
    rows = per_step(found, match_branches(found, wanted, shares))
    sizes = {name: memory_bytes(tree) for name, tree in (stored or {'state': state, 'batch': batch}).items()}
    memory = program.memory_analysis()
    if memory is not None:
        sizes['temporaries'] = memory.temp_size_in_bytes
    return Ledger(dict(mesh.shape), tuple(rows), sizes)


def match_branches(
    found: Sequence[Collective], wanted: Sequence[Collective], shares: Mapping[Branch, Fraction | None]
) -> Frequencies:
    """Frequencies of a compiled program's branches, from those of the traced program's; see `measure`.

    Args:
        found: the compiled program's entries.
        wanted: the traced program's.
        shares: of the branches of `wanted`.

    >>> here, there = Branch('0.3', 1), Branch('conditional.1', 1)
    >>> sends = Collective(('workers',), 'all_reduce', 'float32', Fraction(70))
    >>> wanted, found = sends._replace(branch=(here,)), sends._replace(branch=(there,))
    >>> match_branches([found], [wanted], {here: Fraction(1, 5)})
    {Branch(cond='conditional.1', index=1): Fraction(1, 5)}
    """
    axes = {entry.axes for entry in wanted}
    left = _by_branch(wanted)
    new = {b: {k: v for k, v in sends.items() if k[0] in axes} for b, sends in _by_branch(found).items()}
    out: Frequencies = {}
    for branch, sends in list(new.items()):
        same = [b for b, other in left.items() if other == sends and b.index == branch.index]
        if same:
            out[branch] = shares[same[0]]
            del left[same[0]], new[branch]
    return out | {branch: _guess(branch, new, left, shares) for branch in new}


def _guess(branch: Branch, new: _Sends, left: _Sends, shares: Mapping[Branch, Fraction | None]) -> Fraction | None:
    """The share of a branch whose bytes the compiler changed, if there is no doubt about it."""
    alike = lambda b, sends: b.index == branch.index and set(sends) == set(new[branch])  # noqa: E731
    peers = [b for b, sends in new.items() if alike(b, sends)]
    origins = [b for b, sends in left.items() if alike(b, sends)]
    if len(peers) == len(origins) and all(new[b] == new[branch] for b in peers):
        # Whichever is whose, they send the same: the sums come out right.
        return shares[origins[peers.index(branch)]]
    agreed = {shares[b] for b in left if b.index == branch.index}
    return agreed.pop() if len(agreed) == 1 else None


def _by_branch(entries: Iterable[Collective]) -> _Sends:
    out: _Sends = {}
    for entry in entries:
        if entry.branch:
            sends = out.setdefault(entry.branch[-1], {})
            key = (entry.axes, entry.dtype, entry.times is None)
            sends[key] = sends.get(key, 0) + entry.sent * (entry.times or 1)
    return out
