"""The user's code that a run needs: named again by the user, compared by digest, and then run.

A run's folder looks like data, and may be a stranger's. So nothing in it is run: it has a copy of the code for readers,
and in `run.json` the sha256 of each file. The user names the files where they were written.
"""

import importlib
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxdist.training.experiment import ExperimentError, read_json
from jaxdist.training.user_code import ScriptError, import_file, imported_file, load_script, sha256


class Recorded(NamedTuple):
    """The code that a run's `run.json` records; see `jaxdist.training.user_code.UserCode`.

    Attributes:
        scripts: the sha256 of each script; '' if an earlier version recorded none.
        modules: the sha256 of each imported file that defines a class or a function of the run.
        imports: the sha256 of each other imported file.
        installed: names of modules.
    """

    scripts: dict[str, str]
    modules: dict[str, str]
    imports: dict[str, str]
    installed: list[str]

    @property
    def needed(self) -> list[str]:
        """What the user must name."""
        return [*(self.scripts or self.modules), *self.installed]


class Commands(NamedTuple):
    """Commands for messages.

    Attributes:
        again: the command that needs the code, without `--script`: 'jaxdist train runs/a'.
        config: the same for a config: 'jaxdist train CONFIG.py --run runs/a'.
    """

    again: str
    config: str


def recorded(folder: Path) -> Recorded:
    """What `run.json` records; nothing if there is none.

    Raises:
        ExperimentError: it is damaged.

    >>> recorded(Path('nowhere')).needed
    []
    """
    path = folder / 'run.json'
    facts = read_json(path) if path.is_file() else {}
    files = [_digests(path, facts.get(name, {})) for name in ('scripts', 'modules', 'imports')]
    installed = facts.get('installed', [])
    if not isinstance(installed, list) or not all(isinstance(name, str) for name in installed):
        raise _damaged(path, installed)
    return Recorded(files[0], files[1], files[2], installed)


def run_code(folder: Path, named: Sequence[str], commands: Commands) -> None:
    """Runs the files, and imports the installed modules, that the user names; none that lies in the folder.

    Args:
        folder: the run's folder.
        named: paths of files, and names of installed modules.
        commands: for messages.

    Raises:
        ScriptError: a file that the run needs is not named, is missing, lies in the folder, has changed since the run
            began, or cannot be run.
        ExperimentError: `run.json` is damaged.

    >>> run_code(Path('nowhere'), [], Commands('jaxdist train nowhere', ''))
    """
    code = recorded(folder)
    if not named and not code.needed:
        return
    if not (folder / 'run.json').is_file():
        raise ScriptError(f'--script goes with a run, whose run.json records the sha256 of files: {folder} has none')
    if not code.needed:
        raise ScriptError(f'{folder} needs no code of yours: leave out --script {named[0]}')
    modules = [word for word in named if not word.endswith('.py')]
    paths = {_name_of(path, code, folder): path for path in map(Path, named) if path.suffix == '.py'}
    missing = [name for name in code.scripts or code.modules if name not in paths]
    missing += [name for name in code.installed if name not in modules]
    words = [str(paths.get(name, name)) for name in code.needed]
    if missing:
        raise ScriptError(_needs(folder, missing, words, commands))
    roots = {path.resolve().parents[len(Path(name).parts) - 1]: None for name, path in paths.items()}
    _check_unchanged(folder, code, list(roots), _config(words, commands))
    for module in modules:
        _import(module, folder, _config(words, commands))
    for name, path in paths.items():
        if name in code.scripts:
            load_script(path)
        else:
            import_file(path.resolve().parents[len(Path(name).parts) - 1], name)
    unknown = [name for name in code.modules if imported_file(name) is None]
    if unknown:
        raise ScriptError(_needs(folder, unknown, [*words, *unknown], commands))


