"""The ledger of a program, from its trace: what its workers send, and what each device stores."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist.core.program import Program
from jaxdist.ledger.ledger import Ledger, memory_bytes
from jaxdist.ledger.measure import traced_step


def cost(program: Program[Any], batch: Any, *args: Any, steps: int = 100) -> Ledger:
    """Bytes that one worker sends at a step, and bytes in memory per device; nothing is compiled for the mesh, or run.

    For simulated workers they are those of a mesh of as many workers.

    Args:
        program: from `make_step`, `distribute` or `update_program`.
        batch: the whole batch of all workers, or its shapes.
        *args: the arguments of `program.init`, such as `jax.random.key(0)`.
        steps: the number of steps over which the frequency of conditional collectives is counted.

    Raises:
        InputError: see `frequencies`.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.program import update_program
    >>> from jaxdist.core.workers import simulated
    >>> from jaxdist.line import build
    >>> update, batch = build('sgd(0.1) | average(every=10)'), jnp.ones((4, 30))
    >>> ledger = cost(update_program(update, lambda: jnp.zeros(30), batch, simulated(4)), batch)
    >>> int(ledger.sent('workers')), ledger.memory
    (18, {'state': 128, 'batch': 120})
    """
    placed = program.on_mesh()
    mesh, batch = placed.workers.mesh, placed_batch(placed, batch)
    assert mesh is not None
    sends = traced_step(placed.step, placed.state, batch, mesh.shape, steps, initial=lambda: program.init(*args))
    return Ledger(dict(mesh.shape), tuple(sends), {'state': memory_bytes(placed.state), 'batch': memory_bytes(batch)})


def placed_batch(program: Program[Any], batch: Any) -> Any:
    """The shapes of a batch, sharded over the worker axis of the program's mesh.

    Args:
        program: a program on a mesh.
        batch: the whole batch of all workers, or its shapes.

    >>> import jax.numpy as jnp
    >>> from jaxdist.core.program import distribute
    >>> from jaxdist.core.workers import simulated
    >>> program = distribute(lambda: jnp.zeros(()), lambda state, batch: (state, batch), jnp.ones(8), simulated(4))
    >>> memory_bytes(placed_batch(program.on_mesh(), jnp.ones(8)))
    8
    """
    assert program.workers.mesh is not None
    rows = NamedSharding(program.workers.mesh, PartitionSpec(program.workers.axis))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=rows), batch)
