"""Labels of the experiments that a comparison has: what differs between them."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxdist import line
from jaxdist.training.experiment import Experiment, flat

READABLE = 60
"""Where a line has only what most lines have, lines of at most so many characters are easier to read in full."""


def labels(experiments: Sequence[Experiment]) -> list[str]:
    """A label for each experiment: its update line, shortened, and the settings that differ; no two are equal.

    Args:
        experiments: experiments that differ in more than their seed.

    Raises:
        LineError: an update line has a mistake.

    >>> from jaxdist.training.experiment import Mesh
    >>> labels([Experiment(update='sgd(0.1)', mesh=Mesh(workers=n)) for n in (2, 4)])
    ['workers=2', 'workers=4']
    """
    fields = [{name: v for name, v in flat(e).items() if name not in ('seed', 'update')} for e in experiments]
    differ = list(dict.fromkeys(name for f in fields for name in f if any(g.get(name) != f[name] for g in fields)))
    ends = Counter(name.rpartition('.')[2] for name in {name for f in fields for name in f})
    short_names = {name: end if ends[end := name.rpartition('.')[2]] == 1 else name for name in differ}
    lines = [e.update for e in experiments]
    texts = [''] * len(lines) if len(set(lines)) == 1 else line.shorten(lines)
    if '' in texts and not differ and max(map(len, lines)) <= READABLE:
        texts = lines
    short = [
        _joined([text, *(_setting(short_names[name], f[name]) for name in differ if name in f)], update)
        for text, f, update in zip(texts, fields, lines, strict=True)
    ]
    # Settings of different types may have the same text, as a number and a string have: their JSON text differs.
    exact = [
        _joined([text, *(f'{name}={json.dumps(f[name])}' for name in differ if name in f)], update)
        for text, f, update in zip(texts, fields, lines, strict=True)
    ]
    return short if len(set(short)) == len(short) else exact


def _joined(texts: Sequence[str], update: str) -> str:
    return ', '.join(text for text in texts if text) or update


def _setting(name: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return ', '.join(value) or f'no {name}'
    return f'{name}={value}'
