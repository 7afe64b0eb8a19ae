"""The page on clusters: its exit codes are those of jaxdist, and its script is Python."""

import re
from pathlib import Path

from jaxdist.cluster.exits import EXITS

PAGE = (Path(__file__).parents[2] / 'docs' / 'clusters.md').read_text()


def test_the_exit_codes_of_the_page() -> None:
    rows = re.findall(r'^\| (\d+) \| (.*) \| (yes|no) \|$', PAGE, re.MULTILINE)
    assert rows == [(str(code), exit.meaning, 'yes' if exit.retry else 'no') for code, exit in EXITS.items()]


def test_the_script_of_the_page_is_python() -> None:
    (script,) = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    compile(script, 'clusters.md', 'exec')
