"""Runs a user's Python files: configs, and algorithms outside jaxdist."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from jaxdist.core.errors import InputError


class ScriptError(InputError):
    """A file that cannot be run; the message names the line and the error."""


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
    # Not the bare stem, which may be the name of an imported module.
    spec = importlib.util.spec_from_file_location(f'{folder.name}.{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ScriptError(f'{path} is not a Python file: its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the names in their annotations there
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScriptError(blame(path, error)) from error
    return module


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
