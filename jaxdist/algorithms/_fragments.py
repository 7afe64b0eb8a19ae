"""Parts of a pytree that are sent at different times: found by a rule, not by the names of layers."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax

from jaxdist.core.errors import InputError

Rule = Literal['balanced', 'sequential', 'strided']
RULES: tuple[Rule, ...] = get_args(Rule)


def divide(tree: Any, count: int, rule: Rule = 'balanced') -> list[tuple[int, ...]]:
    """The numbers of the leaves in each of so many fragments: every leaf is in one, and each fragment has one or more.

    Args:
        tree: arrays, or shapes.
        count: how many fragments.
        rule: `balanced`, about as many entries in each: the largest leaves first, each to the fragment with the least;
            `sequential`, leaves that follow each other, about as many entries in each; `strided`, leaves that lie
            `count` apart.

    Raises:
        InputError: there are fewer leaves than fragments, or no such rule.

    >>> import jax.numpy as jnp
    >>> layers = [jnp.ones(n) for n in (8, 1, 8, 1, 2)]
    >>> [divide(layers, 2, rule) for rule in ('balanced', 'sequential', 'strided')]
    [[(0, 4), (1, 2, 3)], [(0, 1), (2, 3, 4)], [(0, 2, 4), (1, 3)]]
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    if not isinstance(count, int) or count < 1:
        raise InputError(f'fragments={count!r} must be a whole number, 1 or more')
    if count > len(sizes):
        raise InputError(f'fragments={count} is more than there are tensors, {len(sizes)}: a fragment is one or more')
    if rule == 'balanced':
        return _balanced(sizes, count)
    if rule == 'sequential':
        return _sequential(sizes, count)
    if rule == 'strided':
        return [tuple(range(first, len(sizes), count)) for first in range(count)]
    raise InputError(f'rule={rule!r} must be one of {", ".join(RULES)}')


def pick(tree: Any, members: Sequence[int]) -> Any:
    """The tree with the leaves of these numbers alone, and None for the others: paths stay as they are.

    >>> pick({'a': 1.0, 'b': 2.0}, (1,))
    {'a': None, 'b': 2.0}
    """
    leaves, like = jax.tree.flatten(tree)
    return jax.tree.unflatten(like, [leaf if i in members else None for i, leaf in enumerate(leaves)])


def join(parts: Sequence[Any]) -> Any:
    """The tree that has been picked apart.

    >>> join([{'a': None, 'b': 2.0}, {'a': 1.0, 'b': None}])
    {'a': 1.0, 'b': 2.0}
    """
    there = lambda *leaves: next(leaf for leaf in leaves if leaf is not None)  # noqa: E731
    return jax.tree.map(there, *parts, is_leaf=lambda x: x is None)


def _balanced(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    members: list[list[int]] = [[] for _ in range(count)]
    held = [(0, 0)] * count  # entries, leaves: so that leaves without entries are spread out too
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = min(range(count), key=lambda part: held[part])
        members[least].append(i)
        held[least] = (held[least][0] + sizes[i], held[least][1] + 1)
    return [tuple(sorted(part)) for part in members]


def _sequential(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Each fragment ends where it comes nearest to an even share of what is left, and leaves enough for the others."""
    out, first = [], 0
    for parts_left in range(count, 0, -1):
        share, last = sum(sizes[first:]) / parts_left, first + 1
        most = len(sizes) - (parts_left - 1)
        while last < most and abs(sum(sizes[first : last + 1]) - share) <= abs(sum(sizes[first:last]) - share):
            last += 1
        end = most if parts_left == 1 else last
        out.append(tuple(range(first, end)))
        first = end
    return out
