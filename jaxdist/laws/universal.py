"""The laws that every algorithm must keep."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import ledger
from jaxdist.laws.declarations import rejects
from jaxdist.laws.law import Law, LawBroken, close, same_bits, to_numpy
from jaxdist.laws.trial import Trial


def universal() -> tuple[Law, ...]:
    """The laws for every algorithm.

    >>> [law.name for law in universal()]
    ['simulated equals a mesh', 'pure', 'traced once', 'state type is a fixed point', 'resumes bit for bit',
     'traced bytes equal compiled bytes', 'a rejected step has no effect']
    """
    return (
        Law('simulated equals a mesh', _simulated_equals_mesh),
        Law('pure', _pure),
        Law('traced once', _traced_once),
        Law('state type is a fixed point', _fixed_point),
        Law('resumes bit for bit', _resumes),
        Law('traced bytes equal compiled bytes', _traced_bytes),
        rejects(),
    )


def _simulated_equals_mesh(trial: Trial) -> None:
    gradients = trial.gradients(5)
    mesh, simulated = trial.run(gradients, program=trial.on_mesh), trial.run(gradients)
    close(simulated.updates, mesh.updates, 'updates of simulated workers and of a mesh', 1e-5)
    close(simulated.params, mesh.params, 'parameters of simulated workers and of a mesh', 1e-5)


def _pure(trial: Trial) -> None:
    """The same arguments give the same bits, in a newly traced program too, and are not changed."""
    batch = trial.batch(0)
    state, _ = trial.counted_step(trial.simulated.init(), batch)
    before = copy.deepcopy(to_numpy(state))
    first = trial.counted_step(state, batch)
    same_bits(trial.counted_step(state, batch), first, 'the same step run twice')
    again = trial.jitted()
    # The same text compiles to the same program, so it is not compiled twice: compilation dominates this law's time.
    if again.lower(state, batch).as_text() != trial.counted_step.lower(state, batch).as_text():
        same_bits(again(state, batch), first, 'the same step, traced again')
    same_bits(state, before, 'the state passed to a step, after the step')


def _traced_once(trial: Trial) -> None:
    state = trial.simulated.init()
    for t in range(3):
        state, _ = trial.counted_step(state, trial.batch(t))
    if len(trial.traces) != 1:
        raise LawBroken(f'the step was traced {len(trial.traces)} times, expected once for all steps')


def _fixed_point(trial: Trial) -> None:
    """A step returns a state of the same shapes and dtypes as its argument."""
    for program in (trial.simulated, trial.on_mesh):
        before = jax.eval_shape(lambda: trial.simulated.init()) if program is trial.simulated else program.state
        after = jax.eval_shape(program.run, before, trial.batch(0))[0]
        for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(after)[0], jax.tree.leaves(before), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                name = jax.tree_util.keystr(path)
                raise LawBroken(f'state leaf {name} goes in as {b.dtype}{b.shape} and comes out as {a.dtype}{a.shape}')


def _resumes(trial: Trial) -> None:
    """A run that saves and loads its state after each of six steps ends with the same bits as an uninterrupted run."""
    gradients = trial.gradients(6)
    uninterrupted = trial.run(gradients, program=trial.on_mesh)
    program = trial.on_mesh
    state = program.init()
    for t in range(6):
        state, _ = program.step(state, jax.tree.map(lambda g, t=t: g[t], gradients))
        state = reloaded(state)
    same_bits(state, uninterrupted.state, 'the state after six steps, saved and loaded after each')


def reloaded(state: Any) -> Any:
    """The state copied to host memory and back, random keys as their data.

    >>> reloaded({'x': jnp.ones(2)})
    {'x': Array([1., 1.], dtype=float32)}
    """

    def reload(x: jax.Array) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jnp.array(jax.random.key_data(x))
            return jax.device_put(jax.random.wrap_key_data(data, impl=jax.random.key_impl(x)), x.sharding)
        return jax.device_put(np.array(x), x.sharding)

    return jax.tree.map(reload, state)


def _traced_bytes(trial: Trial) -> None:
    """The ledger counts the same bytes on the worker axis in the trace and in the compiled program, as integers."""
    program, batch = trial.on_mesh, trial.batch(0)
    mesh = jax.make_mesh((trial.count,), (trial.axis,), axis_types=(jax.sharding.AxisType.Auto,))
    step: Any = program.step  # jitted
    traced = ledger.totals(ledger.traced(program.run, {trial.axis: trial.count}, program.state, batch))
    compiled = ledger.totals(ledger.compiled(step.lower(program.state, batch).compile(), mesh))
    if traced != compiled:
        raise LawBroken(f'the trace has {traced} bytes, the compiled program {compiled}')
