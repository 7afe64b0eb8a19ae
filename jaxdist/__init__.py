"""jaxdist: distributed algorithms as optax transformations that run inside a worker axis of a JAX mesh.

The names here are those that every user needs, and all registered algorithms and codecs. They are imported when one of
them is first used, so that commands which need none of them start at once.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdist._former_names import MOVED
from jaxdist.core import deprecation

if TYPE_CHECKING:
    from jaxdist._public import *  # noqa: F403

deprecation.install(MOVED)
_modules = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}


def __getattr__(name: str) -> Any:
    """The subpackage or public name, imported now. Type checkers read it as a declaration of algorithms and codecs."""
    if name in _modules:
        return importlib.import_module(f'{__name__}.{name}')
    public = importlib.import_module(f'{__name__}._public')
    if name != '__all__' and name not in public.__all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules, *__getattr__('__all__')})
