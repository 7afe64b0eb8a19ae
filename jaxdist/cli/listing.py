"""`jaxdist algorithms`, `codecs`, `graphs`, `rules` and `constraints`: list the calls of lines, and what they send."""

import inspect
import shlex
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import jax
import optax
import tyro
from rich.markup import escape
from rich.padding import Padding

from jaxdist import line
from jaxdist.cli import entries, options
from jaxdist.cli.terminal import Terminal
from jaxdist.core import registry
from jaxdist.core.errors import InputError
from jaxdist.graphs.graph import build, gap_text, message_text
from jaxdist.line.calls import FILLED
from jaxdist.training.plan import sent_each_step, update_traffic

MATRIX = {'matrix': jax.ShapeDtypeStruct((1000, 1000), 'float32')}
"""The parameters whose bytes are counted if no config is given."""


@dataclass(frozen=True)
class Algorithms:
    """Lists algorithms: parameters, papers, the laws that they claim and, for a number of workers, bytes per step."""

    names: entries.Names = ()
    """Names of algorithms, or Python files that register some."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint='')] = None
    """List the bytes that one of so many workers sends per step."""
    config: Annotated[Path | None, tyro.conf.arg(metavar='CONFIG', help_behavior_hint='')] = None
    """Count them for this config's model; without it, for one matrix of 1000 x 1000 numbers."""
    script: options.Scripts = ()


@dataclass(frozen=True)
class Codecs:
    """Lists codecs: parameters, papers, the laws that they claim and, for a number of workers, the bytes of a mean."""

    names: entries.Names = ()
    """Names of codecs, or Python files that register some."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint='')] = None
    """List the bytes that one of so many workers sends for a mean."""
    config: Annotated[Path | None, tyro.conf.arg(metavar='CONFIG', help_behavior_hint='')] = None
    """Count them for this config's model; without it, for one matrix of 1000 x 1000 numbers."""
    script: options.Scripts = ()


@dataclass(frozen=True)
class Graphs:
    """Lists communication graphs: parameters, papers and, for a number of workers, messages and spectral gap."""

    names: entries.Names = ()
    """Names of graphs, or Python files that register some."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint='')] = None
    """List messages and gaps for so many workers."""


@dataclass(frozen=True)
class Rules:
    """Lists rules of a server at which messages arrive: parameters, papers and examples."""

    names: entries.Names = ()
    """Names of rules, or Python files that register some."""


@dataclass(frozen=True)
class Constraints:
    """Lists constraints, transformations of dual lines, and penalties: parameters, papers and examples."""

    names: entries.Names = ()
    """Names of constraints, transformations or penalties, or Python files that register some."""


def algorithms(arguments: list[str]) -> None:
    """Runs `jaxdist algorithms`."""
    _show(options.parse(Algorithms(), arguments, 'algorithms'), registry.algorithms())
    print("Lines can also contain optax's optimisers, transformations and schedules, by name.")


def codecs(arguments: list[str]) -> None:
    """Runs `jaxdist codecs`."""
    _show(options.parse(Codecs(), arguments, 'codecs'), registry.codecs())
    print('Any algorithm that averages can use any codec, as in mean(codec=int8()).')


def graphs(arguments: list[str]) -> None:
    """Runs `jaxdist graphs`."""
    chosen = options.parse(Graphs(), arguments, 'graphs')
    if chosen.workers is not None and chosen.workers < 1:
        raise InputError(f'--workers {chosen.workers} must be 1 or more')
    console = Terminal(soft_wrap=False)
    for entry in entries.chosen(chosen.names, registry.graphs()):
        _head(console, entry)
        if chosen.workers:
            console.print(Padding(escape(_mixing(next(iter(entry.examples)), chosen.workers)), (0, 0, 0, 6)))
        console.print()
    print('Algorithms that gossip take them, as in gossip(graph=static_exponential()).')


def _mixing(example: str, workers: int) -> str:
    """How much workers send on a graph, and how fast it brings them together."""
    head = f'{example}, {workers} workers: '
    try:
        rounds = build(line.build_value(example), workers)
    except InputError as error:
        return head + str(error)
    return head + ', '.join(filter(None, [message_text(rounds), gap_text(rounds)]))


def rules(arguments: list[str]) -> None:
    """Runs `jaxdist rules`."""
    console = Terminal(soft_wrap=False)
    for entry in entries.chosen(options.parse(Rules(), arguments, 'rules').names, registry.rules()):
        _head(console, entry)
        console.print(Padding(escape(f'example: {next(iter(entry.examples))}'), (0, 0, 1, 6)))
    print('They stand in update lines of experiments with a clock, between what workers do and what the server does.')


def constraints(arguments: list[str]) -> None:
    """Runs `jaxdist constraints`."""
    console = Terminal(soft_wrap=False)
    for entry in entries.chosen(options.parse(Constraints(), arguments, 'constraints').names, entries.constraints()):
        _head(console, entry, _field(entry))
        console.print(Padding(escape(f'example: {next(iter(entry.examples))}'), (0, 0, 1, 6)))
    print("Dual lines can also contain optax's optimisers, and penalties its schedules, by name.")


def _field(entry: registry.Entry) -> str:
    """The field of an experiment in which the entry can be used."""
    if entry.kind == 'constraint':
        return 'constraints.hold'
    transforms = issubclass(inspect.signature(entry.make).return_annotation, optax.GradientTransformation)
    return 'constraints.dual' if transforms else 'constraints.penalty'


def _head(console: Terminal, entry: registry.Entry, field: str = '') -> None:
    """Prints an entry's call, summary and paper."""
    console.print(Padding(f'[bold]{escape(_call(entry))}[/]{f"  ({field})" if field else ""}', (0, 0, 0, 2)))
    for text in (entry.summary, entry.paper if entry.paper != 'none' else ''):
        if text:
            console.print(Padding(escape(text), (0, 0, 0, 6)))