def _name_of(path: Path, code: Recorded, folder: Path) -> str:
    """The recorded name of a file that the user names."""
    full = path.resolve()
    if _inside(path, folder):
        raise ScriptError(
            f"{path} lies in the run's folder, from which nothing is run: name your own file, outside of {folder}; if "
            'you have none, read the copy and move it out'
        )
    if not full.is_file():
        raise ScriptError(f'there is no file {str(path)!r}, named by --script')
    names = [name for name in {**code.scripts, **code.modules} if _ends(full, Path(name))]
    if not names:
        raise ScriptError(f'{path} is not among the code of {folder}, which needs {", ".join(code.needed)}')
    return max(names, key=len)


def _check_unchanged(folder: Path, code: Recorded, roots: Sequence[Path], config: str) -> None:
    """Compares the files in the folders of those that are named with the record, before any is run."""
    for name, digest in {**code.imports, **code.modules, **code.scripts}.items():
        paths = [root / name for root in roots if (root / name).is_file()]
        for path in paths:
            if _inside(path, folder):
                raise ScriptError(f"{path} lies in the run's folder, from which nothing is run")
            if (now := sha256(path)) != digest:
                then = f'it was {digest[:12]} and is {now[:12]}' if digest else 'an earlier version recorded no sha256'
                raise ScriptError(
                    f'{path} is not known to be the file that the run began with (sha256: {then}). To go on with it as '
                    f'it is:\n  {config}'
                )
        if not paths and name in code.modules:
            raise ScriptError(f'{name}, which defines a part of the run, is missing in {", ".join(map(str, roots))}')


def _needs(folder: Path, missing: Sequence[str], words: Sequence[str], commands: Commands) -> str:
    files = [name for name in missing if name.endswith('.py')]
    others = [name for name in missing if not name.endswith('.py')]
    needs = [*files, *(f'the installed module {name}' for name in others)]
    which = 'your own files, outside of the folder' if files else 'modules that you know'
    options = ' '.join(f'--script {shlex.quote(word)}' for word in words)
    return (
        f'{folder} needs {", ".join(needs)}, and nothing in a folder is run by itself. Name {which}:\n'
        f'  {commands.again} {options}\n'
        f'or give the config that the run began with:\n  {_config(words, commands)}'
    )


def _config(words: Sequence[str], commands: Commands) -> str:
    config = next((word for word in words if word.endswith('.py')), 'CONFIG.py')
    return commands.config.replace('CONFIG.py', shlex.quote(config))


def _import(module: str, folder: Path, config: str) -> None:
    """Imports an installed module that the user names."""
    try:
        spec = importlib.util.find_spec(module.partition('.')[0])
        for place in [spec.origin or '', *(spec.submodule_search_locations or [])] if spec else []:
            if place and _inside(Path(place), folder):
                raise ScriptError(f"{place} lies in the run's folder, from which nothing is run")
        importlib.import_module(module)
    except ScriptError:
        raise
    except Exception as error:  # a module may raise anything
        hint = 'the name of a file ends in .py' if '/' in module or Path(module).exists() else 'give the config'
        raise ScriptError(
            f'--script {module} cannot be imported: {type(error).__name__}: {error}; {hint}, as in:\n  {config}'
        ) from error


def _ends(path: Path, name: Path) -> bool:
    return path.parts[-len(name.parts) :] == name.parts


def _inside(path: Path, folder: Path) -> bool:
    """Whether a file, or what a link to it is, lies in the folder."""
    return folder.resolve() in path.resolve().parents or folder.resolve() in path.absolute().parents


def _digests(path: Path, value: Any) -> dict[str, str]:
    """The digests by name of a record; an earlier version had a list of names."""
    value = dict.fromkeys(value, '') if isinstance(value, list) and all(isinstance(n, str) for n in value) else value
    if not isinstance(value, dict) or not all(_is_name(n) and isinstance(d, str) for n, d in value.items()):
        raise _damaged(path, value)
    return value


def _is_name(name: str) -> bool:
    return name.endswith('.py') and not PurePosixPath(name).is_absolute() and '..' not in PurePosixPath(name).parts


def _damaged(path: Path, value: Any) -> ExperimentError:
    return ExperimentError(f'{path} is damaged: it records the code of the run as {str(value)[:80]}')
