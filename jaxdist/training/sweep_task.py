"""One run of a sweep as JSON data, for a process elsewhere: the experiment, and the user's code that it needs."""

import importlib
import os
import platform
from pathlib import Path
from typing import Any

from jaxdist.training.experiment import Experiment, ExperimentError, from_json, to_json
from jaxdist.training.run_folder import code_of
from jaxdist.training.user_code import GIVEN, ScriptError, import_file, load_script, sha256


def task_data(name: str, experiment: Experiment, folder: Path, **more: Any) -> dict[str, Any]:
    """A run as JSON data.

    Args:
        name: the variant's label.
        experiment: the experiment.
        folder: the run's folder, on a file system that the machines share.
        more: JSON data for the command that reads them.

    >>> data = task_data('a', Experiment(steps=7), Path('runs/x'))
    >>> experiment_of(data).steps
    7
    """
    code = code_of(experiment)
    digests = {**code.imports, **code.modules, **code.scripts}
    return {
        'name': name,
        'experiment': to_json(experiment),
        'folder': str(folder.absolute()),
        'working_directory': os.getcwd(),
        'files': {each: [str(GIVEN.get(code.files[each], code.files[each])), sha] for each, sha in digests.items()},
        **{kind: list(getattr(code, kind)) for kind in ('scripts', 'modules', 'installed')},
        **more,
    }


def enter(data: dict[str, Any]) -> None:
    """Enters the working directory in which the sweep was started.

    Raises:
        ExperimentError: this machine does not have it, or not the run's folder.

    >>> enter({'working_directory': '/nowhere', 'folder': '/nowhere/x'})
    Traceback (most recent call last):
    jaxdist.training.plain_data.ExperimentError: /nowhere is not on ...: machines of a sweep must share its folders
    """
    for folder in (data['working_directory'], data['folder']):
        if not os.path.isdir(folder):
            raise ExperimentError(f'{folder} is not on {platform.node()}: machines of a sweep must share its folders')
    os.chdir(data['working_directory'])


def experiment_of(data: dict[str, Any]) -> Experiment:
    """The experiment, after the user's files that it needs were run.

    Raises:
        ScriptError: a file is missing, or has changed since the sweep was started.

    >>> experiment_of({**task_data('a', Experiment(), Path('x')), 'files': {'m.py': ['nowhere/m.py', '0']}})
    Traceback (most recent call last):
    jaxdist.training.user_code.ScriptError: there is no file nowhere/m.py, which the run needs
    """
    for path, digest in data['files'].values():
        if not Path(path).is_file():
            raise ScriptError(f'there is no file {path}, which the run needs')
        if sha256(Path(path)) != digest:
            raise ScriptError(f'{path} has changed since the sweep was started: repeat the command')
    paths = {name: Path(path) for name, (path, _) in data['files'].items()}
    for name in data['installed']:
        importlib.import_module(name)
    for name in data['scripts']:
        load_script(paths[name])
    for name in data['modules']:
        import_file(paths[name].resolve().parents[len(Path(name).parts) - 1], name)
    return from_json(data['experiment'])
