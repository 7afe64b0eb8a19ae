"""Runs a user's Python files: configs, with the models, data sets and algorithms that they define or import.

A file is named by its path below the folder of the config that imports it, so that it has the same name where it was
written and in a run's folder, which has a copy.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxdist.core.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of jaxdist's own code."""


class ScriptError(InputError):
    """A file that cannot be run; the message names the line and the error."""


SCRIPT = 'script.'
"""How the names of modules begin that are scripts."""

ROOTS: list[Path] = []
"""The folders of the scripts that were run, the last one last."""


def load_script(path: Path) -> ModuleType:
    """Runs a Python file and returns its module. It may import files in its folder.

    Raises:
        ScriptError: there is no such file, it is not a Python file, or running it fails.

    >>> load_script(Path('nowhere.py'))
    Traceback (most recent call last):
    jaxdist.training.user_code.ScriptError: there is no file 'nowhere.py'
    """
    if not path.is_file():
        raise ScriptError(f'there is no file {str(path)!r}')
    folder = path.resolve().parent
    # Not the bare stem, which may be the name of an imported module. A copy of a script has the same name.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f'{SCRIPT}{path.stem}_{digest}', path)
    if spec is None or spec.loader is None:
        raise ScriptError(f'{path} is not a Python file: its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the names in their annotations there
    _add_root(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScriptError(blame(path, error)) from error
    return module


def load_code(folder: Path, scripts: Iterable[str], modules: Iterable[str]) -> None:
    """Runs scripts, and imports modules, of a folder that has a copy of a user's code.

    Args:
        folder: the folder.
        scripts: names of scripts in it.
        modules: names of files in it that are imported.

    Raises:
        ScriptError: a file is missing or cannot be run.

    >>> load_code(Path('nowhere'), [], [])
    """
    for name in [*modules, *scripts]:
        if not (folder / name).is_file():
            raise ScriptError(f'{name}, which defines a part of the run, is missing in {folder}')
    _add_root(folder.resolve())
    for name in modules:
        _module(name, name)
    for name in scripts:
        load_script(folder / name)


def source_of(thing: Any) -> str:
    """The file that defines a class or a function, below the folder of a script; else its module; '' for jaxdist's.

    >>> from fractions import Fraction
    >>> source_of(Fraction), source_of(load_script)
    ('fractions', '')
    """
    file = _file(sys.modules.get(thing.__module__))
    if file is not None and PACKAGE in file.parents:
        return ''
    root = _root(file)
    return str(file.relative_to(root)) if file and root else str(thing.__module__)


def find_class(name: str, source: str) -> Any:
    """The class of this name in a file below the folder of a script that was run, or in a module.

    Args:
        name: the class's qualified name.
        source: the file or the module, as `source_of` returns it.

    Raises:
        ScriptError: there is no such file or module, or no such class in it.

    >>> find_class('Fraction', 'fractions')
    <class 'fractions.Fraction'>
    """
    found: Any = _module(name, source)
    for part in name.split('.'):
        found = getattr(found, part, None)
        if found is None:
            raise ScriptError(f'there is no class {name} in {source}')
    return found


class UserCode(NamedTuple):
    """The files that a run's folder must have to define a user's classes and functions again.

    Attributes:
        scripts: names of the scripts that define one of them.
        modules: names of the imported files that define one of them.
        files: those, and all others that were imported from the same folders: their paths by name.
    """

    scripts: list[str]
    modules: list[str]
    files: dict[str, Path]


def user_code(*things: Any) -> UserCode:
    """The files of a user's classes and functions; none for those of jaxdist and of installed packages.

    >>> user_code(load_script)
    UserCode(scripts=[], modules=[], files={})
    """
    scripts: set[str] = set()
    modules: set[str] = set()
    roots: set[Path | None] = set()
    for thing in things:
        name = source_of(thing)
        if name.endswith('.py'):
            is_script = thing.__module__.startswith(SCRIPT) or thing.__module__ == '__main__'
            (scripts if is_script else modules).add(name)
            roots.add(_root(_file(sys.modules[thing.__module__])))
    if not roots:
        return UserCode([], [], {})
    loaded = [
        file for module in list(sys.modules.values()) if (file := _file(module)) is not None and file.suffix == '.py'
    ]
    files = {str(file.relative_to(root)): file for file in loaded if (root := _root(file)) and root in roots}
    return UserCode(sorted(scripts), sorted(modules), files)


def _module(name: str, source: str) -> ModuleType:
    """The module of a file or of a module's name."""
    if not source.endswith('.py'):
        if source == '__main__':
            raise ScriptError(
                f'{name} was defined in a notebook or at a prompt, where it cannot be found again: move it to a file '
                'that is imported'
            )
        try:
            return importlib.import_module(source)
        except ImportError as error:
            raise ScriptError(f'{name} is defined in the module {source}, which cannot be imported: {error}') from None
    paths = [root / source for root in reversed(ROOTS) if (root / source).is_file()]
    for path in paths:
        for module in list(sys.modules.values()):
            if _file(module) == path.resolve() and module.__name__ != '__main__':
                return module
    if not paths:
        folders = ', '.join(map(str, ROOTS)) or 'the folder of a script'
        raise ScriptError(f'{name} is defined in {source}, and no such file is below {folders}')
    module = importlib.import_module('.'.join(Path(source).with_suffix('').parts))
    if _file(module) != paths[0].resolve():
        raise ScriptError(f'{paths[0]} cannot be imported, for {module.__file__} has the same name: rename it')
    return module


def _add_root(folder: Path) -> None:
    if folder in ROOTS:
        ROOTS.remove(folder)
    ROOTS.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _file(module: Any) -> Path | None:
    file = getattr(module, '__file__', None)
    return Path(file).resolve() if file else None


def _root(file: Path | None) -> Path | None:
    """The folder of a script that a file is below, None for jaxdist's and installed files. A main program is a script.

    Of two folders it is the inner one.
    """
    if file is None or 'site-packages' in file.parts or {PACKAGE, Path(sys.prefix).resolve()} & set(file.parents):
        return None
    main = _file(sys.modules.get('__main__'))
    roots = {*ROOTS, *([main.parent] if main else [])} & set(file.parents)
    return max(roots, key=lambda root: len(root.parts), default=None)


def blame(path: Path, error: Exception) -> str:
    """The message for an error that a user's file raised: the file, the line and the error.

    >>> blame(Path('mine.py'), NameError("name 'stpes' is not defined"))
    "mine.py: NameError: name 'stpes' is not defined"
    """
    trace = traceback.TracebackException.from_exception(error)
    text = ''.join(trace.format_exception_only()).rstrip().removeprefix(f'{type(error).__module__}.')
    if isinstance(error, SyntaxError):
        return f'{path} cannot be read:\n{text}'
    # The deepest frame in the user's file is the line that its author can change.
    frames = [frame for frame in trace.stack if Path(frame.filename).resolve() == path.resolve()]
    return f'{path}, line {frames[-1].lineno}: {text}\n    {frames[-1].line}' if frames else f'{path}: {text}'
