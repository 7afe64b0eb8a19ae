"""Docstrings' examples as blocks of code: Markdown takes lines that begin with >>> for quotations."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r'^( *)>>> .*(?:\n\1.*\S.*)*', re.MULTILINE)


def fenced(text: str) -> str:
    """The text with a fence around each example, which ends at an empty line.

    A line that only begins an example, such as the heading of a section of them, is left as it is.
    """

    def fence(match: re.Match[str]) -> str:
        return f'\n{match[1]}```pycon\n{match[0]}\n{match[1]}```\n'

    return EXAMPLE.sub(fence, text)


class Doctests(griffe.Extension):
    """Fences the examples of every docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
