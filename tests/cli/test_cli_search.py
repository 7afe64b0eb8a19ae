"""`jaxdist plan --search`: what it prints, draws and refuses."""

import json
from pathlib import Path

import pytest
from run_fixtures import Jaxdist


@pytest.mark.slow
def test_a_search_ranks_layouts_and_draws_them(jaxdist: Jaxdist) -> None:
    line = 'sgd(0.1) | average(every=5)'
    code, out, err = jaxdist('plan', 'small.py', '--search', '--machine', 'cpu', '--line', line, '--plot', 'a.png')
    assert (code, err) == (0, '')
    assert f'line 2      {line}' in out
    assert Path('a.png').read_bytes().startswith(b'\x89PNG')
    best = out.splitlines()[-1]
    assert best.startswith('run the best: jaxdist train small.py --mesh.workers ')
    data = json.loads(jaxdist('plan', 'small.py', '--search', '--machine', 'cpu', '--line', line, '--json').out)
    times = [float(f'{layout["step"]:.2e}') for layout in data['layouts']]
    assert times == sorted(times)
    assert data['layouts'][0]['options'] in best
    assert {layout['line'] for layout in data['layouts']} == {line, 'mean() | sgd(0.1)'}


def test_a_machine_without_memory_fits_nothing(jaxdist: Jaxdist) -> None:
    Path('tiny.json').write_text('{"like": "v5e", "memory": 100}')
    out = jaxdist('plan', 'small.py', '--search', '--machine', 'tiny.json').out
    assert 'no layout fits: the smallest needs' in out
    assert 'run the best' not in out


def test_layouts_are_compiled_for_tpus_alone(jaxdist: Jaxdist) -> None:
    code, _, err = jaxdist('plan', 'small.py', '--search', '--machine', 'h100', '--compile', '1')
    assert code == 2
    assert 'layouts are compiled for TPUs alone (v5e, trillium, v6e, v5p), not for h100' in err


@pytest.mark.slow
def test_a_plan_has_the_seconds_of_a_machine(jaxdist: Jaxdist) -> None:
    out = jaxdist('plan', 'small.py', '--machine', 'cpu').out
    assert 'on cpu, 50% of the peak reached, without launches: products ' in out
    seconds = json.loads(jaxdist('plan', 'small.py', '--machine', 'cpu', '--json').out)['seconds']
    assert seconds['workers'] == json.loads(jaxdist('plan', 'small.py', '--json').out)['sent_per_step']['workers'] / 1e9
    # Four rows of 64 inputs, 8 hidden units and 10 labels on each worker; no gradient is taken by the inputs.
    assert seconds['products'] == 2 * 4 * (64 * 8 * 2 + 8 * 10 * 3) / 25e9
