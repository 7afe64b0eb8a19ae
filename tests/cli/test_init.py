"""The starter that `jaxdist init` writes runs as it is, and bad calls are answered."""

from pathlib import Path

import pytest
from forked import launch
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
TESTS = 'import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))'


def test_bad_calls_are_answered(jaxdist: Jaxdist) -> None:
    assert 'as in jaxdist init mine' in jaxdist('init').err
    assert 'as in jaxdist init mine' in jaxdist('init', 'a', 'b').err
    assert 'usage: jaxdist init FOLDER' in jaxdist('init', '--help').out
    assert jaxdist('init', 'mine').code == 0
    code, _, err = jaxdist('init', 'mine')
    assert (code, err) == (2, 'error: mine has files already: name a new folder\n')
    assert 'small.py cannot be written' in jaxdist('init', 'small.py').err


@pytest.mark.slow
def test_the_starter_runs(jaxdist: Jaxdist, tmp_path: Path) -> None:
    """In separate processes: the files are imported by their names."""
    out = jaxdist('init', 'mine').out
    assert 'jaxdist train mine/experiment.py' in out
    for commands in (LAWS, COMMANDS):
        process = launch(EVERY, *commands, cwd=tmp_path)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert '| clipped ' in Path('runs/compare-experiment/table.md').read_text()
    out, err = launch(TESTS, '-q', '-p', 'no:cacheprovider', 'mine', cwd=tmp_path).communicate(timeout=300)
    assert '3 passed' in out, out + err
