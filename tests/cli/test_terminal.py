"""Control characters in names are shown, and never reach the terminal."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table
from run_fixtures import CONFIG, SMALL, Jaxdist

from jaxdist.cli.progress import Progress
from jaxdist.cli.stopping import Stop
from jaxdist.cli.terminal import Terminal, Visible, visible_output
from jaxdist.core.control_characters import visible
from jaxdist.training.experiment import to_json

TITLE = 'a\x1b]0;title\x07b'
SHOWN = r'a\x1b]0;title'
"""What is shown of it: rich removes the bell from what it lays out."""


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Standard output, as a terminal; made in the test, for pytest replaces that of a fixture."""
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '80')
    made = Screen()
    monkeypatch.setattr(sys, 'stdout', made)
    return made


def test_all_control_characters_are_shown_except_ends_of_lines() -> None:
    every = ''.join(map(chr, [*range(0x2100), 0x1F600]))
    assert set(map(ord, every)) - set(map(ord, visible(every))) == {
        *(set(range(32)) - {9, 10}),
        *range(127, 160),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    }
    assert visible('\x1b \x9b \u202e \x7f é') == r'\x1b \x9b \u202e \x7f é'


def test_an_error_shows_them(jaxdist: Jaxdist) -> None:
    code, _, err = jaxdist('train', TITLE)
    assert code == 2
    assert '\x1b' not in err
    assert '\\x1b]0;title' in err


def test_mistakes_in_options_show_them(jaxdist: Jaxdist) -> None:
    code, out, err = jaxdist('train', 'small.py', '--steps', TITLE)
    assert (code, '\x1b' in out + err) == (2, False)
    assert SHOWN in err.replace('\\\\', '\\')


def test_help_shows_them(jaxdist: Jaxdist) -> None:
    Path('theirs').mkdir()
    Path('theirs/experiment.json').write_text(json.dumps({**to_json(SMALL), 'state_sync': TITLE}))
    code, out, _ = jaxdist('train', 'theirs', '--help')
    assert (code, '\x1b' in out, SHOWN in out.replace('\\\\', '\\')) == (0, False, True)


def test_facts_about_data_show_them(jaxdist: Jaxdist) -> None:
    named = f"""
class Named(Digits):
    def load(self):
        return super().load()._replace(facts={{'name': {TITLE!r}}})


def experiment"""
    Path('small.py').write_text(CONFIG.replace('data=Digits()', 'data=Named()').replace('def experiment', named))
    code, out, err = jaxdist('plan', 'small.py')
    assert (code, '\x1b' in out) == (0, False), err
    assert f'name {SHOWN}' in out


def test_a_table_shows_them_and_keeps_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch)
    table = Table('variant', 'loss')
    table.add_row(TITLE, '1.0')
    table.add_row('[bold]b[/]', '2.0')
    Terminal().print(table)
    text = out.getvalue()
    assert '\x1b]' not in text
    assert SHOWN in text
    assert '\x1b[1mb' in text  # rich's own
    widths = {len(re.sub('\x1b.*?m', '', line)) for line in text.splitlines()}
    assert len(widths) == 1


def test_the_live_line_shows_them_and_rich_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch)
    with visible_output():
        text = live_line(out)
    assert '\x1b]' not in text
    assert text.count(SHOWN[:-3]) >= 2  # the live line crops it
    assert '\x1b[?25l' in text


def live_line(out: Screen) -> str:
    """What a live line shows."""
    progress = Progress(Stop())
    progress.bar.start()
    progress.task = progress.bar.add_task(TITLE, total=3)
    progress.print_line(TITLE)
    progress.bar.refresh()
    progress.bar.stop()
    return out.getvalue()


def test_what_others_print_shows_them_and_keeps_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(monkeypatch)
    with visible_output():
        sys.stdout.write(f'\x1b[31m{TITLE}\x1b[0m\n')
        sys.stdout.writelines(['\x1b[2J'])
        assert sys.stdout.isatty()
    assert out.getvalue() == '\x1b[31ma\\x1b]0;title\\x07b\x1b[0m\n\\x1b[2J'
    assert sys.stdout is out


def test_a_pipe_gets_no_colours() -> None:
    stream = io.StringIO()
    Visible(stream).write('\x1b[31m')
    assert stream.getvalue() == r'\x1b[31m'


def test_the_traceback_of_an_error_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    monkeypatch.setattr(sys, 'stderr', stream)

    def fails() -> None:
        with visible_output():
            sys.stderr.write(TITLE)
            raise RuntimeError(TITLE)

    with pytest.raises(RuntimeError):
        fails()
    sys.__excepthook__(RuntimeError, RuntimeError(TITLE), None)
    assert '\x1b' not in stream.getvalue()
    assert stream.getvalue().count(SHOWN) == 2


def test_no_other_console_is_made() -> None:
    for path in (Path(__file__).parents[2] / 'jaxdist' / 'cli').glob('*.py'):
        assert path.name == 'terminal.py' or ' Console(' not in path.read_text()
