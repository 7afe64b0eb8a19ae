"""The names that update lines can use: registered algorithms, codecs, graphs and others, then those of optax."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import optax

from jaxdist._former_names import ALGORITHM_ARGUMENTS, DUAL_ARGUMENTS
from jaxdist.core.deprecation import renamed_arguments
from jaxdist.core.errors import InputError
from jaxdist.core.registration import check_claims, check_parameter

Kind = Literal['algorithm', 'codec', 'dual', 'constraint', 'compute time', 'graph', 'rule']
Syncs = Literal['', 'updates', 'parameters']
Make = TypeVar('Make', bound=Callable[..., Any])

PACKAGES = ('jaxdist.codecs', 'jaxdist.algorithms', 'jaxdist.constraints', 'jaxdist.graphs', 'jaxdist.clock')
"""The packages whose modules register names; they are imported when a name is first looked up."""

_ENTRIES: dict[str, 'Entry'] = {}


@dataclass(frozen=True)
class Entry:
    """One registered function.

    Attributes:
        name: the function's name, by which lines call it.
        kind: which decorator registered the function.
        make: the function.
        paper: the publication, or 'none'.
        examples: lines with the laws that each claims. (Laws are on a higher floor, so their type is not used here.)
        summary: the first line of the docstring.
        syncs: for an algorithm, what is the same on all workers after it: 'updates', 'parameters', or '' for nothing.
        final: for a transformation of a dual line, whether it projects multipliers and so has to come last.
        overlap: for an algorithm, the argument that says for how many steps what is sent has lain ready; '' for none.
    """

    name: str
    kind: Kind
    make: Callable[..., Any]
    paper: str
    examples: Mapping[str, tuple[Any, ...]]
    summary: str
    syncs: Syncs = ''
    final: bool = False
    overlap: str = ''


@renamed_arguments(**ALGORITHM_ARGUMENTS)
def algorithm(
    *, paper: str, examples: Mapping[str, tuple[Any, ...]], syncs: Syncs = '', overlap: str = ''
) -> Callable[[Make], Make]:
    """A decorator that registers a function returning an optax transformation; the function is not changed.

    The function's signature is its schema in lines: every parameter must be one that a line can give by name, without a
    default or with one that a line can write. A parameter called `axis` is filled in by `build`.

    Args:
        paper: the publication, or 'none'.
        examples: lines with the laws that each claims; at least one line.
        syncs: what is the same on all workers after the algorithm: 'updates', as after a mean of gradients, or
            'parameters', if it moves them to common values. A line has one such transformation, and none follows one
            that synchronises parameters.
        overlap: the argument that says for how many steps what is sent has lain ready, if it has: a clock hides its
            time behind so many steps.

    Raises:
        InputError: there is no example, a parameter breaks these rules, or another module has registered the name.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # undoes the registration afterwards
    ...
    ...     @algorithm(paper='none', examples={'halve()': ()})
    ...     def halve() -> optax.GradientTransformation:
    ...         "Halves every update."
    ...         return optax.scale(0.5)
    ...
    ...     algorithms()['halve'].summary
    'Halves every update.'
    """
    return register('algorithm', paper, examples, syncs, overlap=overlap)


def codec(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a codec; the rules are those of `algorithm`.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # undoes the registration afterwards
    ...
    ...     @codec(paper='none', examples={'mean(codec=plain())': ()})
    ...     def plain() -> str:
    ...         return 'float32, as it is'
    ...
    ...     codecs()['plain'].kind
    'codec'
    """
    return register('codec', paper, examples, '')


