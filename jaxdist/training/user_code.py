"""Runs a user's Python files: configs, with the models, data sets and algorithms that they define or import.

A file is named by its path below the folder of the config that imports it, so that it has the same name in every copy
of that folder. A run's folder has a copy for readers, which is never run: see `jaxdist.training.run_code`.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import shlex
import sys
import traceback
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

GIVEN: dict[Path, Path] = {}
"""The paths of the scripts that were run as they were given, by the resolved path."""


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
    digest = sha256(path)[:8]
    spec = importlib.util.spec_from_file_location(f'{SCRIPT}{path.stem}_{digest}', path)
    if spec is None or spec.loader is None:
        raise ScriptError(f'{path} is not a Python file: its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the names in their annotations there
    add_root(folder)
    GIVEN[path.resolve()] = path
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScriptError(blame(path, error)) from error
    return module


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
    """The dataclass of this name in a file or a module that is imported; nothing is imported here.

    Args:
        name: the class's qualified name.
        source: the file, below the folder of a script that was run, or the module, as `source_of` returns it.

    Raises:
        ScriptError: there is no such file or module, or no such dataclass in it.

    >>> find_class('ModuleType', 'types')
    Traceback (most recent call last):
    jaxdist.training.user_code.ScriptError: ModuleType in types is no dataclass of settings of a user's
    """
    module = imported_file(source) if source.endswith('.py') else _imported_module(name, source)
    if module is None:
        raise ScriptError(
            f'{name} is defined in {source}, and no such file was run or imported; JSON data run none: give the config '
            'that imports it, or import it first'
        )
    found: Any = module
    for part in name.split('.'):
        found = vars(found).get(part) if hasattr(found, '__dict__') else None
        if found is None:
            raise ScriptError(f'there is no class {name} in {source}')
    # The data may be a stranger's: they may not reach what a module imports, nor classes that do more than hold values.
    own = isinstance(found, type) and (found.__module__, found.__qualname__) == (module.__name__, name)
    if not own or not dataclasses.is_dataclass(found) or source.partition('.')[0] in sys.stdlib_module_names:
        raise ScriptError(f"{name} in {source} is no dataclass of settings of a user's")
    return found


class UserCode(NamedTuple):
    """The files and modules that define a user's classes and functions.

    Attributes:
        scripts: the sha256 of the scripts that define one of them, by name.
        modules: the sha256 of the imported files that define one of them, by name.
        imports: the sha256 of the other files that were imported from the same folders, by name.
        installed: names of the modules that define one of them and are no file below a script's folder.
        files: the paths of all files by name, also of other scripts from the same folders.
    """

    scripts: dict[str, str]
    modules: dict[str, str]
    imports: dict[str, str]
    installed: list[str]
    files: dict[str, Path]


def user_code(*things: Any) -> UserCode:
    """The files of a user's classes and functions; none for those of jaxdist.

    >>> from fractions import Fraction
    >>> user_code(load_script, Fraction)
    UserCode(scripts={}, modules={}, imports={}, installed=['fractions'], files={})
    """
    scripts, modules, installed = set[str](), set[str](), set[str]()
    roots: set[Path | None] = set()
    for thing in things:
        name = source_of(thing)
        if name.endswith('.py'):
            (scripts if _is_script(thing.__module__) else modules).add(name)
            roots.add(_root(_file(sys.modules[thing.__module__])))
        elif name not in ('', '__main__'):
            installed.add(name)
    loaded = {file: each for each, module in list(sys.modules.items()) if roots and (file := _file(module))}
    named = {
        str(file.relative_to(root)): (file, each)
        for file, each in loaded.items()
        if file.suffix == '.py' and (root := _root(file)) and root in roots
    }
    files = {name: file for name, (file, _) in named.items()}
    others = {name for name, (_, each) in named.items() if not _is_script(each)} - scripts - modules
    digests = [{name: sha256(files[name]) for name in sorted(each)} for each in (scripts, modules, others)]
    return UserCode(digests[0], digests[1], digests[2], sorted(installed), files)


def script_options(code: UserCode) -> str:
    """The options `--script` with which a command runs the code of a run's folder, each after a space.

    >>> script_options(user_code(load_script))
    ''
    """
    return ''.join(f' --script {shlex.quote(word)}' for word in to_name(code))


def to_name(code: UserCode) -> list[str]:
    """The files and the installed modules that a user names to run the code of a run's folder.

    >>> to_name(user_code(load_script))
    []
    """
    root_of = lambda name: code.files[name].parents[len(Path(name).parts) - 1]  # noqa: E731
    roots = {root_of(name) for name in code.scripts}  # a script imports the modules in its folder
    names = [*code.scripts, *(name for name in code.modules if root_of(name) not in roots)]
    return [*(str(_short(code.files[name])) for name in names), *code.installed]


def sha256(path: Path) -> str:
    """The digest of a file.

    >>> sha256(Path('/dev/null'))[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def imported_file(source: str) -> ModuleType | None:
    """The module of a file below the folder of a script that was run, the last one first; None if none was imported.

    >>> imported_file('nowhere.py')
    """
    main = _file(sys.modules.get('__main__'))
    loaded = {file: module for module in list(sys.modules.values()) if (file := _file(module)) and file != main}
    loaded |= {main: sys.modules['__main__']} if main and main not in loaded else {}
    paths = [(root / source).resolve() for root in [*reversed(ROOTS), *([main.parent] if main else [])]]
    return next((loaded[path] for path in paths if path in loaded), None)


def import_file(root: Path, name: str) -> None:
    """Imports a file below a folder, as a script in the folder does.

    Raises:
        ScriptError: running it fails, or another file has its name.

    >>> import_file(Path('nowhere'), 'no_such_file.py')
    Traceback (most recent call last):
    jaxdist.training.user_code.ScriptError: nowhere/no_such_file.py: ModuleNotFoundError: No module named 'no_such_file'
    >>> _ = ROOTS.pop()
    """
    path, parts = root / name, Path(name).with_suffix('').parts
    add_root(root)
    try:
        spec = importlib.util.find_spec(parts[0])
        places = [place for place in (spec.origin, *(spec.submodule_search_locations or [])) if place] if spec else []
        if places and not any(Path(place).resolve().is_relative_to(root) for place in places):
            raise ScriptError(f'{path} cannot be imported, for {places[0]} has the same name: rename it')
        importlib.import_module('.'.join(parts))
    except ScriptError:
        raise
    except Exception as error:
        raise ScriptError(blame(path, error)) from error


def add_root(folder: Path) -> None:
    """Lets files import those in the folder of a script.

    >>> add_root(Path('/nowhere'))
    >>> ROOTS.pop()
    PosixPath('/nowhere')
    """
    if folder in ROOTS:
        ROOTS.remove(folder)
    ROOTS.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _imported_module(name: str, source: str) -> ModuleType:
    """The module of this name, which is imported already."""
    if source == '__main__':
        raise ScriptError(
            f'{name} was defined in a notebook or at a prompt, where it cannot be found again: move it to a file '
            'that is imported'
        )
    if not isinstance(module := sys.modules.get(source), ModuleType):
        raise ScriptError(
            f'{name} is defined in the module {source}, which is not imported, and no experiment.json imports one: '
            f'if you know the module, name it with --script {source}, or import it first'
        )
    return module


def _is_script(module: str) -> bool:
    return module.startswith(SCRIPT) or module == '__main__'


def _short(file: Path) -> Path:
    """The path as it was given; else below the working directory, if the file is there."""
    if file in GIVEN:
        return GIVEN[file]
    return file.relative_to(Path.cwd()) if Path.cwd() in file.parents else file


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
