"""The starter that `jaxdist init` writes runs as it is, and bad calls are answered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import PLAIN
from run_fixtures import Jaxdist

LAWS = ('laws mine/algorithm.py',)
COMMANDS = (
    'train mine/experiment.py --steps 3',
    'plan mine/experiment.py',
    'compare mine/experiment.py --steps 8',
    'tune mine/experiment.py --steps 4 --trials 1 --update adamw(1e-2)|average(every=2)',
)
EVERY = """
import sys
from jaxdist.cli.main import main

for command in sys.argv[1:]:
    sys.argv = ['jaxdist', *command.split()]
    main()
"""


def test_bad_calls_are_answered(jaxdist: Jaxdist) -> None:
    assert 'as in jaxdist init mine' in jaxdist('init').err
    assert 'as in jaxdist init mine' in jaxdist('init', 'a', 'b').err
    assert 'usage: jaxdist init FOLDER' in jaxdist('init', '--help').out
    assert jaxdist('init', 'mine').code == 0
    code, _, err = jaxdist('init', 'mine')
    assert (code, err) == (2, 'error: mine has files already: name a new folder\n')
    assert 'small.py cannot be written' in jaxdist('init', 'small.py').err


@pytest.mark.slow
def test_the_starter_runs(jaxdist: Jaxdist) -> None:
    """In separate processes: the files are imported by their names."""
    out = jaxdist('init', 'mine').out
    assert 'jaxdist train mine/experiment.py' in out
    environment = {**os.environ, **PLAIN}
    for commands in (LAWS, COMMANDS):
        words = [sys.executable, '-W', 'error', '-c', EVERY, *commands]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '| clipped ' in Path('runs/compare-experiment/table.md').read_text()
    words = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'mine']
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert '3 passed' in ended.stdout, ended.stdout + ended.stderr
