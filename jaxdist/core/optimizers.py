"""Checks of optimisers that are arguments of algorithms."""

from typing import Any

import optax

from jaxdist.core.errors import InputError


def check_optimizer(name: str, optimizer: Any, argument: str = 'outer') -> optax.GradientTransformationExtraArgs:
    """The optimiser, extended to accept any extra keyword arguments.

    Args:
        name: the algorithm's name, for the error message.
        optimizer: the value of the argument.
        argument: the argument's name, for the error message.

    Raises:
        InputError: the value is not an optax optimiser.

    >>> check_optimizer('diloco', 0.7)
    Traceback (most recent call last):
    jaxdist.InputError: diloco: outer is of type float, and must be an optimiser, such as
    sgd(0.7, momentum=0.9, nesterov=True)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        kind = 'a schedule' if callable(optimizer) else f'of type {type(optimizer).__name__}'
        right = 'sgd(0.7, momentum=0.9, nesterov=True)'
        raise InputError(f'{name}: {argument} is {kind}, and must be an optimiser, such as {right}')
    return optax.with_extra_args_support(optimizer)