@renamed_arguments(**DUAL_ARGUMENTS)
def dual(*, paper: str, examples: Mapping[str, tuple[Any, ...]], final: bool = False) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a transformation of a dual line, or a penalty.

    The rules are those of `algorithm`.

    Args:
        paper: the publication, or 'none'.
        examples: dual lines with the laws that each claims; at least one line.
        final: whether the transformation projects multipliers onto a set, so that it has to come last in a line.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # undoes the registration afterwards
    ...
    ...     @dual(paper='none', examples={'halve() | sgd(0.1)': ()})
    ...     def halve() -> optax.GradientTransformation:
    ...         "Halves every violation."
    ...         return optax.scale(0.5)
    ...
    ...     'halve' in duals(), 'halve' in algorithms()
    (True, False)
    """
    return register('dual', paper, examples, '', final)


def constraint(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """A decorator that registers a function returning a constraint, so that experiments can name it.

    The rules are those of `algorithm`. A parameter called `model` is filled in with the experiment's model.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # undoes the registration afterwards
    ...
    ...     @constraint(paper='none', examples={'small()': ()})
    ...     def small() -> None:
    ...         "Bounds something."
    ...
    ...     constraints()['small'].summary
    'Bounds something.'
    """
    return register('constraint', paper, examples, '')


def algorithms() -> dict[str, Entry]:
    """The registered algorithms by name, sorted.

    >>> all(entry.kind == 'algorithm' for entry in algorithms().values())
    True
    """
    return _of_kind('algorithm')


def codecs() -> dict[str, Entry]:
    """The registered codecs by name, sorted.

    >>> all(entry.kind == 'codec' for entry in codecs().values())
    True
    """
    return _of_kind('codec')


def duals() -> dict[str, Entry]:
    """The registered transformations and penalties of dual lines by name, sorted.

    >>> all(entry.kind == 'dual' for entry in duals().values())
    True
    """
    return _of_kind('dual')


def constraints() -> dict[str, Entry]:
    """The registered constraints by name, sorted.

    >>> all(entry.kind == 'constraint' for entry in constraints().values())
    True
    """
    return _of_kind('constraint')


def graphs() -> dict[str, Entry]:
    """The registered communication graphs by name, sorted.

    >>> all(entry.kind == 'graph' for entry in graphs().values())
    True
    """
    return _of_kind('graph')


def rules() -> dict[str, Entry]:
    """The registered rules of servers by name, sorted.

    >>> all(entry.kind == 'rule' for entry in rules().values())
    True
    """
    return _of_kind('rule')


def find(name: str) -> Entry | Callable[..., Any] | None:
    """The function that a name in a line refers to: a registered `Entry`, else a callable of optax, else None.

    A registered name hides the same name of optax; `optax.NAME` always refers to optax. `contrib.NAME` and
    `optax.contrib.NAME` refer to optax.contrib.

    >>> find('contrib.muon') is optax.contrib.muon
    True
    """
    return _entries().get(name) or _OPTAX.get(name.removeprefix('optax.'))


def names() -> list[str]:
    """All names that a line can call: registered ones, then those of optax, then those of optax.contrib.

    >>> 'adamw' in names() and 'contrib.muon' in names()
    True
    """
    return list(dict.fromkeys([*sorted(_entries()), *_OPTAX]))


def _entries() -> dict[str, Entry]:
    """All entries, those of jaxdist's packages included."""
    for package in PACKAGES:
        importlib.import_module(package)
    return _ENTRIES


def _of_kind(kind: Kind) -> dict[str, Entry]:
    return {name: entry for name, entry in sorted(_entries().items()) if entry.kind == kind}


def register(
    kind: Kind,
    paper: str,
    examples: Mapping[str, tuple[Any, ...]],
    syncs: Syncs,
    final: bool = False,
    overlap: str = '',
) -> Callable[[Make], Make]:
    """The decorator of a kind; see `algorithm` for the rules and the arguments.

    >>> register('codec', 'none', {}, '')(abs)
    Traceback (most recent call last):
    jaxdist.InputError: codec 'abs' needs at least one example: examples={line: claims}
    """

    def registered(make: Make) -> Make:
        name = make.__name__
        if not examples:
            raise InputError(f'{kind} {name!r} needs at least one example: examples={{line: claims}}')
        for line, claims in examples.items():
            check_claims(name, line, claims)
        _check_name(name, kind, make.__module__)
        for parameter in inspect.signature(make).parameters.values():
            check_parameter(name, parameter)
        summary = (inspect.getdoc(make) or '').partition('\n')[0]
        _ENTRIES[name] = Entry(name, kind, make, paper, dict(examples), summary, syncs, final, overlap)
        return make

    return registered


def _check_name(name: str, kind: Kind, module: str) -> None:
    # Registering must not import a package that registers: it may be about to be imported.
    entry = (_ENTRIES if str(module).startswith(PACKAGES) else _entries()).get(name)
    # The same module may register a name again, because it may be reloaded.
    if entry and (entry.kind, entry.make.__module__) != (kind, module):
        raise InputError(f'{kind} {name!r} of {module}: the {entry.kind} of {entry.make.__module__} has that name')


def _public(module: Any, prefix: str = '') -> dict[str, Callable[..., Any]]:
    # The lower-case names are functions. Classes are states and protocols, except MultiSteps, which is an optimiser.
    return {
        prefix + name: value
        for name, value in sorted(vars(module).items())
        if callable(value) and not name.startswith('_') and (name.islower() or name == 'MultiSteps')
    }


_OPTAX = _public(optax) | _public(optax.contrib, 'contrib.')
