"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates that are similar to `name`, best first; if there are none, candidates that contain it.

    Case is ignored, and so is everything before the last dot.

    >>> nearest('Muon', ['contrib.muon', 'adamw'])
    ['contrib.muon']
    """
    by_ending: dict[str, str] = {}
    for candidate in candidates:
        by_ending.setdefault(_ending(candidate), candidate)
    short = _ending(name)
    close = difflib.get_close_matches(short, by_ending) or [ending for ending in by_ending if short in ending]
    return [by_ending[ending] for ending in close[:3]]


def _ending(name: str) -> str:
    return name.rpartition('.')[2].lower()
