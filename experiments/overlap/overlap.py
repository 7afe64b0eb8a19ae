"""The time of a training step over the larger of its computation and its communication, each alone, between two
processes over a link of 100 Mbit/s.

    python experiments/overlap/overlap.py      (as root: it makes two network namespaces, and removes them)

All ways take their turns in every round.
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
LATE = 'delay(steps=1) | mean() | sgd(0.1)'
ALONE = ('computation', 'communication')
WAYS = {
    'computation': 'computation alone (the gradient)',
    'communication': 'communication alone (the mean)',
    PLAIN: f'one program: `{PLAIN}`',
    LATE: f'one program: `{LATE}`',
    'in_turn': 'two programs on two devices, one after the other',
    'together': 'two programs on two devices, together',
}
"""What is measured, and how the table calls it."""
EXAMPLES = (1536, 3072, 4608)
"""Examples a worker: the gradient takes about a third of the time of its mean, two thirds, and all of it."""
STEPS = 2
"""Steps a turn."""
CHECKED = 5
"""Steps after which the two programs' parameters are compared to those of the one."""
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
    """All that is measured."""
    pair.start()
    joined = pair.tell('join')[0]
    agreed: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []
    for examples in EXAMPLES:
        pair.tell('load', examples)
        for update in (PLAIN, LATE):
            pair.tell('build', update)
        agreed += pair.tell('agree', CHECKED)
        for way in WAYS:
            pair.tell('restart', way)
            pair.tell('take', way, 1)
        link.slow()
        turns = [turn(pair, number) for number in range(-1, rounds)][1:]  # the first is for warming up
        link.free()
        rows += [{'examples': examples, **summary(way, turns)} for way in WAYS]
    return {
        **joined,
        'cores': os.cpu_count(),
        'link': f'{MBIT} Mbit/s, burst {BURST}',
        'bytes_ms': round(1e3 * wire_time(4 * joined['parameters']), 1),
        'rounds': rounds,
        'steps_a_turn': STEPS,
        'agreement': {
            'steps': CHECKED,
            'apart': max(a['apart'] for a in agreed),
            'moved': min(a['moved'] for a in agreed),
        },
        'ways': rows,
    }


def summary(way: str, turns: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """The quartiles of one way; ratios are within a round."""
    alone = [[took[one][0] for one in ALONE] for took in turns]
    times = [took[way][0] for took in turns]
    return {
        'way': WAYS[way],
        'step_ms': middle(1e3 * t for t in times),
        'over_larger': middle(t / max(a) for t, a in zip(times, alone, strict=True)),
        'over_sum': middle(t / sum(a) for t, a in zip(times, alone, strict=True)),
        'processor_ms': middle(1e3 * took[way][1] for took in turns),
    }


def turn(pair: pairs.Pair, number: int) -> dict[str, tuple[float, float]]:
    """Seconds a step, and of a worker's processors, in every way; each round begins with another one."""
    at = number % len(WAYS)
    order = [*WAYS][at:] + [*WAYS][:at]
    took = {way: pair.timed('take', way, STEPS) for way in order}
    print(f'round {number + 1}', *(f'{way} {took[way][0] / STEPS:.3f}' for way in WAYS), file=sys.stderr)
    return {way: (seconds / STEPS, busy / STEPS) for way, (seconds, busy) in took.items()}


def show(result: dict[str, Any]) -> None:
    """Prints the table, in the form of the README's."""
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
