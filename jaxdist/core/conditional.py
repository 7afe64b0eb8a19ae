"""A conditional that changes values in place, for communication rounds: a loop that runs its body once or never.

What a `while_loop` carries stays in its buffer, and is changed there if the body runs. With `lax.cond` XLA needs a
second buffer for updates, and for some algorithms copies what is returned unchanged between rounds, such as an anchor.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar('T')


def when(condition: jax.typing.ArrayLike, fn: Callable[[T], T], operand: T) -> T:
    """`fn(operand)` if the condition is true, else `operand`.

    `fn` may communicate if the condition is the same on all workers. It cannot be differentiated in reverse mode.

    Args:
        condition: a bool scalar.
        fn: returns a tree like `operand`, of the same shapes, dtypes and axes that its leaves vary over. What it reads
            and does not change need not be in `operand`.
        operand: a pytree of arrays. To be changed in place, a leaf must be read from the argument of `fn`.

    >>> double = lambda x: when(x < 3, lambda x: 2 * x, x)
    >>> int(double(jnp.int32(2))), int(double(jnp.int32(5)))
    (4, 5)
    """

    def body(carry: tuple[Any, T]) -> tuple[Any, T]:
        return False, fn(carry[1])

    return lax.while_loop(lambda carry: carry[0], body, (jnp.asarray(condition, bool), operand))[1]
