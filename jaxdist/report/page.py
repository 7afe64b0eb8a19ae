"""A self-contained HTML page: text, tables, images, and the command and settings that reproduce it."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist.core import files
from jaxdist.core.errors import InputError
from jaxdist.report.summary import Summary, best
from jaxdist.report.tables import cells, notes

KINDS = {'.png': 'image/png', '.svg': 'image/svg+xml', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg'}

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #5b636b; --line: #d8dde2; --paper: #fff;
  --tint: #f5f7f9; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #a0a8b0; --line: #3a4047; --paper: #16191c;
    --tint: #20242a; --mark: #6cb8e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .5rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .85rem; white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; }
tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
small { display: block; color: var(--soft); }
.best td, .best th:first-child { font-weight: 700; color: var(--mark); }
.notes { color: var(--soft); font-size: .85rem; padding-left: 1.1rem; }
.notes code { overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 900px; height: auto; border-radius: 6px; background: #fff;
  border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .8rem;
  margin: .5rem 0; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
"""


class Picture(NamedTuple):
    """An image of a page.

    Attributes:
        path: a PNG, SVG or JPEG file, which is embedded.
        caption: the text below the image: what it shows and how it is read.
        alternative: the text for readers who do not see the image.
    """

    path: Path
    caption: str
    alternative: str


def page(
    title: str,
    paragraphs: Iterable[str],
    tables: Mapping[str, Sequence[Summary]],
    pictures: Iterable[Picture],
    details: Mapping[str, Any],
    path: Path,
) -> Path:
    """Writes one HTML file without external resources.

    Args:
        title: the title; as all text here it is plain, and is escaped.
        paragraphs: the summary, one string per paragraph.
        tables: the tables' summaries, by caption.
        pictures: the images.
        details: the `command` that reproduces the page, and any other JSON data (experiment, versions), each folded
            under its key.
        path: the file to write.

    Returns:
        `path`.

    Raises:
        InputError: if the command is missing, an image is of another kind, or a detail is not JSON.
        OSError: if an image cannot be read or the page cannot be written.

    >>> from tempfile import mkdtemp
    >>> path = page('8 workers', ['a < b'], {}, [], {'command': 'jaxdist compare c.py'}, Path(mkdtemp()) / 'a.html')
    >>> '<p>a &lt; b</p>' in path.read_text(encoding='utf-8')
    True
    """
    if not isinstance(details.get('command'), str):
        raise InputError("details need a 'command', as text: the one that reproduces this page")
    body = [f'<h1>{escape(title)}</h1>', *(f'<p>{escape(text)}</p>' for text in paragraphs)]
    body += [_table(caption, summaries) for caption, summaries in tables.items()]
    body += map(_image, pictures)
    body += ['<h2>Reproduce</h2>', f'<pre>{escape(details["command"])}</pre>']
    body += [_detail(key, value) for key, value in details.items() if key != 'command']
    files.write(path, _document(title, body), encoding='utf-8')
    return path


def _document(title: str, body: Iterable[str]) -> str:
    # The policy makes a browser enforce that nothing is fetched.
    return '\n'.join(
        [
            '<!doctype html>',
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f'<title>{escape(title)}</title>',
            f'<style>{STYLE}</style></head><body>',
            *body,
            '</body></html>\n',
        ]
    )


def _table(caption: str, summaries: Sequence[Summary]) -> str:
    header, rows = cells(summaries)
    bold = best(summaries)
    head = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = [_row(row, index == bold) for index, row in enumerate(rows)]
    lines = [f'{escape(s.name)}: <code>{escape(s.update)}</code>' for s in summaries if s.name != s.update]
    remarks = ''.join(f'<li>{remark}</li>' for remark in [*lines, *map(escape, notes(summaries))])
    table = f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<h2>{escape(caption)}</h2><div class="wide">{table}</div><ul class="notes">{remarks}</ul>'


def _row(row: Sequence[str], is_best: bool) -> str:
    # Text after a comma (a ratio, a count of diverged runs) goes on a second line, which keeps the table narrow.
    parts = [cell.partition(', ') for cell in row[1:]]
    others = [f'<td>{escape(value)}{f"<small>{escape(rest)}</small>" if rest else ""}</td>' for value, _, rest in parts]
    first = f'<th scope="row">{escape(row[0])}</th>'
    return f'<tr{" class=best" if is_best else ""}>{first}{"".join(others)}</tr>'


def _image(picture: Picture) -> str:
    if (kind := KINDS.get(picture.path.suffix.lower())) is None:
        raise InputError(f'an image is one of {", ".join(KINDS)}, not {picture.path.name!r}')
    data = base64.b64encode(picture.path.read_bytes()).decode()
    source = f'<img src="data:{kind};base64,{data}" alt="{escape(picture.alternative)}">'
    return f'<figure>{source}<figcaption>{escape(picture.caption)}</figcaption></figure>'


def _detail(key: str, value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise InputError(f'details[{key!r}] is not JSON: {error}') from error
    return f'<details><summary>{escape(key)}</summary><pre>{escape(text)}</pre></details>'
