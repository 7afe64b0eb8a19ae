"""Code, docs and messages speak in the field's terms: words that may not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What may not come back, and what to write instead. Matched as whole words, whatever their case.
INSTEAD = {
    r'meet|meets|meeting|meetings|meeting place': 'synchronise, synchronisation (round), communication round',
    r'way back|ways back|ways that workers came': 'pseudo-gradient, displacement',
    r'told|tells|telling|what is said|talks?|speaks?': 'send, receive, report, list, communicate',
    r'cross|crosses|crossed|crossing': 'send, communicate',
    r'sits? out|sat out|sitting out|idle worker': 'reject, skip a step',
    r'of its own|of their own|trains? alone|works? locally|go their own ways': 'per worker, local training, own',
    r'accord': 'guard',
    r'under way|on their way|on its way': 'in flight',
    r'contenders?': 'variant, run, baseline',
    r'twins?': 'reference implementation',
    r'toys?': 'fixture, small example',
    r'planted': 'mutant',
    r'swings?': 'oscillates',
    r'cuts? over|cut anew|cuts? parameters': 'shard, partition',
    r'held by one device|holds? on a device': 'stored, memory per device',
}
ALLOWED = re.compile(
    r'cross[- _](?:entropy|validat\w+|attention|polytope)|https?://\S+|`[^`]*\bidle\b[^`]*`|crosses? zero'
)
PATTERNS = {re.compile(rf'\b(?:{words})\b', re.IGNORECASE): better for words, better in INSTEAD.items()}

AREAS = {
    'algorithms': ['jaxdist/algorithms', 'docs/local_training.md', 'docs/your_own_algorithm.md', 'docs/update_line.md'],
    'codecs': [
        'jaxdist/codecs',
        'docs/codecs.md',
        'docs/composition.md',
        'experiments/codecs',
        'experiments/compressed',
    ],
    'constraints': ['jaxdist/constraints', 'docs/constraints.md', 'experiments/constraints'],
    'core': ['jaxdist/core', 'jaxdist/line', 'jaxdist/__init__.py', 'docs/design.md', 'README.md', 'docs/examples'],
    'laws': ['jaxdist/laws', 'tests/laws', 'tests/fixtures'],
    'ledger': ['jaxdist/ledger'],
    'training': [
        'jaxdist/training',
        'jaxdist/cluster',
        'jaxdist/learners',
        'jaxdist/clock',
        'docs/simulated_time.md',
        'docs/decentralised.md',
        'docs/asynchronous.md',
        'jaxdist/graphs',
        'docs/learners.md',
        'docs/runs.md',
        'docs/security.md',
        'docs/clusters.md',
        'configs',
        'scripts',
    ],
    'rest': ['jaxdist/cli', 'jaxdist/report', 'jaxdist/data', 'jaxdist/models', 'CONTRIBUTING.md', 'docs/index.md'],
    'experiments': ['experiments'],
    'tests': ['tests'],
}
HERE = Path(__file__).resolve()


def texts(area: str) -> list[Path]:
    """The files of an area that people write: Python, Markdown, shell."""
    found: list[Path] = []
    for name in AREAS[area]:
        path = ROOT / name
        found += [path] if path.is_file() else sorted(path.rglob('*')) if path.is_dir() else []
    return [path for path in found if path.suffix in ('.py', '.md', '.sh') and path.resolve() != HERE]


def violations(path: Path) -> list[str]:
    """The lines of a file with a word that may not come back; of code, names count too: their parts are words."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = ALLOWED.sub(' ', line).replace('_', ' ')
        for pattern, better in PATTERNS.items():
            if match := pattern.search(words):
                found.append(
                    f'{path.relative_to(ROOT)}:{number}: {match.group()!r}; write {better}: {line.strip()[:90]}'
                )
    return found


@pytest.mark.parametrize('area', AREAS)
def test_words(area: str) -> None:
    found = [each for path in texts(area) for each in violations(path)]
    assert not found, '\n'.join(['', *found])


@pytest.mark.parametrize('text', ['def next_meeting(): ...', '# Workers are told.', '"""Where they sit out."""'])
def test_a_bad_word_is_found(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    path = tmp_path / 'a.py'
    path.write_text(text)
    assert len(violations(path)) == 1


def test_good_words_pass(tmp_path: Path) -> None:
    path = tmp_path / 'a.py'
    path.write_text('# The cross-entropy of workers that synchronise.\n')
    assert violations(path) == []
