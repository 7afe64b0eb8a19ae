"""What a step minimises: a plain loss, or anything else with the same three functions.

The step knows `Objective` alone. A Lagrangian (`jaxdist.constraints.objective`) is one; so can be a distillation loss
or a federated local objective. An objective runs inside the worker axis and may communicate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jaxdist.core import collectives
from jaxdist.core.gradient import gradients
from jaxdist.core.types import Batch, Loss, Params
from jaxdist.core.workers import Workers

Lookahead = Callable[[Params], Params]
"""From a gradient to the parameters that the update would move to; nothing is applied."""


class WorkerLoss(NamedTuple):
    """The loss as one worker evaluates it.

    Attributes:
        loss: see `jaxdist.core.types.Loss`.
        accumulate: parts that the batch is taken in, one after the other.
        compute: the dtype in which the loss sees the parameters, or None for theirs.
        uneven: whether the loss's counts can differ between workers.
        axis: the worker axis.
    """

    loss: Loss
    accumulate: int
    compute: jax.typing.DTypeLike | None
    uneven: bool
    axis: str


class ObjectiveOutput(NamedTuple):
    """One worker's evaluation of an objective.

    Attributes:
        sums: the loss's sums at the parameters.
        examples: the loss's count of examples.
        grads: this worker's gradient.
        state: the objective's state after it.
        metrics: the objective's own metrics, by the names in `metric_names`.
        check: further values that must be finite for the step to be applied.
    """

    sums: dict[str, jax.Array]
    examples: jax.Array
    grads: Params
    state: Any
    metrics: dict[str, Any]
    check: Any = ()


class Objective(Protocol):
    """What `make_step` minimises."""

    @property
    def weighted(self) -> bool:
        """Whether the plain mean over workers of the gradients is the objective's; else the step weights each worker's
        by its example count.
        """

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of its metrics, which the loss's sums must not have."""

    @property
    def state_name(self) -> str:
        """What its state is called where memory is listed."""

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Raises InputError if the objective does not fit these shapes: of the parameters and of the whole batch."""

    def check_layout(self, layout: Any, diverge: bool) -> None:
        """Raises InputError if the objective does not fit the layout of its state, or workers that diverge."""

    def check_resize(self, before: int, now: int) -> None:
        """Raises InputError if a run cannot go on with another number of workers."""

    def begin(self, params: Params, batch: Batch) -> Any:
        """The state before the first step; of `batch`, this worker's part, shapes alone count."""

    def gradient(
        self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array,
        lookahead: Lookahead,
    ) -> ObjectiveOutput:  # fmt: skip
        """This worker's gradient at the parameters, from its part of the batch."""

    def after(self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """The state after the parameters have moved to `params`."""


class LossObjective(NamedTuple):
    """The loss itself: no state and no metrics of its own.

    >>> LossObjective().begin({}, {})
    ()
    """

    weighted: bool = False
    metric_names: tuple[str, ...] = ()
    state_name: str = ''

    def check(self, params: Params, batch: Batch, workers: Workers, accumulate: int) -> None:
        """Fits everything."""

    def check_layout(self, layout: Any, diverge: bool) -> None:
        """Fits everything."""

    def check_resize(self, before: int, now: int) -> None:
        """Fits everything."""

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
        # A gradient with respect to replicated parameters would be summed over workers at once.
        local = collectives.pvary(params, loss.axis)
        sums, count, grads = gradients(loss.loss, loss.accumulate, loss.compute)(local, batch, key)
        return ObjectiveOutput(sums, count, grads, state, {})

    def after(self, loss: WorkerLoss, state: Any, params: Params, step: jax.Array, batch: Batch, key: jax.Array) -> Any:
        """No state."""
        del loss, params, step, batch, key
        return state


class Extreme(NamedTuple):
    """A metric that is reported of one worker only: the one whose `rank` is largest, NaN last.

    Attributes:
        rank: a scalar; [W] for all workers.
        values: a pytree of scalars; [W] each for all workers.
    """

    rank: Any
    values: Any
