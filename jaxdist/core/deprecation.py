"""Former names: they still work for one release, with a `DeprecationWarning`."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from jaxdist._former_names import Moved

Function = TypeVar('Function', bound=Callable[..., Any])


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """A decorator that renames keyword arguments: a function can still be called with their former names.

    Args:
        **names: former name -> present name.

    Raises:
        TypeError: a call gives both the former and the present name.

    >>> @renamed_arguments(where='workers')
    ... def count(workers):
    ...     return workers
    >>> with warnings.catch_warnings(record=True, action='always') as seen:
    ...     count(where=8), str(seen[0].message)
    (8, "count: the argument 'where' is called 'workers' now")
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f'{function.__name__}: {old!r} is the former name of {new!r}: give one of them')
                    _warn(f'{function.__name__}: the argument {old!r} is called {new!r} now')
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def renamed_attribute(node: Any, new: str, old: str, default: Any) -> Any:
    """The attribute `new` of a user's object, or else the one with the former name `old`, or else `default`.

    >>> renamed_attribute(1j, 'real', 'actual', None)
    0.0
    """
    value = getattr(node, new, None)
    if value is None and (value := getattr(node, old, None)) is not None:
        _warn(f'{type(node).__name__}: the property {old!r} is called {new!r} now')
    return default if value is None else value


def former_name(module: str, name: str, names: Mapping[str, Any], now: str = '') -> Any:
    """The object with a former name, for a module's `__getattr__`.

    Args:
        module: the module's name.
        name: the requested attribute.
        names: former name -> the object.
        now: the present name, if it is not the object's `__name__`.

    Raises:
        AttributeError: `name` is not a former name.

    >>> with warnings.catch_warnings(record=True, action='always') as seen:
    ...     former_name('m', 'Old', {'Old': ValueError}).__name__, str(seen[0].message)
    ('ValueError', 'm.Old is called ValueError now')
    """
    if name not in names:
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    # One frame more than elsewhere: the warning belongs to the code that triggered the module's __getattr__.
    _warn(f'{module}.{name} is called {now or names[name].__name__} now', stacklevel=4)
    return names[name]


class FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader that makes modules importable by their former names.

    Args:
        moved: former module name -> the present place of its names.

    >>> finder = FormerModules({'jaxdist_former': Moved(['math'], {'radix': 'sqrt'})})
    >>> sys.meta_path.append(finder)
    >>> with warnings.catch_warnings(record=True, action='always') as seen:
    ...     from jaxdist_former import radix
    >>> sys.meta_path.remove(finder)
    >>> radix(4.0), str(seen[0].message)
    (2.0, 'jaxdist_former.radix is math.sqrt now')
    """

    def __init__(self, moved: Mapping[str, Moved]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a former module; called by the import system after the usual finders."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in self.moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module a `__getattr__` that returns names from their present place; called by the import system."""
        former, moved = module.__name__, self.moved[module.__name__]

        def look_up(name: str) -> Any:
            new = moved.names.get(name, name)
            for candidate in moved.modules:
                present = importlib.import_module(candidate)
                if not name.startswith('__') and hasattr(present, new):
                    _warn(f'{former}.{name} is {candidate}.{new} now')
                    return getattr(present, new)
            raise AttributeError(f'{former}, now {" and ".join(moved.modules)}, has no {name!r}')

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install(moved: Mapping[str, Moved]) -> None:
    """Makes modules importable by their former names; a second call in a process changes nothing.

    >>> install({})
    """
    if moved and not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(FormerModules(moved))


def _warn(text: str, stacklevel: int = 3) -> None:
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
