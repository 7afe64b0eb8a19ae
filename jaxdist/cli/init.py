"""`jaxdist init`: a commented starter with a model, data and an algorithm of one's own, and a test of its laws."""

from importlib import resources
from pathlib import Path

from jaxdist.cli.terminal import Terminal
from jaxdist.core.errors import InputError

FILES = ('experiment.py', 'algorithm.py', 'test_algorithm.py')
USAGE = (
    'usage: jaxdist init FOLDER\n\nWrites a commented starter: a model, data and an algorithm of your own, with a test.'
)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    console = Terminal()
    if arguments in (['-h'], ['--help']):
        console.print(USAGE)
        return
    if len(arguments) != 1 or arguments[0].startswith('-'):
        raise InputError('init takes the name of a new folder, as in jaxdist init mine')
    folder = Path(arguments[0])
    write(folder)
    console.print(f'{folder} has {", ".join(FILES)}. Next:', markup=False)
    for command in (
        f'jaxdist train {folder / FILES[0]}',
        f'jaxdist compare {folder / FILES[0]} --seeds 3',
        f'jaxdist tune {folder / FILES[0]} --trials 8',
        f'jaxdist laws {folder / FILES[1]}',
        f'pytest {folder}',
    ):
        console.print(f'  {command}', markup=False)


def write(folder: Path) -> None:
    """Writes the starter into a folder, which is made.

    Raises:
        InputError: the folder has files already, or cannot be written.

    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> write(folder / 'mine')
    >>> sorted(path.name for path in (folder / 'mine').iterdir())
    ['algorithm.py', 'experiment.py', 'test_algorithm.py']
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f'{folder} has files already: name a new folder')
        for name in FILES:
            text = (resources.files('jaxdist.cli') / 'starter' / f'{name}.txt').read_text(encoding='utf-8')
            (folder / name).write_text(text, encoding='utf-8')
    except OSError as error:
        raise InputError(f'{folder} cannot be written: {error.strerror}') from error
