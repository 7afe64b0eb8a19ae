"""Fragments: parts of a pytree that are sent at different times, chosen by a rule rather than by names of layers."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax

from jaxdist.core.errors import InputError

Rule = Literal['balanced', 'sequential', 'strided']
RULES: tuple[Rule, ...] = get_args(Rule)


def divide(tree: Any, count: int, rule: Rule = 'balanced') -> list[tuple[int, ...]]:
    """Partitions the leaves of a tree into fragments: for each, the indices of its leaves, one or more.

    Args:
        tree: arrays, or their shapes.
        count: the number of fragments.
        rule: `balanced`, fragments of similar size: the largest leaves first, each into the smallest fragment so far;
            `sequential`, consecutive leaves, in fragments of similar size; `strided`, every `count`-th leaf.

    Raises:
        InputError: there are fewer leaves than fragments, or there is no such rule.

    >>> import jax.numpy as jnp
    >>> layers = [jnp.ones(n) for n in (8, 1, 8, 1, 2)]
    >>> [divide(layers, 2, rule) for rule in ('balanced', 'sequential', 'strided')]
    [[(0, 4), (1, 2, 3)], [(0, 1), (2, 3, 4)], [(0, 2, 4), (1, 3)]]
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    if not isinstance(count, int) or count < 1:
        raise InputError(f'fragments={count!r} must be a whole number, 1 or more')
    if count > len(sizes):
        raise InputError(f'fragments={count} is more than there are tensors, {len(sizes)}: a fragment has one or more')
    if rule == 'balanced':
        return _balanced(sizes, count)
    if rule == 'sequential':
        return _sequential(sizes, count)
    if rule == 'strided':
        return [tuple(range(first, len(sizes), count)) for first in range(count)]
    raise InputError(f'rule={rule!r} must be one of {", ".join(RULES)}')


def pick(tree: Any, members: Sequence[int]) -> Any:
    """The tree with only the leaves of these indices, and None for the others, so that paths stay as they are.

    >>> pick({'a': 1.0, 'b': 2.0}, (1,))
    {'a': None, 'b': 2.0}
    """
    leaves, like = jax.tree.flatten(tree)
    return jax.tree.unflatten(like, [leaf if i in members else None for i, leaf in enumerate(leaves)])


def join(parts: Sequence[Any]) -> Any:
    """The tree whose leaves `pick` has divided into these parts.

    >>> join([{'a': None, 'b': 2.0}, {'a': 1.0, 'b': None}])
    {'a': 1.0, 'b': 2.0}
    """
    # None in all parts is None in the tree.
    present = lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None)  # noqa: E731
    return jax.tree.map(present, *parts, is_leaf=lambda x: x is None)


def _balanced(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """The largest leaves first, each into the fragment that is smallest so far."""
    members: list[list[int]] = [[] for _ in range(count)]
    totals = [(0, 0)] * count  # (entries, leaves): counting leaves spreads those without entries too
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        smallest = min(range(count), key=lambda part: totals[part])
        members[smallest].append(i)
        totals[smallest] = (totals[smallest][0] + sizes[i], totals[smallest][1] + 1)
    return [tuple(sorted(part)) for part in members]


def _sequential(sizes: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Consecutive leaves: each fragment ends where its size is nearest to an even share of the remaining entries."""
    fragments, first = [], 0
    for remaining in range(count, 0, -1):
        share, end = sum(sizes[first:]) / remaining, first + 1
        limit = len(sizes) - (remaining - 1)  # the other fragments need a leaf each
        while end < limit and abs(sum(sizes[first : end + 1]) - share) <= abs(sum(sizes[first:end]) - share):
            end += 1
        end = limit if remaining == 1 else end
        fragments.append(tuple(range(first, end)))
        first = end
    return fragments
