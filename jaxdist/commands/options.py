"""What commands have in common: reading a config with its overrides, and making the devices ready."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro

from jaxdist import cluster, line
from jaxdist.cluster import Cluster
from jaxdist.experiment import Experiment, ExperimentError, load

Options = TypeVar('Options')
Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='CALL.KEYWORD=VALUE')]
ExperimentFields = Annotated[Experiment, tyro.conf.arg(name='')]


def config_path(arguments: list[str], command: str) -> tuple[Path, list[str]]:
    """The config, which comes first, and the rest of the command line; without one, how to call the command.

    >>> config_path(['configs/a.py', '--steps', '5'], 'train')
    (PosixPath('configs/a.py'), ['--steps', '5'])
    """
    if arguments and not arguments[0].startswith('-'):
        return Path(arguments[0]), arguments[1:]
    if arguments and arguments[0] in ('-h', '--help'):
        return Path(), ['--help']
    raise ExperimentError(f'which config? As in: jaxdist {command} configs/quickstart.py (options come after it)')


def load_config(path: Path) -> Experiment:
    """The experiment of a config file, or of the run that a folder holds; all defaults for no path at all.

    >>> load_config(Path()).batch
    64
    """
    if path == Path():
        return Experiment()
    return load(path / 'experiment.json' if path.is_dir() else path)


def parse(kind: type[Options], default: Options, arguments: list[str], command: str, about: str) -> Options:
    """The options of a command, every field of `default` one of them. Mistakes and `--help` end the program.

    >>> parse(Cluster, Cluster(), ['--processes', '2'], 'x', 'An example.').processes
    2
    """
    return tyro.cli(
        kind,
        default=default,
        args=arguments,
        prog=f'jaxdist {command}',
        description=about,
        config=(tyro.conf.AvoidSubcommands,),
    )


def settled(experiment: Experiment, settings: tuple[str, ...]) -> Experiment:
    """The experiment with `--set` applied to its update line.

    >>> settled(Experiment(update='sgd(0.1)'), ('sgd.learning_rate=0.2',)).update
    'sgd(0.2)'
    """
    return dataclasses.replace(experiment, update=line.override(experiment.update, *settings)) if settings else experiment


def start(experiment: Experiment, where: Cluster = Cluster()) -> None:
    """Joins the other processes, if there are any, and makes emulated devices. Must come before any JAX computation.

    >>> from jaxdist.experiment import Mesh
    >>> start(Experiment(mesh=Mesh(workers=2, simulate=True)))
    """
    mesh = experiment.mesh
    if mesh.simulate and cluster.size(where) > 1:
        raise ExperimentError('simulated workers live in one process: leave out --simulate or the --cluster options')
    if mesh.emulate and not mesh.simulate:
        emulate(mesh.workers * mesh.model, cluster.size(where))
    cluster.join(where)


def emulate(devices: int, processes: int = 1) -> None:
    """Makes this process's share of so many devices on CPU.

    Raises:
        ExperimentError: the processes do not divide the devices.
    """
    if devices % processes:
        raise ExperimentError(f'{devices} emulated devices cannot be divided among {processes} processes')
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices // processes)


def typed() -> str:
    """The command line as it was typed, for the record."""
    return shlex.join(['jaxdist', *sys.argv[1:]])
