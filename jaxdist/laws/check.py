"""Checks an algorithm or a codec against all its laws: the universal ones and those that it claims."""

import ast
from collections.abc import Iterable
from typing import Any

import optax

from jaxdist import line as lines
from jaxdist.core.registry import Entry
from jaxdist.laws.codecs import CodecTrial, universal_codec
from jaxdist.laws.declarations import declares
from jaxdist.laws.law import Law, LawResult, check_law
from jaxdist.laws.trial import Trial
from jaxdist.laws.universal import universal
from jaxdist.line.calls import dotted, transformations


def check(
    update: optax.GradientTransformation, claims: Iterable[Law] = (), workers: int = 4, **options: Any
) -> list[LawResult]:
    """The results of all universal laws on an optax transformation, then those of the laws that it claims.

    The mesh needs as many devices as workers (on CPU they can be emulated: `jax_num_cpu_devices`).

    Args:
        update: the transformation; it communicates over the axis `workers`, unless the option `axis` names another.
        claims: the laws that it claims.
        workers: the number of workers.
        **options: further arguments of `Trial`: shapes, dtype, seed, axis.

    >>> import optax
    >>> [result.law for result in check(optax.scale(2.0), workers=1) if result.problem]
    []
    """
    trial = Trial(update, workers, **options)
    return [check_law(law, trial) for law in (*universal(), *claims)]


def check_entry(entry: Entry, workers: int = 4, seed: int = 0) -> dict[str, list[LawResult]]:
    """The results for each example line of a registered algorithm or codec.

    Claims that are for any number of workers are checked with one worker less too.

    Args:
        entry: the registered algorithm or codec.
        workers: the number of workers, for examples whose claims do not fix it.
        seed: seed of the random gradients or vectors.

    >>> from dataclasses import replace
    >>> from jaxdist.core.registry import algorithms
    >>> entry = replace(algorithms()['delay'], examples={'delay(steps=0)': ()})
    >>> check_entry(entry, workers=1)['delay(steps=0)'][0]
    LawResult(law='simulated equals a mesh', problem='')
    """
    return {line: _results(entry, line, tuple(claims), workers, seed) for line, claims in entry.examples.items()}


def count_for(claims: Iterable[Law], workers: int) -> int:
    """The number of workers to check claims with: the number that a claim is fixed to, or else `workers`.

    >>> count_for([Law('is fine', print)], 4), count_for([Law('is fine', print, workers=3)], 4)
    (4, 3)
    """
    return next((law.workers for law in claims if law.workers), workers)


def _results(entry: Entry, line: str, claims: tuple[Law, ...], workers: int, seed: int) -> list[LawResult]:
    if entry.kind == 'codec':
        codec_trial = CodecTrial(lines.build_codec(line), seed=seed)
        return [check_law(law, codec_trial) for law in (*universal_codec(), *claims)]
    update, count = lines.build(line), count_for(claims, workers)
    results = check(update, (*_declared(entry, line), *claims), count, seed=seed)
    if count == workers and workers > 1:
        fewer = Trial(update, workers - 1, seed=seed)
        again = [check_law(law, fewer) for law in claims]
        words = f'{workers - 1} worker{"" if workers == 2 else "s"}'
        results += [LawResult(f'{result.law}, {words}', result.problem) for result in again]
    return results


def _declared(entry: Entry, line: str) -> tuple[Law, ...]:
    """The law on what the algorithm declares, for a line that has no other transformation."""
    (first, *more) = transformations(ast.parse(line, mode='eval').body)
    alone = not more and isinstance(first, ast.Call) and dotted(first.func) == entry.name
    return (declares(entry.syncs),) if alone else ()
