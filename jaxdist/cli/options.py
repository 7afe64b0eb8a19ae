"""Common to all commands: reads a config and its overrides, and sets up the devices."""

import dataclasses
import itertools
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro

from jaxdist import line
from jaxdist.cluster.detect import size
from jaxdist.cluster.options import Cluster
from jaxdist.cluster.peers import join
from jaxdist.training.experiment import Experiment, ExperimentError, load
from jaxdist.training.layout_settings import check_devices
from jaxdist.training.run_code import Commands, run_code

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
Scripts = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar='FILE.py|MODULE',
        help="Your own file, outside of the run's folder, or installed module that a run needs. A run's folder runs "
        'none by itself, and a file only if it is unchanged; may be given more than once.',
    ),
]
ExperimentFields = Annotated[Experiment, tyro.conf.arg(name='')]


@dataclass(frozen=True)
class OneRun:
    """The options of commands that train one experiment in a run's folder."""

    experiment: ExperimentFields = field(default_factory=Experiment)
    set: Settings = ()
    """Change one keyword inside the update line, such as adamw.learning_rate=1e-3; may be given more than once."""
    script: Scripts = ()
    run: Folder = None
    """The run's folder; a run of this experiment in it is resumed. By default a new folder below runs/."""
    compilation_cache: CompilationCache = ''


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


def scripts(arguments: Sequence[str]) -> list[str]:
    """The values of `--script`, which are run before the options are parsed: the options are those of their classes.

    >>> scripts(['--steps', '5', '--script', 'a.py', '--script=b.py'])
    ['a.py', 'b.py']
    """
    after = [value for name, value in itertools.pairwise(arguments) if name == '--script']
    return after + [name.removeprefix('--script=') for name in arguments if name.startswith('--script=')]


def load_config(path: Path | None, named: Sequence[str] = (), command: str = 'train') -> Experiment:
    """The experiment of a config, of a run's folder or of its experiment.json; all defaults for no path at all.

    Args:
        path: the config, the folder or the file.
        named: the user's code that the run of a folder needs; see `jaxdist.training.run_code`.
        command: the command and the words before the path, for messages.

    Raises:
        ExperimentError: there is no experiment.
        ScriptError: a Python file is missing, is not named, has changed or cannot be run.

    >>> load_config(None).batch
    64
    """
    if path is None:
        return Experiment()
    if not path.is_dir() and path.suffix != '.json':
        if named:
            raise ExperimentError(f'--script goes with the folder of a run: {path} imports what it needs')
        return load(path)
    file = path / 'experiment.json' if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise ExperimentError(f'the folder {path} contains no run: there is no experiment.json in it')
    given = shlex.quote(str(path))
    resumed = f' --run {given}' if command == 'train' and path.is_dir() else ''
    run_code(file.parent, named, Commands(f'jaxdist {command} {given}', f'jaxdist {command} CONFIG.py{resumed}'))
    return load(file)


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
    threads = max((experiment.virtual_shards for experiment in experiments), default=0)
    if threads:  # XLA for CPU divides a product of matrices among its threads, and rounds by their number
        os.environ['NPROC'] = str(threads)
    join(cluster)
    for mesh in meshes:
        check_devices(mesh)


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
