"""Measures how far computation overlaps with communication between two processes over a link of 100 Mbit/s.

    python experiments/overlap/overlap.py      (as root: it creates two network namespaces, and removes them)

The measure is the time of a training step over the larger of the times of computation and communication alone. All
variants take turns in every round.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / 'link'))

import pair as pairs  # noqa: E402
from link import BURST, MBIT, SIGNALS, Link, LinkError, refuse  # noqa: E402
from measure import as_json, middle, spread, wire_time  # noqa: E402

PLAIN = 'mean() | sgd(0.1)'
DELAYED = 'delay(steps=1) | mean() | sgd(0.1)'
ALONE = ('computation', 'communication')
VARIANTS = {
    'computation': 'computation alone (the gradient)',
    'communication': 'communication alone (the mean)',
    PLAIN: f'one program: `{PLAIN}`',
    DELAYED: f'one program: `{DELAYED}`',
    'in_turn': 'two programs on two devices, one after the other',
    'together': 'two programs on two devices, together',
}
"""The variants that are measured, and their labels in the table."""
EXAMPLES = (1536, 3072, 4608)
"""Examples per worker, so that the gradient takes about a third of the time of its mean, two thirds, and all of it."""
STEPS = 2
"""Steps per turn."""
CHECKED = 5
"""Steps after which the parameters of the two programs are compared to those of the single program."""
COLUMNS = (
    'examples',
    '',
    'step',
    'step / the larger of the two alone',
    'step / their sum',
    'processor time of a worker',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=16)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error('--rounds must be 2 or more')
    for number in SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    pairs.WORKER = HERE / 'worker.py'
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        pair, link = pairs.Pair(Path(folder)), Link()
        try:
            refuse()
            link.make()
            result = {'load_before': round(load, 1), **measured(link, pair, args.rounds)}
        except (LinkError, pairs.WorkerError) as error:
            sys.exit(f'error: {error}')
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            pair.end()
            link.remove()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    show(result)
    print(f'{time.monotonic() - began:.0f} s in all')
    (HERE / 'results.json').write_text(as_json(result))


def measured(link: Link, pair: pairs.Pair, rounds: int) -> dict[str, Any]:
    """Runs all measurements."""
    pair.start()
    facts = pair.call('join')[0]
    agreed: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []
    for examples in EXAMPLES:
        pair.call('load', examples)
        for update in (PLAIN, DELAYED):
            pair.call('build', update)
        agreed += pair.call('agree', CHECKED)
        for variant in VARIANTS:
            pair.call('restart', variant)
            pair.call('take', variant, 1)
        link.slow()
        turns = [turn(pair, number) for number in range(-1, rounds)][1:]  # the first round is a warm-up
        link.free()
        rows += [{'examples': examples, **summary(variant, turns)} for variant in VARIANTS]
    return {
        **facts,
        'cores': os.cpu_count(),
        'link': f'{MBIT} Mbit/s, burst {BURST}',
        'bytes_ms': round(1e3 * wire_time(4 * facts['parameters']), 1),
        'rounds': rounds,
        'steps_a_turn': STEPS,
        'agreement': {
            'steps': CHECKED,
            'apart': max(a['apart'] for a in agreed),
            'moved': min(a['moved'] for a in agreed),
        },
        'ways': rows,
    }


def summary(variant: str, turns: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """The quartiles over rounds of one variant's times, and of their ratios within a round."""
    alone = [[times_of[one][0] for one in ALONE] for times_of in turns]
    times = [times_of[variant][0] for times_of in turns]
    return {
        'way': VARIANTS[variant],
        'step_ms': middle(1e3 * t for t in times),
        'over_larger': middle(t / max(a) for t, a in zip(times, alone, strict=True)),
        'over_sum': middle(t / sum(a) for t, a in zip(times, alone, strict=True)),
        'processor_ms': middle(1e3 * times_of[variant][1] for times_of in turns),
    }


def turn(pair: pairs.Pair, number: int) -> dict[str, tuple[float, float]]:
    """One round: seconds per step by the clock and of a worker's processors, for every variant."""
    at = number % len(VARIANTS)
    order = [*VARIANTS][at:] + [*VARIANTS][:at]  # each round begins with another variant
    times = {variant: pair.timed('take', variant, STEPS) for variant in order}
    print(f'round {number + 1}', *(f'{name} {times[name][0] / STEPS:.3f}' for name in VARIANTS), file=sys.stderr)
    return {variant: (seconds / STEPS, busy / STEPS) for variant, (seconds, busy) in times.items()}


def show(result: dict[str, Any]) -> None:
    """Prints the README's table."""
    print(json.dumps(result['agreement']))
    print('|', ' | '.join(COLUMNS), '|')
    print('|---' * len(COLUMNS) + '|')
    for row in result['ways']:
        ms, busy = ([round(x) for x in row[key]] for key in ('step_ms', 'processor_ms'))
        cells = [
            str(row['examples']),
            row['way'],
            f'{ms[1]} ms ({ms[0]} to {ms[2]})',
            spread(row['over_larger']),
            spread(row['over_sum']),
            f'{busy[1]} ms',
        ]
        print('|', ' | '.join(cells), '|')


if __name__ == '__main__':
    main()
