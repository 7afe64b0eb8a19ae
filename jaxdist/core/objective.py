"""The objective that a step minimises: a plain loss, or anything else with the methods of `Objective`.

A Lagrangian (`jaxdist.constraints.objective`) is an objective; a distillation loss or a federated local objective can
be one. An objective runs inside the worker axis and may communicate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jaxdist.core import collectives
from jaxdist.core.layout import Layout
from jaxdist.core.partition import Partition, Whole
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.core.workers import Workers

Lookahead = Callable[[Params], Params]
"""`gradient -> parameters` that the update would move to; nothing is applied."""


class WorkerLoss(NamedTuple):
    """The loss as one worker evaluates it.

    Attributes:
        loss: see `jaxdist.core.types.Loss`.
        accumulate: number of parts that the batch is split into, for gradient accumulation.
        compute: dtype to which parameters are cast for the loss, or None to keep theirs.
        uneven: whether the example counts can differ between workers.
        axis: the worker axis.
        gradients: as returned by `jaxdist.core.gradient.gradients` for this loss.
        state: the model state at this step; () without one.
        partition: how the work is divided among the worker's devices.
    """

    loss: Loss
    accumulate: int
    compute: jax.typing.DTypeLike | None
    uneven: bool
    axis: str
    gradients: Callable[..., Any]
    state: Any = ()
    partition: Partition = Whole()


class ObjectiveOutput(NamedTuple):
    """One worker's evaluation of an objective.

    Attributes:
        sums: the sums that the loss returns.
        examples: the example count that the loss returns.
        grads: this worker's gradient.
        state: the objective's state after the evaluation.
        metrics: the objective's own metrics; the keys are `metric_names`.
        check: further values that must be finite for the step to be applied.
        model_state: the model state that the loss returns.
    """

    sums: dict[str, jax.Array]
    examples: jax.Array
    grads: Params
    state: Any
    metrics: dict[str, Any]
    check: Any = ()
    model_state: Any = ()


class Objective(Protocol):
    """The interface of an objective, for `make_step(objective=...)`."""

    @property
    def weighted(self) -> bool:
        """Whether gradients are weighted already, so that their plain mean over workers is the objective's gradient.

        If not, the step weights each worker's gradient by its example count.
        """

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the objective's metrics; the loss's sums must have other names."""

    @property
    def state_name(self) -> str:
        """The name of the objective's state in lists of memory."""

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Raises InputError if the objective does not fit these shapes of the parameters and of the whole batch."""

    def check_layout(self, layout: Layout, diverge: bool) -> None:
        """Raises InputError if the objective cannot have a state of this layout, or workers that diverge."""

    def check_resize(self, before: int, now: int) -> None:
        """Raises InputError if a run cannot go on with another number of workers."""

    def begin(self, params: Params, batch: Batch) -> Any:
        """The state before the first step. `batch` is this worker's part; only its shapes count."""

    def gradient(
        self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """This worker's gradient at `params`, from its part of the batch."""

    def after(self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """The state after the step has moved the parameters to `params`."""


class LossObjective(NamedTuple):
    """The plain loss, without a state or further metrics.

    >>> LossObjective().begin({}, {})
    ()
    """

    weighted: bool = False
    metric_names: tuple[str, ...] = ()
    state_name: str = ''

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Accepts everything."""

    def check_layout(self, layout: Layout, diverge: bool) -> None:
        """Accepts everything."""

    def check_resize(self, before: int, now: int) -> None:
        """Accepts everything."""

    def begin(self, params: Params, batch: Batch) -> Any:
        """No state."""
        del params, batch
        return ()

    def gradient(
        self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """The gradient of this worker's mean loss."""
        del step, lookahead
        # JAX would sum a gradient with respect to replicated parameters over workers; this one must stay local.
        local = collectives.pvary(params, loss.axis)
        sums, count, grads, after = loss.gradients(local, loss.state, batch, key)
        return ObjectiveOutput(sums, count, grads, state, {}, model_state=after)

    def after(self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """No state."""
        del loss, params, step, batch, key
        return state


class Extreme(NamedTuple):
    """A metric that is reported for one worker only: the worker with the largest `rank`; NaN ranks lowest.

    Attributes:
        rank: a scalar on each worker, [W] for all workers.
        values: a pytree of scalars on each worker, [W] each for all workers.
    """

    rank: Any
    values: Any
