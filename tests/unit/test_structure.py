"""Rules of the source tree: floors, cycles, imports, sizes, names, docstrings, and no paths of private machines.

Each rule is a function from a project's folder to a list of problems. It is checked on this project, and tested on
small good and bad projects.
"""

import ast
import graphlib
import os
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = {
    '_former_names': -1,  # data only
    'core': 0,
    **dict.fromkeys(('line', 'ledger', 'graphs', 'models', 'data', 'report'), 1),
    **dict.fromkeys(('laws', 'clock'), 2),
    'codecs': 3,
    **dict.fromkeys(('algorithms', 'constraints', 'compression', 'parallel'), 4),
    **dict.fromkeys(('cluster', 'planner'), 5),
    'training': 6,
    'learners': 7,
    **dict.fromkeys(('cli', '_public'), 8),
    '__main__': 9,
}
WRAPPERS = ('jaxdist.models._layers', 'jaxdist.training.checkpoint.backend')
LATE = ('datasets', 'etils', 'flax', 'matplotlib', 'optuna', 'orbax', 'ray', 'scipy', 'sklearn', 'submitit', *WRAPPERS)
"""Optional extras, libraries that take long to import, and the modules of ours that import such a library."""
LONGEST = 300

Rule = Callable[[Path], list[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


def files(root: Path) -> Iterator[Path]:
    """All files of the project that .gitignore does not exclude, in order."""
    lines = (root / '.gitignore').read_text().split()
    ignored = ['.git', *(line.strip('/') for line in lines)]
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not any(fnmatch(name, line) for line in ignored))
        for name in sorted(names):
            if not any(fnmatch(name, line) for line in ignored):
                yield Path(folder, name)


def modules(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    """All Python files of the package, as paths relative to the package, with their syntax trees."""
    package = root / 'jaxdist'
    for path in files(root):
        if path.suffix == '.py' and path.is_relative_to(package):
            yield path.relative_to(package), ast.parse(path.read_text(), str(path))


def dotted(path: Path) -> tuple[str, ...]:
    """The module's name inside jaxdist, such as `('codecs', 'int8')`; for an `__init__`, the package's name."""
    parts = path.with_suffix('').parts
    return parts[:-1] if parts[-1] == '__init__' else parts


def imports(tree: ast.AST) -> Iterator[Import]:
    return (node for node in ast.walk(tree) if isinstance(node, Import))


def names_of(node: Import, path: Path) -> Iterator[tuple[str, ...]]:
    """The absolute names that an import statement imports."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split('.')) for alias in node.names)
        return
    start = ('jaxdist', *path.parts[: len(path.parts) - node.level]) if node.level else ()
    start += tuple(node.module.split('.')) if node.module else ()
    yield from ((*start, alias.name) for alias in node.names)


def refusal(path: Path, name: tuple[str, ...]) -> str | None:
    """Why the file at `path` may not import `name`, which begins with jaxdist; None if it may."""
    importer, imported = path.with_suffix('').parts[0], name[1] if len(name) > 1 else None
    if imported not in FLOORS:
        return 'import it from the file that defines it, not from the top'
    if importer == imported:
        helper = len(name) > 2 and name[2].startswith('_')
        siblings = importer == 'algorithms' and path.stem != '__init__' and not helper
        return 'algorithms do not import each other' if siblings else None
    if FLOORS[imported] < FLOORS[importer]:
        return None
    return (
        f'{importer} (floor {FLOORS[importer]}) may import lower floors only; {imported} is on floor {FLOORS[imported]}'
    )


def floors(root: Path) -> list[str]:
    """Files import from lower floors only."""
    problems = []
    for path, tree in modules(root):
        if path.parts == ('__init__.py',):
            continue
        if (name := dotted(path)[0]) not in FLOORS:
            problems.append(f'jaxdist/{path} has no floor: give {name!r} one in FLOORS of tests/unit/test_structure.py')
            continue
        for node in imports(tree):
            ours = (name for name in names_of(node, path) if name[0] == 'jaxdist')
            problems += [
                f'jaxdist/{path}:{node.lineno} imports {".".join(name)}: {reason}'
                for name in ours
                if (reason := refusal(path, name))
            ]
    return problems


def cycles(root: Path) -> list[str]:
    """The imports between files of the package have no cycles."""
    trees = {dotted(path): (path, tree) for path, tree in modules(root) if path.parts != ('__init__.py',)}

    def imported(path: Path, tree: ast.Module) -> set[tuple[str, ...]]:
        names = [name[1:] for node in imports(tree) for name in names_of(node, path) if name[0] == 'jaxdist']
        # `from package import name` may import the file `name` of the package, or a name in the package.
        return {
            part
            for name in names
            for part in [next((name[:n] for n in (len(name), len(name) - 1) if name[:n] in trees), ())]
            if part
        }

    graph = {name: imported(*of) - {name} for name, of in trees.items()}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return ['files import each other in a cycle: ' + ' -> '.join('.'.join(name) for name in error.args[1])]
    return []


def late_imports(root: Path) -> list[str]:
    """Imports are at the top of a file; those of optional extras and of slow libraries are inside functions."""
    problems = []
    for path, tree in modules(root):
        wraps = '.'.join(('jaxdist', *dotted(path))) in WRAPPERS
        inside = {n for f in ast.walk(tree) if isinstance(f, Function) for n in imports(f)}
        for node in imports(tree):
            for full in map('.'.join, names_of(node, path)):
                if node in inside and not full.startswith(LATE):
                    problems.append(f'jaxdist/{path}:{node.lineno} imports {full} inside a function')
                if node in tree.body and full.startswith(LATE) and not wraps:
                    problems.append(f'jaxdist/{path}:{node.lineno} imports {full} at the top')
    return problems


def sizes_and_names(root: Path) -> list[str]:
    """Python files have at most 300 lines, and none is called utils."""
    problems = []
    for path in (path for path in files(root) if path.suffix == '.py'):
        lines = len(path.read_text().splitlines())
        file = path.relative_to(root)
        if lines > LONGEST:
            problems.append(f'{file} has {lines} lines, the most is {LONGEST}: divide it by purpose')
        if {'utils', 'util'} & set(file.with_suffix('').parts):
            problems.append(f'{file} is called utils: name it by its purpose')
    return problems


def machine_paths(root: Path) -> list[str]:
    """No text file has a path of a private machine."""
    private = re.compile(r'(?<![\w.~$}-])/(?:tmp/|(?:root|home|work|Users)(?![\w.-]))')
    problems = []
    for path in files(root):
        try:
            lines = path.read_text(encoding='utf-8').splitlines()
        except UnicodeDecodeError:
            continue
        problems += [
            f'{path.relative_to(root)}:{number} names a path of one machine: {line.strip()[:80]}'
            for number, line in enumerate(lines, 1)
            if private.search(line)
        ]
    return problems


def undocumented(path: Path, node: ast.stmt) -> str | None:
    """The problem of a public definition at the top of a module; None if it has a docstring and an example."""
    if not isinstance(node, Function | ast.ClassDef) or node.name.startswith('_'):
        return None
    text = ast.get_docstring(node)
    if text is None:
        return f'{node.name} has no docstring'
    library = FLOORS.get(path.with_suffix('').parts[0], 0) < FLOORS['cli']
    if isinstance(node, Function) and library and '>>>' not in text:
        return f'{node.name} has no example: give it one that begins with >>>'
    return None


def docstrings(root: Path) -> list[str]:
    """Modules, public functions and classes have docstrings; functions below the command line also have an example."""
    problems = []
    for path, tree in modules(root):
        if tree.body and ast.get_docstring(tree) is None:
            problems.append(f'jaxdist/{path}:1 has no docstring')
        if any(part.startswith('_') for part in dotted(path)):
            continue
        lacks = [(node.lineno, undocumented(path, node)) for node in tree.body]
        problems += [f'jaxdist/{path}:{line} {lack}' for line, lack in lacks if lack]
    return problems


RULES: tuple[Rule, ...] = (floors, cycles, late_imports, sizes_and_names, machine_paths, docstrings)


@pytest.mark.parametrize('rule', RULES)
def test_this_project(rule: Rule) -> None:
    problems = rule(ROOT)
    assert not problems, '\n'.join(['', *problems])


def test_the_files_of_this_project_are_found() -> None:
    paths = {str(path.relative_to(ROOT)) for path in files(ROOT)}
    assert {
        'pyproject.toml',
        'scripts/setup.sh',
        'jaxdist/core/collectives.py',
        'tests/unit/test_structure.py',
    } <= paths
    assert not any(path.startswith(('.git/', '.venv/')) for path in paths)


BAD: tuple[tuple[Rule, str, str, str], ...] = (
    (floors, 'jaxdist/core/a.py', 'import jaxdist.training', r'core \(floor 0\) may .*; training is on floor 6'),
    (floors, 'jaxdist/core/a.py', 'from jaxdist import training', 'jaxdist/core/a.py:2 imports jaxdist.training'),
    (floors, 'jaxdist/core/a.py', 'from jaxdist import mean', 'not from the top'),
    (floors, 'jaxdist/core/a.py', 'import jaxdist', 'not from the top'),
    (floors, 'jaxdist/core/a.py', 'def f(): import jaxdist.cli', 'cli is on floor 8'),
    (floors, 'jaxdist/core/a.py', 'from .. import laws', 'laws is on floor 2'),
    (floors, 'jaxdist/models/mlp.py', 'from jaxdist.data.text import batches', 'data is on floor 1'),
    (floors, 'jaxdist/codecs/int8.py', 'from ..algorithms import mean', 'algorithms is on floor 4'),
    (floors, 'jaxdist/codecs/__init__.py', 'from ..training import init', 'training is on floor 6'),
    (floors, 'jaxdist/algorithms/local.py', 'from jaxdist.algorithms.mean import mean', 'each other'),
    (floors, 'jaxdist/algorithms/local.py', 'from .mean import mean', 'each other'),
    (floors, 'jaxdist/attic.py', '', "jaxdist/attic.py has no floor: give 'attic' one in FLOORS"),
    (floors, 'jaxdist/attic/chest.py', '', "jaxdist/attic/chest.py has no floor: give 'attic' one"),
    (late_imports, 'jaxdist/core/a.py', 'def f():\n    if 1: import os', ':3 imports os inside a function'),
    (late_imports, 'jaxdist/report.py', 'import matplotlib.pyplot', 'imports matplotlib.pyplot at the top'),
    (late_imports, 'jaxdist/models/a.py', 'from jaxdist.models import _layers', '_layers at the top'),
    (sizes_and_names, 'jaxdist/core/a.py', 'x = 1\n' * 300, 'jaxdist/core/a.py has 301 lines'),
    (sizes_and_names, 'tests/utils.py', '', 'tests/utils.py is called utils'),
    (sizes_and_names, 'jaxdist/models/utils/trees.py', '', 'is called utils'),
    (machine_paths, 'docs/a.md', 'see `/' + 'home/ann/x`', 'docs/a.md:2 names'),
    (machine_paths, 'run.json', '{"out": "/' + 'tmp/x"}', 'run.json:2 names'),
    (machine_paths, 'README.md', 'cd /' + 'work', 'README.md:2 names'),
    (docstrings, 'jaxdist/core/a.py', 'def mean(x): ...', 'jaxdist/core/a.py:2 mean has no docstring'),
    (docstrings, 'jaxdist/core/a.py', 'def mean(x): "A mean."', 'mean has no example'),
    (docstrings, 'jaxdist/core/a.py', 'class State(NamedTuple):\n    x: int', 'State has no docstring'),
)

GOOD: tuple[tuple[Rule, str, str], ...] = (
    (floors, 'jaxdist/__init__.py', 'from jaxdist.algorithms.mean import mean'),
    (floors, 'jaxdist/training/a.py', 'import jax\nfrom jaxdist.core import mesh\nfrom jaxdist.core.mesh import make'),
    (floors, 'jaxdist/core/registry.py', 'from .collectives import AXIS'),
    (floors, 'jaxdist/algorithms/__init__.py', 'from .mean import mean'),
    (floors, 'jaxdist/algorithms/local.py', 'from jaxdist.algorithms import _periodic'),
    (floors, 'jaxdist/codecs/int8.py', 'from jaxdist.codecs._blocks import scale'),
    (late_imports, 'jaxdist/report.py', 'def plot(): import matplotlib.pyplot'),
    (sizes_and_names, 'jaxdist/core/a.py', 'x = 1\n' * 299),
    (machine_paths, 'README.md', 'all /workers in src/work, ~/home, https://a.org/home, /dev/null'),
    (docstrings, 'jaxdist/core/a.py', 'def mean(x): ">>> mean(1)"\ndef _sum(x): ...'),
    (docstrings, 'jaxdist/cli/main.py', 'def main(): "Starts."'),
)


def project(root: Path, file: str, text: str) -> Path:
    """The folder of a project, with one more file, which begins with a docstring."""
    (root / '.gitignore').write_text('runs/\n*.pyc\n')
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""A file."""\n{text}')
    return root


@pytest.mark.parametrize(('rule', 'file', 'text', 'message'), BAD)
def test_a_bad_project(tmp_path: Path, rule: Rule, file: str, text: str, message: str) -> None:
    (problem,) = rule(project(tmp_path, file, text))
    assert re.search(message, problem)


@pytest.mark.parametrize(('rule', 'file', 'text'), GOOD)
def test_a_good_project(tmp_path: Path, rule: Rule, file: str, text: str) -> None:
    assert rule(project(tmp_path, file, text)) == []


def test_a_cycle_of_imports_is_found(tmp_path: Path) -> None:
    project(tmp_path, 'jaxdist/core/a.py', 'from jaxdist.core import b')
    assert cycles(project(tmp_path, 'jaxdist/core/b.py', 'import jax')) == []
    (problem,) = cycles(project(tmp_path, 'jaxdist/core/b.py', 'from jaxdist.core.a import x'))
    assert 'core.a -> core.b' in problem or 'core.b -> core.a' in problem


def test_ignored_files_are_not_checked(tmp_path: Path) -> None:
    assert sizes_and_names(project(tmp_path, 'runs/utils.py', '')) == []
