"""What the program imports before it does anything, and what `import jaxdist` offers without importing it."""

import subprocess
import sys

import pytest

import jaxdist
from jaxdist import _public

SLOW = {'scipy', 'orbax', 'flax', 'matplotlib', 'sklearn', 'tensorstore'}
"""Libraries that take long to import, and that few commands need."""
LOADED = 'import sys, {}; print(*{{name.partition(".")[0] for name in sys.modules}})'
CALLED = """
import atexit, sys
from jaxdist.cli.main import main
atexit.register(lambda: print('loaded:', *{name.partition('.')[0] for name in sys.modules}))
sys.argv = ['jaxdist', *sys.argv[1:]]
main()
"""


def loaded(program: str, *words: str) -> set[str]:
    """The top-level packages that a program has imported, as it prints them on its last line."""
    done = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize('module', ['jaxdist', 'jaxdist.cli.main'])
def test_an_import_loads_neither_jax_nor_a_slow_library(module: str) -> None:
    packages = loaded(LOADED.format(module))
    assert 'jaxdist' in packages
    assert not packages & {*SLOW, 'jax', 'optax', 'tyro'}


def test_the_help_loads_neither_jax_nor_a_slow_library() -> None:
    packages = loaded(CALLED, '--help')
    assert 'rich' in packages
    assert not packages & {*SLOW, 'jax', 'optax', 'tyro'}


@pytest.mark.slow
@pytest.mark.parametrize('command', ['train', 'compare', 'plan', 'laws', 'codecs'])
def test_the_help_of_a_command_loads_no_slow_library(command: str) -> None:
    packages = loaded(CALLED, command, '--help')
    assert 'jax' in packages
    assert not packages & SLOW


def test_public_names_are_those_of_the_eager_module() -> None:
    assert {name: getattr(jaxdist, name) for name in jaxdist.__all__} == {
        name: getattr(_public, name) for name in _public.__all__
    }
    assert {'mean', 'int8', 'Experiment', 'algorithms', 'ledger', 'core'} <= set(dir(jaxdist))
    with pytest.raises(AttributeError, match="module 'jaxdist' has no attribute 'nothing'"):
        _ = jaxdist.nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    'program',
    [
        'import jaxdist; print(jaxdist.ledger.__name__, jaxdist.constraints.nupi.__name__)',
        'from jaxdist import *; print(mean(), Experiment)',
        'from jaxdist.codecs.int8 import int8; from jaxdist.core import registry; print(registry.algorithms()["mean"])',
        'from jaxdist.algorithms.mean import mean; from jaxdist import line; print(line.build("mean(codec=int8())"))',
        'from jaxdist import line; print(line.build_constraint("squared_norm(bound=1.0)", None))',
    ],
)
def test_any_part_can_be_imported_first(program: str) -> None:
    done = subprocess.run([sys.executable, '-W', 'error', '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


USER = """
from jaxdist.core.registry import algorithm
import optax

@algorithm(paper='none', examples={'mean()': ()})
def mean():
    return optax.identity()
"""


def test_a_name_of_jaxdist_is_refused_before_anything_was_looked_up() -> None:
    done = subprocess.run([sys.executable, '-c', USER], capture_output=True, text=True)
    assert "'mean' of __main__: the algorithm of jaxdist.algorithms.mean has that name" in done.stderr
