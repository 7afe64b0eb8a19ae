"""Every notebook runs from top to bottom, and its last cell asserts what its text says."""

import json
from pathlib import Path

import pytest
from forked import launch

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'docs/notebooks').glob('*.ipynb'))


def code_cells(notebook: Path) -> list[str]:
    return [
        ''.join(cell['source']) for cell in json.loads(notebook.read_text())['cells'] if cell['cell_type'] == 'code'
    ]


@pytest.mark.slow
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    process = launch('\n\n'.join(code_cells(notebook)), cwd=tmp_path)  # one namespace for all cells
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err


def test_both_notebooks_are_seen() -> None:
    assert [path.stem for path in NOTEBOOKS] == ['your_algorithm', 'your_model']


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_with_assertions_and_stores_no_output(notebook: Path) -> None:
    lines = code_cells(notebook)[-1].splitlines()
    assert lines
    assert all(line.startswith('assert ') for line in lines)
    cells = json.loads(notebook.read_text())['cells']
    assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells)
