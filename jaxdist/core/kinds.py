"""Decorators that register what lines name and what is no transformation: compute times, graphs and rules."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxdist.core.registry import Make, register


def compute_time(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a `jaxdist.clock.compute.ComputeTime`, which a clock can name.

    The rules are those of `algorithm`.

    >>> from jaxdist.core.registry import find
    >>> find('lognormal').kind
    'compute time'
    """
    return register('compute time', paper, examples, '')


def graph(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a `jaxdist.graphs.graph.Graph`, over which workers gossip.

    The rules are those of `algorithm`.

    >>> from jaxdist.core.registry import find
    >>> find('ring').kind
    'graph'
    """
    return register('graph', paper, examples, '')


def rule(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a `jaxdist.clock.rules.RuleKind`: a server's, in update lines.

    The rules are those of `algorithm`.

    >>> from jaxdist.core.registry import find
    >>> find('ssp').kind
    'rule'
    """
    return register('rule', paper, examples, '')