def _show(chosen: Algorithms | Codecs, known: dict[str, registry.Entry]) -> None:
    if chosen.workers is not None and chosen.workers < 1:
        raise InputError(f'--workers {chosen.workers} must be 1 or more')
    if chosen.config and chosen.workers is None:
        raise InputError('--config counts bytes for a model, which also needs the number of --workers: give both')
    selected = entries.chosen(chosen.names, known)
    params = _params(chosen) if chosen.workers else None
    console = Terminal(soft_wrap=False)
    for entry in selected:
        _head(console, entry)
        console.print(Padding(escape(f'claims: {", ".join(_claims(entry))}'), (0, 0, 0, 6)))
        if chosen.workers:
            console.print(Padding(escape(_bytes(entry, params, chosen.workers)), (0, 0, 0, 6)))
        console.print()


def _params(chosen: Algorithms | Codecs) -> Any:
    """The shapes and dtypes of the parameters of a config's model."""
    if chosen.config is None:
        return MATRIX
    command = shlex.join([type(chosen).__name__.lower(), *chosen.names, '--workers', str(chosen.workers), '--config'])
    experiment = options.load_config(chosen.config, chosen.script, command)
    model = experiment.model.build(experiment.data.load().task)
    return jax.eval_shape(model.init, jax.random.key(0))


def _bytes(entry: registry.Entry, params: Any, workers: int) -> str:
    """The bytes that one worker sends with the entry's first example, measured in the traced program."""
    example = next(iter(entry.examples))
    text = f'mean(codec={example})' if entry.kind == 'codec' else example
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    head = f'{text}, {workers} workers, {count:,} parameters: '
    try:
        rows = update_traffic(line.build(text), params, workers)
    except ValueError as error:  # the example does not allow this number of workers, or these parameters
        return head + str(error)
    sent, exact = sent_each_step(rows, 'workers'), Fraction(2 * (workers - 1), workers) * 4 * count
    if not sent:
        return head + ('nothing is sent' if sent == 0 else 'the bytes sent depend on the data')
    collectives = ' + '.join(dict.fromkeys(f'{row.kind} of {row.dtype}' for row in rows))
    return head + f'{round(sent):,} bytes, {float(exact / sent):.3g} times less than the exact mean, by {collectives}'


def _call(entry: registry.Entry) -> str:
    """The entry's call in a line, with every parameter and its default."""
    parameters = inspect.signature(entry.make).parameters.values()
    texts = [p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in parameters if p.name not in FILLED]
    return f'{entry.name}({", ".join(texts)})'


def _claims(entry: registry.Entry) -> list[str]:
    """The laws that the entry's examples claim, each once."""
    return list(dict.fromkeys(law.name for laws in entry.examples.values() for law in laws)) or ['nothing']
