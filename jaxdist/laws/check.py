"""Trying an algorithm or a codec: all laws, those that everybody answers to and those that it claims."""

from collections.abc import Iterable
from typing import Any

from jaxdist import line as lines
from jaxdist.core.registry import Entry
from jaxdist.laws.codecs import CodecTrial, universal_codec
from jaxdist.laws.law import Law, LawResult, check_law
from jaxdist.laws.trial import Trial
from jaxdist.laws.universal import universal


def check(update: Any, claims: Iterable[Law] = (), workers: int = 4, **options: Any) -> list[LawResult]:
    """Every universal law's verdict on an optax transformation, then those of the laws that it claims.

    The mesh needs as many devices as workers (on CPU they can be emulated: `jax_num_cpu_devices`).

    Args:
        update: the transformation; it talks over the axis `workers` unless `axis` says otherwise.
        claims: laws that it claims.
        workers: how many there are.
        **options: of `Trial`: shapes, dtype, seed, axis.

    >>> import optax
    >>> [v.law for v in check(optax.scale(2.0), workers=1) if v.problem]
    []
    """
    trial = Trial(update, workers, **options)
    return [check_law(law, trial) for law in (*universal(), *claims)]


def check_entry(entry: Entry, workers: int = 4, seed: int = 0) -> dict[str, list[LawResult]]:
    """The verdicts on each example of a registered algorithm or codec, with this number of workers where any will do.

    >>> from jaxdist.core.registry import algorithms
    >>> check_entry(algorithms()['delay'], workers=1)['delay(steps=0)'][0]
    LawResult(law='simulated equals a mesh', problem='')
    """
    return {line: _results(entry, line, tuple(claims), workers, seed) for line, claims in entry.examples.items()}


def count_for(claims: Iterable[Law], workers: int) -> int:
    """The number of workers to try claims with: the one that one of them is for, or else this one.

    >>> count_for([Law('is fine', print)], 4), count_for([Law('is fine', print, workers=3)], 4)
    (4, 3)
    """
    return next((law.workers for law in claims if law.workers), workers)


def _results(entry: Entry, line: str, claims: tuple[Law, ...], workers: int, seed: int) -> list[LawResult]:
    if entry.kind == 'codec':
        codec_trial = CodecTrial(lines.build_codec(line), seed=seed)
        return [check_law(law, codec_trial) for law in (*universal_codec(), *claims)]
    return check(lines.build(line), claims, count_for(claims, workers), seed=seed)
