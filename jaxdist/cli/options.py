"""Common to all commands: reads a config and its overrides, and sets up the devices."""

import dataclasses
import json
import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro

from jaxdist import line
from jaxdist.cluster.detect import size
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.peers import join
from jaxdist.core.mesh import axis_text
from jaxdist.training.experiment import Experiment, ExperimentError, load
from jaxdist.training.user_code import load_code

Options = TypeVar('Options')
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='CALL.KEYWORD=VALUE')]
Folder = Annotated[Path | None, tyro.conf.arg(metavar='FOLDER', help_behavior_hint='')]
Flag = tyro.conf.FlagCreatePairsOff[bool]
CompilationCache = Annotated[
    str,
    tyro.conf.arg(
        metavar='FOLDER|none',
        help_behavior_hint='',
        help="The folder in which compiled programs are kept for later runs. By default in the user's cache folder.",
    ),
]
ExperimentFields = Annotated[Experiment, tyro.conf.arg(name='')]


def config_path(arguments: list[str], command: str) -> tuple[Path | None, list[str]]:
    """The config, which comes first, and the rest of the command line; None for the config of `--help` without one.

    Raises:
        ExperimentError: the first argument is an option, or there is none.

    >>> config_path(['configs/a.py', '--steps', '5'], 'train')
    (PosixPath('configs/a.py'), ['--steps', '5'])
    """
    if arguments and not arguments[0].startswith('-'):
        return Path(arguments[0]), arguments[1:]
    if '-h' in arguments or '--help' in arguments:
        return None, ['--help']
    raise ExperimentError(f'which config? As in: jaxdist {command} configs/quickstart.py (options come after it)')


def load_config(path: Path | None) -> Experiment:
    """The experiment of a config, of a run's folder or of its experiment.json; all defaults for no path at all.

    Raises:
        ExperimentError: there is no experiment.
        ScriptError: a Python file is missing or cannot be run.

    >>> load_config(None).batch
    64
    """
    if path is None:
        return Experiment()
    if not path.is_dir():
        if path.name == 'experiment.json':
            _load_code(path.parent)
        return load(path)
    if not (path / 'experiment.json').is_file():
        raise ExperimentError(f'the folder {path} contains no run: there is no experiment.json in it')
    _load_code(path)
    return load(path / 'experiment.json')


def _load_code(folder: Path) -> None:
    """Runs the user's code that a run needs, of which its folder has a copy."""
    path = folder / 'run.json'
    facts = json.loads(path.read_text()) if path.is_file() else {}
    load_code(folder / 'code', facts.get('scripts', []), facts.get('modules', []))


def parse(default: Options, arguments: list[str], command: str) -> Options:
    """The options of a command, one for each field of `default`. A mistake or `--help` ends the program.

    >>> parse(Cluster(), ['--processes', '2'], 'x').processes
    2
    """
    # tyro joins lines, except those that are indented.
    about = textwrap.fill(' '.join((type(default).__doc__ or '').split()), 80, subsequent_indent='  ')
    config = (tyro.conf.AvoidSubcommands,)
    try:
        return tyro.cli(
            type(default), default=default, args=arguments, prog=f'jaxdist {command}', description=about, config=config
        )
    except SystemExit as end:
        if end.code:
            _hint_at_set(arguments, getattr(default, 'experiment', None))
        raise


def _hint_at_set(arguments: list[str], experiment: Experiment | None) -> None:
    """Says how arguments of the update line are changed, if one of them was given as an option."""
    if not isinstance(experiment, Experiment) or not experiment.update:
        return
    for argument in arguments:
        name, _, value = argument.removeprefix('--').partition('=')
        for setting in line.settings_for(name, experiment.update) if argument.startswith('--') else ():
            print(
                f'{argument} is an argument of the update line: change it with --set {setting}={value or "..."}',
                file=sys.stderr,
            )


def settled(experiment: Experiment, settings: tuple[str, ...]) -> Experiment:
    """The experiment with `--set` applied to its update line.

    >>> settled(Experiment(update='sgd(0.1)'), ('sgd.learning_rate=0.2',)).update
    'sgd(0.2)'
    """
    return (
        dataclasses.replace(experiment, update=line.override(experiment.update, *settings)) if settings else experiment
    )


def start(*experiments: Experiment, cluster: Cluster = Cluster()) -> None:
    """Creates emulated devices and joins the other processes, if there are any; must precede any JAX computation.

    Raises:
        ExperimentError: the meshes do not fit the processes.

    >>> from jaxdist.training.experiment import Mesh
    >>> start(Experiment(mesh=Mesh(workers=2, simulate=True)))
    """
    meshes = [experiment.mesh for experiment in experiments if not experiment.mesh.simulate]
    if size(cluster) > 1 and len(meshes) < len(experiments):
        raise ExperimentError('simulated workers run in one process: leave out --simulate or the --cluster options')
    emulated = max((mesh.devices for mesh in meshes if mesh.emulate), default=0)
    if emulated:
        emulate(emulated, size(cluster))
    join(cluster)
    for mesh in meshes:
        if jax.process_count() > 1 and mesh.devices != jax.device_count():
            raise ExperimentError(
                f'{jax.process_count()} processes have {jax.device_count()} devices in all, and the mesh must have '
                f'as many: it has {axis_text(mesh.axes)}'
            )


def emulate(devices: int, processes: int = 1) -> None:
    """Creates this process's share of emulated devices on CPU; does nothing once JAX has started.

    Raises:
        ExperimentError: the processes do not divide the devices, or there would be none.

    >>> emulate(2)
    """
    if devices < 1 or devices % processes:
        raise ExperimentError(f'{devices} emulated devices cannot be divided among {processes} processes')
    try:
        jax.config.update('jax_num_cpu_devices', devices // processes)
        jax.config.update('jax_platforms', 'cpu')
    except RuntimeError:  # JAX has started, as in a notebook; if it has too few devices, making the mesh fails
        return


def command_line() -> str:
    """The command line, for the record."""
    return shlex.join(['jaxdist', *sys.argv[1:]])


def train_command() -> str:
    """The command that runs `jaxdist train`: the script that set JAXDIST_TRAIN, or this program."""
    program = Path(sys.argv[0])
    if program.name != 'jaxdist' or shutil.which('jaxdist') == sys.argv[0]:
        program = Path('jaxdist')
    elif Path.cwd() in program.parents:
        program = program.relative_to(Path.cwd())
    return os.environ.get('JAXDIST_TRAIN', f'{shlex.quote(str(program))} train')
