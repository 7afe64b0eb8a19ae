"""The search of `jaxdist plan`: which layout of an experiment to take on how many devices of a machine."""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from jaxdist.cli import options
from jaxdist.cli.terminal import Terminal
from jaxdist.planner.cost import Estimate
from jaxdist.planner.layouts import AXES
from jaxdist.planner.machines import machine
from jaxdist.planner.search import fits, front
from jaxdist.report import LayoutPoint, bytes_text, layout_plot, seconds_text
from jaxdist.training.experiment import Experiment, ExperimentError
from jaxdist.training.layout_search import Search, laid_out, layout_options, search
from jaxdist.training.tpu_layouts import Compiled, compile_layout


@dataclass(frozen=True)
class SearchOptions:
    """The search for a layout."""

    search: options.Flag = False
    """Estimate every layout over --devices, and rank them by the time of a step; see docs/planning.md."""
    devices: int = 8
    """Devices to search for."""
    machine: Annotated[str, tyro.conf.arg(metavar='NAME|FILE.json')] = ''
    """Machine: v5e, v5p, trillium, h100, h200, cpu, or a JSON file, as {"like": "h100", "slow_link": 10e9}. A plan
    without a search shows seconds on it."""
    line: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Another update line to estimate besides the experiment's; may be given more than once."""
    keep_workers: options.Flag = False
    """Search layouts of --mesh.workers workers alone: for lines whose training depends on their number."""
    top: int = 10
    """Layouts to list."""
    compile: int = 0
    """Compile this many of the best for TPUs, which need not be here (extra tpu): exact bytes and memory."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar='FILE', help_behavior_hint='')] = None
    """File for a plot of the time of a step against memory: .png, .svg or .pdf."""

    def __post_init__(self) -> None:
        for name, least in (('devices', 1), ('top', 1), ('compile', 0)):
            if getattr(self, name) < least:
                raise ExperimentError(f'{name}={getattr(self, name)} must be {least} or more')
        if self.search and not self.machine:
            raise ExperimentError('a search needs a --machine, such as v5e or h100')
        for field in () if self.search else dataclasses.fields(self):
            if field.name != 'machine' and getattr(self, field.name) != field.default:
                option = '--' + field.name.replace('_', '-')
                raise ExperimentError(f'{option} is an option of the search for a layout: give --search as well')


def run(chosen: SearchOptions, experiment: Experiment, config: str, as_json: bool) -> None:
    """Searches, and prints what was found."""
    begin, workers = time.perf_counter(), experiment.mesh.workers if chosen.keep_workers else None
    found = search(experiment, machine(chosen.machine), chosen.devices, chosen.line, workers)
    inside = [cost for cost in found.ranked if fits(cost, found.machine)]
    listed = best_of_meshes(inside or found.ranked)[: chosen.top]
    lines, compiled = [experiment.update, *chosen.line], _compiled(found, listed[: chosen.compile], experiment, chosen)
    if chosen.plot is not None:
        _draw(found, lines, chosen.plot)
    if as_json:
        print(json.dumps(to_json(found, experiment, listed, compiled), indent=2))
        return
    console = Terminal()
    print_facts(console, found, time.perf_counter() - begin)
    for number, line in enumerate(lines, 1):
        console.print(escape(f'line {number}      {line}'))
    console.print(table(found, listed, lines))
    if not inside:
        lacks = bytes_text(listed[0].total - found.machine.memory)
        console.print(f'no layout fits: the smallest needs {lacks} more than a device has')
    for cost, out in zip(listed, compiled, strict=False):
        console.print(escape(f'compiled    {words(cost)}: {compiled_text(found, out)}'))
    if chosen.plot is not None:
        console.print(f'plot        {chosen.plot}')
    if inside:
        best = listed[0]
        console.print(escape(f'run the best: jaxdist train {config} {layout_options(experiment, best)}'.rstrip()))


def print_facts(console: Terminal, found: Search, seconds: float) -> None:
    """Prints what was searched."""
    work, of = found.workload, found.machine
    blocks = f' in {work.layers} blocks' if work.layers else ', without parts'
    products = 3 * (work.blocks * work.block_flops + work.edge_flops)
    inside = sum(fits(cost, of) for cost in found.ranked)
    console.print(f'model       {work.parameters:,.0f} parameters{blocks}; {products / 1e9:,.3g} GFLOP an example')
    console.print(
        f'machine     {found.devices} x {of.name}: {of.flops / 1e12:,.3g} TFLOP/s of which {of.reached:.0%} are '
        f'reached, {bytes_text(of.memory)}, {bytes_text(of.link)}/s among {of.group}, else {bytes_text(of.slow_link)}/s'
    )
    console.print(f'layouts     {len(found.ranked):,}, of which {inside:,} fit; estimated in {seconds_text(seconds)}')


def best_of_meshes(ranked: list[Estimate]) -> list[Estimate]:
    """The first estimate of each mesh and line: the others have more or fewer microbatches."""
    first: dict[tuple[Any, ...], Estimate] = {}
    for cost in ranked:
        first.setdefault((*(getattr(cost.layout, axis) for axis in AXES), cost.traffic.name), cost)
    return list(first.values())


def table(found: Search, listed: list[Estimate], lines: list[str]) -> Table:
    """The listed layouts."""
    out = Table(title='estimated for one step and one device', title_justify='left')
    out.add_column('layout', overflow='fold', min_width=20)
    for name in (*(['line'] if len(lines) > 1 else []), 'step', 'of peak', 'memory'):
        out.add_column(name, no_wrap=True)
    out.add_column('sent', overflow='fold', min_width=15)
    out.add_column('most time in', overflow='fold')
    for cost in listed:
        sent = ', '.join(f'{axis} {bytes_text(cost.sent[axis])}' for axis in AXES if cost.sent[axis])
        line = [str(1 + lines.index(cost.traffic.name))] if len(lines) > 1 else []
        peak = f'{found.of_peak(cost):.0%}'
        out.add_row(words(cost), *line, seconds_text(cost.step), peak, bytes_text(cost.total), sent, cost.binds)
    return out


def words(cost: Estimate) -> str:
    """A layout in words.

    >>> from jaxdist.planner.cost import NOTHING
    >>> from jaxdist.planner.layouts import Layout
    >>> words(Estimate(Layout(workers=4, stage=2, microbatches=8), NOTHING, {}, {}, {}))
    '4 workers x 2 stage, 8 microbatches'
    """
    at = cost.layout
    text = ' x '.join(f'{getattr(at, axis)} {axis}' for axis in AXES if getattr(at, axis) > 1) or 'one device'
    text += f', {at.microbatches} microbatches' if at.microbatches > 1 else ''
    return text + (', regather' if at.regather else '')


def _compiled(
    found: Search, costs: list[Estimate], experiment: Experiment, chosen: SearchOptions
) -> Iterator[Compiled]:
    """What the compiler says of layouts, one after the other."""
    return (compile_layout(laid_out(experiment, cost), found.data, found.model, chosen.machine) for cost in costs)


def compiled_text(found: Search, out: Compiled) -> str:
    """What the compiler says of a layout, in words."""
    if not out.fits:
        return f'does not fit, by {bytes_text(out.memory - found.machine.memory)}'
    sent = ', '.join(f'{axis} {bytes_text(float(bytes))}' for axis, bytes in out.sent.items() if bytes)
    return f'{bytes_text(out.memory)} of memory, sent {sent or "nothing"}'


def _draw(found: Search, lines: list[str], path: Path) -> None:
    chosen = best_of_meshes(found.ranked)
    best = {id(cost) for cost in front(chosen)}
    of = {line: f'; line {number}' if len(lines) > 1 else '' for number, line in enumerate(lines, 1)}
    points = [
        LayoutPoint(words(cost) + of[cost.traffic.name], cost.step, cost.total, id(cost) in best) for cost in chosen
    ]
    title = f'{found.workload.parameters / 1e6:,.1f}M parameters on {found.devices} x {found.machine.name}'
    shown = [f'line {number}: {line}' for number, line in enumerate(lines, 1) if len(lines) > 1]
    try:
        layout_plot(points, found.machine.memory, '\n'.join([title, *shown]), path)
    except OSError as error:
        raise ExperimentError(f'--plot {path}: {error.strerror}') from None


def to_json(
    found: Search, experiment: Experiment, listed: list[Estimate], compiled: Iterable[Compiled]
) -> dict[str, Any]:
    """What was searched, the listed layouts, and what the compiler says, as dicts, lists and numbers."""
    best = {id(cost) for cost in front(best_of_meshes(found.ranked))}
    each = [
        {
            'layout': cost.layout._asdict(),
            'line': cost.traffic.name,
            'step': cost.step,
            'of_peak': found.of_peak(cost),
            'seconds': cost.seconds,
            'memory': cost.memory,
            'sent': cost.sent,
            'fits': fits(cost, found.machine),
            'front': id(cost) in best,
            'options': layout_options(experiment, cost),
        }
        for cost in listed
    ]
    for row, out in zip(each, compiled, strict=False):
        row['compiled'] = {**out._asdict(), 'sent': {axis: float(bytes) for axis, bytes in out.sent.items()}}
    return {'workload': found.workload._asdict(), 'machine': vars(found.machine), 'layouts': each}
