"""Measures the time of a training step of two processes over a link of 100 Mbit/s, and its ratio to that of its bytes.

    python experiments/link/measure.py      (as root: it creates two network namespaces, and removes them)

All lines take turns in every round, first on the slowed link and then on the unslowed one.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from link import BURST, MBIT, SIGNALS, Link, LinkError, refuse
from pair import Pair, WorkerError

HERE = Path(__file__).parent
DENSE = 'mean() | sgd(0.1)'
STEPS = 3
"""Steps per turn."""
COLUMNS = (
    'line',
    'bytes sent',
    'their time',
    'step',
    'step / their time',
    'step, link unslowed',
    'processor time of a worker',
    'step / dense step',
    '(step - unslowed) / their time',
)
VISIBLE = 10
"""Milliseconds that the bytes must take for the step time without computation to be above the noise."""
PLAIN = [(size, ways) for size in (64_000, 4_000_000) for ways in (1, 2)]
"""Transfers by a plain socket, as (bytes, directions)."""


def mean(codec: str, feedback: bool, exchange: str | None = None) -> str:
    """The update line of a mean with this codec."""
    more = [', feedback=True'] * feedback + [f", exchange='{exchange}'"] * (exchange is not None)
    return f'mean(codec={codec}{"".join(more)}) | sgd(0.1)'


EXCHANGES = {
    'bf16()': ('gather', 'two_phases'),
    'int8()': ('gather', 'two_phases', 'all_reduce'),
    'int4()': ('gather', 'two_phases', 'all_reduce'),
    'sign()': ('gather', 'two_phases'),
    'top_k(k=41, block=4096)': ('gather', 'two_phases'),
    'int2()': (None,),
    'random_k(k=41, block=4096)': (None,),
    'power_sgd(rank=2)': (None,),
}
"""Codecs, and the exchanges that each is measured with; None is the default one."""

LINES = [DENSE, *(mean(codec, codec != 'bf16()', name) for codec, names in EXCHANGES.items() for name in names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--line', action='append', help='another update line instead; results.json stays as it is')
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error('--rounds must be 2 or more')
    for number in SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    lines = [DENSE, *args.line] if args.line else LINES
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        pair, link = Pair(Path(folder)), Link()
        try:
            refuse()
            link.make()
            result = {'load_before': round(load, 1), **measured(link, pair, lines, args.rounds)}
        except (LinkError, WorkerError) as error:
            sys.exit(f'error: {error}')
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            pair.end()
            link.remove()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    show(result)
    print(f'{time.monotonic() - began:.0f} s in all')
    if not args.line:
        (HERE / 'results.json').write_text(as_json(result))


def measured(link: Link, pair: Pair, lines: list[str], rounds: int) -> dict[str, Any]:
    """Runs all measurements; the results in the units of the table."""
    pair.start()
    versions = pair.call('join')[0]
    sent = []
    for i, update in enumerate(lines):
        built = pair.call('build', update)[0]
        sent.append(built['sent'])
        pair.call('take', i, STEPS)
        print(f'built {i + 1}/{len(lines)}  {update}', file=sys.stderr)
    slow: list[list[float]] = [[] for _ in lines]
    free: list[list[float]] = [[] for _ in lines]
    busy: list[list[float]] = [[] for _ in lines]
    plain: list[list[float]] = [[] for _ in PLAIN]
    for turn in range(-1, rounds):  # the first round is a warm-up
        at = turn % len(lines)
        order = [*range(at, len(lines)), *range(at)]
        link.slow()
        slowed = {i: pair.timed('take', i, STEPS) for i in order}
        bare = [pair.timed('plain', *transfer)[0] for transfer in PLAIN]
        link.free()
        unslowed = {i: pair.timed('take', i, STEPS)[0] for i in order}
        print(f'round {turn + 1}/{rounds}', file=sys.stderr)
        if turn < 0:
            continue
        for i in order:
            slow[i].append(slowed[i][0] / STEPS)
            busy[i].append(slowed[i][1] / STEPS)
            free[i].append(unslowed[i] / STEPS)
        for j, seconds in enumerate(bare):
            plain[j].append(seconds / wire_time(PLAIN[j][0]))
    rows = []
    for i, update in enumerate(lines):
        alone = wire_time(sent[i])
        rows.append(
            {
                'line': update,
                'sent': sent[i],
                'bytes_ms': round(1e3 * alone, 2),
                'step_ms': middle(1e3 * s for s in slow[i]),
                'unslowed_ms': middle(1e3 * s for s in free[i]),
                'processor_ms': middle(1e3 * s for s in busy[i]),
                'over_dense': middle(a / b for a, b in zip(slow[i], slow[0], strict=True)),
                'over_bytes': middle(s / alone for s in slow[i]),
                'rest_over_bytes': middle((a - b) / alone for a, b in zip(slow[i], free[i], strict=True)),
            }
        )
    return {
        **versions,
        'cores': os.cpu_count(),
        'link': f'{MBIT} Mbit/s, burst {BURST}',
        'parameters': built['parameters'],
        'rounds': rounds,
        'steps_a_turn': STEPS,
        'plain': [
            {'bytes': size, 'ways': ways, 'over_bytes': middle(ratios)}
            for (size, ways), ratios in zip(PLAIN, plain, strict=True)
        ],
        'lines': rows,
    }


def wire_time(size: int) -> float:
    """Seconds that so many bytes take in one direction of the slowed link, without overhead."""
    return size * 8 / (MBIT * 1e6)


def middle(values: Iterable[float]) -> list[float]:
    """The quartiles, of which the second is the median."""
    return [float(f'{x:.4g}') for x in statistics.quantiles(values, n=4)]


def show(result: dict[str, Any]) -> None:
    """Prints the README's table."""
    for row in result['plain']:
        directions = 'one way' if row['ways'] == 1 else 'both ways at once'
        print(f'plain socket, {row["bytes"]:,} bytes {directions}: {spread(row["over_bytes"])} x the time of the bytes')
    print('|', ' | '.join(COLUMNS), '|')
    print('|---' * len(COLUMNS) + '|')
    for row in result['lines']:
        cells = [
            f'`{row["line"].removesuffix(" | sgd(0.1)")}`',
            f'{row["sent"]:,}',
            f'{row["bytes_ms"]:.1f} ms',
            f'{row["step_ms"][1]:.1f} ms',
            spread(row['over_bytes']),
            f'{row["unslowed_ms"][1]:.1f} ms',
            f'{row["processor_ms"][1]:.1f} ms',
            spread(row['over_dense']),
            spread(row['rest_over_bytes']) if row['bytes_ms'] >= VISIBLE else '-',
        ]
        print('|', ' | '.join(cells), '|')


def spread(quartiles: list[float]) -> str:
    """Quartiles as text, such as `1.04 (1.03 to 1.06)`."""
    low, median, high = quartiles
    return f'{median:.2f} ({low:.2f} to {high:.2f})'


def as_json(result: dict[str, Any]) -> str:
    """JSON with one line per row of a table."""
    parts = []
    for name, value in result.items():
        rows = isinstance(value, list)
        text = '[\n    ' + ',\n    '.join(map(json.dumps, value)) + '\n  ]' if rows else json.dumps(value)
        parts.append(f'  {json.dumps(name)}: {text}')
    return '{\n' + ',\n'.join(parts) + '\n}\n'


if __name__ == '__main__':
    main()
