"""Everything that the program prints: control characters in names are shown as `\\x1b`, and none reaches the terminal.

Names come from data, files, folders and labels, and may be a stranger's. A control sequence could set the terminal's
title, hide text or write over it.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from jaxdist.core.control_characters import visible

COLOURS = re.compile(r'(\x1b\[[\d;]*m)')


class Terminal(Console):
    """A console that shows the control characters of what it prints; rich adds its own afterwards."""

    def __init__(self, *, soft_wrap: bool = True, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(highlight=False, soft_wrap=soft_wrap, stderr=stderr, quiet=quiet)

    @property  # type: ignore[misc]
    def file(self) -> IO[str]:
        """The stream itself: what shows control characters would show rich's, and may be below rich's proxy."""
        stream = super().file
        while hasattr(stream, 'rich_proxied_file'):
            stream = stream.rich_proxied_file
        return stream

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for text, also to measure the columns of a table."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Called by rich for everything that it prints."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Visible:
    """A stream for what does not go through a `Terminal`, such as help and warnings. In a terminal it has colours."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # rich writes there, with its control sequences

    def write(self, text: str) -> int:
        """Writes the text."""
        parts = COLOURS.split(text) if self.rich_proxied_file.isatty() else [text]
        parts[::2] = map(visible, parts[::2])
        self.rich_proxied_file.write(''.join(parts))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes all lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Shows control characters in all output while the block runs, and in the traceback of an error that ends it.

    >>> with visible_output():
    ...     print('\\x1b')
    \\x1b
    """
    before = sys.stdout, sys.stderr
    streams: Any = tuple(map(Visible, before))
    sys.stdout, sys.stderr = streams
    try:
        yield
    except Exception:
        raise  # Python prints the traceback when the program ends
    except BaseException:
        sys.stdout, sys.stderr = before
        raise
    sys.stdout, sys.stderr = before
