"""Former names, which go on working for one release with a `DeprecationWarning`."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """Lets a function be called by former names of its keyword arguments: `old='new'` for each.

    Raises:
        TypeError: in a call, both the old and the new name are given.

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
    """The attribute `new` of a user's object, or else its former name `old`.

    >>> renamed_attribute(1j, 'real', 'actual', None)
    0.0
    """
    value = getattr(node, new, None)
    if value is None and (value := getattr(node, old, None)) is not None:
        _warn(f'{type(node).__name__}: the property {old!r} is called {new!r} now')
    return default if value is None else value


def former_name(module: str, name: str, names: Mapping[str, Any], now: str = '') -> Any:
    """What a module's `__getattr__` returns for a former name in it.

    Args:
        module: the module's name.
        name: the attribute that is asked for.
        names: former name -> the object.
        now: what it is called now, if not by its `__name__`.

    Raises:
        AttributeError: it is no former name either.

    >>> with warnings.catch_warnings(record=True, action='always') as seen:
    ...     former_name('m', 'Old', {'Old': ValueError}).__name__, str(seen[0].message)
    ('ValueError', 'm.Old is called ValueError now')
    """
    if name not in names:
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    _warn(f'{module}.{name} is called {now or names[name].__name__} now')
    return names[name]


class Moved(NamedTuple):
    """Where a module's names are now: in `modules`, the first that has a name, some of them under another name."""

    modules: Sequence[str]
    names: Mapping[str, str] = {}


class FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules by their former names.

    Args:
        moved: former module name -> where its names are now.

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
        """Called by the import system, after the usual finders."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in self.moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Called by the import system: the module looks its names up where they are now."""
        former, moved = module.__name__, self.moved[module.__name__]

        def look_up(name: str) -> Any:
            new = moved.names.get(name, name)
            for candidate in moved.modules:
                found = importlib.import_module(candidate)
                if not name.startswith('__') and hasattr(found, new):
                    _warn(f'{former}.{name} is {candidate}.{new} now')
                    return getattr(found, new)
            raise AttributeError(f'{former}, now {" and ".join(moved.modules)}, has no {name!r}')

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install(moved: Mapping[str, Moved]) -> None:
    """Makes modules importable by their former names, once a process.

    >>> install({})
    """
    if moved and not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(FormerModules(moved))


def _warn(text: str) -> None:
    warnings.warn(text, DeprecationWarning, stacklevel=3)
