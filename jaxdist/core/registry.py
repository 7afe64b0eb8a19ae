"""The names that lines can use: registered algorithms, codecs, duals and constraints, then optax's own."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import optax

from jaxdist.core.errors import InputError

Kind = Literal['algorithm', 'codec', 'dual', 'constraint']
Syncs = Literal['', 'updates', 'parameters']
Make = TypeVar('Make', bound=Callable[..., Any])

_ENTRIES: dict[str, 'Entry'] = {}


@dataclass(frozen=True)
class Entry:
    """One registered function: its name, its kind, the function, its paper, its examples and a summary.

    `examples` maps update lines to the claims that hold for them. The claims are laws, which live on a
    higher floor: here they are only kept. `synchronises` says what workers come to agree on through it, if anything, and
    `final` whether a link of a dual line says where multipliers are to be.
    """

    name: str
    kind: Kind
    make: Callable[..., Any]
    paper: str
    examples: Mapping[str, tuple[Any, ...]]
    summary: str
    syncs: Syncs = ''
    final: bool = False


def algorithm(*, paper: str, examples: Mapping[str, tuple[Any, ...]], syncs: Syncs = '') -> Callable[[Make], Make]:
    """Registers a function that returns an optax transformation, and gives it back unchanged.

    `examples` maps lines to the laws that each line claims; at least one is needed. Every parameter must
    be one that a line can give by name, with a default that a line can write (or none): the signature is
    all the schema there is. A parameter called `axis` is filled in by `build`.

    With `synchronises`, workers come to agree through it: on 'updates', as by a mean of gradients, or on 'parameters', to
    which it moves them. A line has one such link, and nothing comes after one that moves parameters.

    Raises ValueError for a function that breaks these rules, or a name that another module has taken.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # leaves no trace of this example
    ...
    ...     @algorithm(paper='none', examples={'halve()': ()})
    ...     def halve() -> optax.GradientTransformation:
    ...         "Halves every update."
    ...         return optax.scale(0.5)
    ...
    ...     algorithms()['halve'].summary
    'Halves every update.'
    """
    return _register('algorithm', paper, examples, syncs)


def codec(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """Registers a function that returns a codec, and gives it back unchanged; rules as for `algorithm`.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # leaves no trace of this example
    ...
    ...     @codec(paper='none', examples={'mean(codec=plain())': ()})
    ...     def plain() -> str:
    ...         return 'sends what it is given'
    ...
    ...     codecs()['plain'].kind
    'codec'
    """
    return _register('codec', paper, examples, '')


def dual(*, paper: str, examples: Mapping[str, tuple[Any, ...]], final: bool = False) -> Callable[[Make], Make]:
    """Registers a function that returns a link of a dual line, or its penalty; rules as for `algorithm`.

    With `final`, it says where multipliers are to be, and comes last in a line.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # leaves no trace of this example
    ...
    ...     @dual(paper='none', examples={'halve() | sgd(0.1)': ()})
    ...     def halve() -> optax.GradientTransformation:
    ...         "Halves every violation."
    ...         return optax.scale(0.5)
    ...
    ...     'halve' in duals(), 'halve' in algorithms()
    (True, False)
    """
    return _register('dual', paper, examples, '', final)


def constraint(*, paper: str, examples: Mapping[str, tuple[Any, ...]]) -> Callable[[Make], Make]:
    """Registers a function that returns a constraint, which an experiment can then name; rules as for `algorithm`.

    A parameter called `model` is filled in with the experiment's.

    >>> from unittest import mock
    >>> with mock.patch.dict('jaxdist.core.registry._ENTRIES'):  # leaves no trace of this example
    ...
    ...     @constraint(paper='none', examples={'small()': ()})
    ...     def small() -> None:
    ...         "Bounds something."
    ...
    ...     constraints()['small'].summary
    'Bounds something.'
    """
    return _register('constraint', paper, examples, '')


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
    """The registered links of dual lines by name, sorted.

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


def find(name: str) -> Entry | Callable[..., Any] | None:
    """What a name in a line stands for: an Entry, else a callable of optax, else None.

    A registered name comes before the same name in optax; `optax.NAME` always means optax's.
    `contrib.NAME` and `optax.contrib.NAME` reach optax.contrib.

    >>> find('contrib.muon') is optax.contrib.muon
    True
    """
    return _ENTRIES.get(name) or _OPTAX.get(name.removeprefix('optax.'))


def names() -> list[str]:
    """Every name that a line can call: the registered ones, then optax's, then those of optax.contrib.

    >>> 'adamw' in names() and 'contrib.muon' in names()
    True
    """
    return list(dict.fromkeys([*sorted(_ENTRIES), *_OPTAX]))


def nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """Up to three of the candidates that look like `name`, best first, else that contain it.

    Case does not count, nor does what stands before a dot.

    >>> nearest('Muon', ['contrib.muon', 'adamw'])
    ['contrib.muon']
    """
    by_ending: dict[str, str] = {}
    for candidate in candidates:
        by_ending.setdefault(_ending(candidate), candidate)
    short = _ending(name)
    close = difflib.get_close_matches(short, by_ending) or [ending for ending in by_ending if short in ending]
    return [by_ending[ending] for ending in close[:3]]


def _ending(name: str) -> str:
    return name.rpartition('.')[2].lower()


def _of_kind(kind: Kind) -> dict[str, Entry]:
    return {name: entry for name, entry in sorted(_ENTRIES.items()) if entry.kind == kind}


def _register(
    kind: Kind, paper: str, examples: Mapping[str, tuple[Any, ...]], syncs: Syncs, final: bool = False
) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        name = make.__name__
        if not examples:
            raise InputError(f'{kind} {name!r} needs at least one example: examples={{line: claims}}')
        _check_name(name, kind, make.__module__)
        for parameter in inspect.signature(make).parameters.values():
            _check_parameter(name, parameter)
        summary = (inspect.getdoc(make) or '').partition('\n')[0]
        _ENTRIES[name] = Entry(name, kind, make, paper, dict(examples), summary, syncs, final)
        return make

    return keep


def _check_name(name: str, kind: Kind, module: str) -> None:
    held = _ENTRIES.get(name)
    # The same module may register a name again: it was reloaded.
    if held and (held.kind, held.make.__module__) != (kind, module):
        raise InputError(f'{kind} {name!r} of {module}: the {held.kind} of {held.make.__module__} has that name')


def _check_parameter(name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
        raise InputError(f'{name}({parameter}): a line gives every parameter by name, so this one needs a name')
    if parameter.default is not parameter.empty and not _writable(parameter.default):
        raise InputError(
            f'{name}({parameter.name}={parameter.default!r}): a line cannot write this default; '
            f'take a constant, or None and make the value inside'
        )


def _writable(default: Any) -> bool:
    try:
        return bool(ast.literal_eval(ast.unparse(ast.Constant(default))) == default)
    except (SyntaxError, TypeError, ValueError):
        return False


def _public(module: Any, prefix: str = '') -> dict[str, Callable[..., Any]]:
    # Lower-case names are optax's functions; its classes are states and protocols, but for MultiSteps.
    return {
        prefix + name: value
        for name, value in sorted(vars(module).items())
        if callable(value) and not name.startswith('_') and (name.islower() or name == 'MultiSteps')
    }


_OPTAX = _public(optax) | _public(optax.contrib, 'contrib.')
