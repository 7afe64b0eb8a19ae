"""A user's own Python files: configs, and algorithms that are not jaxdist's."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from jaxdist.core.errors import InputError


class ScriptError(InputError):
    """A file that cannot be run; its text says where it is wrong."""


def load_script(path: Path) -> ModuleType:
    """Runs a Python file and returns what it made. It may import what lies beside it.

    Raises:
        ScriptError: there is no such file, it is no Python file, or running it fails.

    >>> load_script(Path('nowhere.py'))
    Traceback (most recent call last):
    jaxdist.training.user_code.ScriptError: there is no file 'nowhere.py'
    """
    if not path.is_file():
        raise ScriptError(f'there is no file {str(path)!r}')
    folder = path.resolve().parent
    # Not the bare stem, which may be the name of a module that is there already.
    spec = importlib.util.spec_from_file_location(f'{folder.name}.{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ScriptError(f'{path} is no Python file: its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in their annotations
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScriptError(blame(path, error)) from error
    return module


def blame(path: Path, error: Exception) -> str:
    """What to tell the author of a file about an error that was raised when it ran: the line, and what is wrong there.

    >>> blame(Path('mine.py'), NameError("name 'stpes' is not defined"))
    "mine.py: NameError: name 'stpes' is not defined"
    """
    told = traceback.TracebackException.from_exception(error)
    text = ''.join(told.format_exception_only()).rstrip().removeprefix(f'{type(error).__module__}.')
    if isinstance(error, SyntaxError):
        return f'{path} cannot be read:\n{text}'
    frames = [frame for frame in told.stack if Path(frame.filename).resolve() == path.resolve()]
    return f'{path}, line {frames[-1].lineno}: {text}\n    {frames[-1].line}' if frames else f'{path}: {text}'
