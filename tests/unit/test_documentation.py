"""The API reference has every public name, the navigation every page, and the project's files the same facts."""

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import jaxdist

ROOT = Path(__file__).parents[2]
DOCS = ROOT / 'docs'


def load(name: str) -> ModuleType:
    """A file of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f'{name}.py')
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = load('_reference')
PAGES = REFERENCE.pages()


def in_nav(entry: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in in_nav(part)]


@pytest.fixture(scope='module')
def nav() -> list[str]:
    return in_nav(yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav'])


def test_every_public_module_is_in_the_reference() -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / 'jaxdist').rglob('*.py')]
    public = {
        '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
        for path in files
        if path.parts[1:] != ('__init__.py',) and not re.search(r'/_', path.as_posix().removesuffix('/__init__.py'))
    }
    listed = re.findall(r'^::: (\S+)$', '\n'.join(PAGES.values()), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == public
    assert {'jaxdist.core.workers', 'jaxdist.codecs.int8', 'jaxdist.training.checkpoint.store'} <= public


def test_every_public_name_links_to_its_definition() -> None:
    rows = re.findall(r'^\| `jaxdist\.(\w+)` \| \[`(\S+)`\]\[\2\] \|$', PAGES['reference/index.md'], re.MULTILINE)
    assert {name for name, _ in rows} == {*jaxdist.__all__} - {'__version__'}
    assert '| `jaxdist.__version__` |' in PAGES['reference/index.md']
    for name, path in rows:
        module, _, attribute = path.rpartition('.')
        assert getattr(importlib.import_module(module), attribute) is getattr(jaxdist, name)
        assert f'::: {module}\n' in ''.join(PAGES.values())


def test_a_private_module_is_not_in_the_reference(tmp_path: Path) -> None:
    for name in ('__init__.py', 'core/__init__.py', 'core/mesh.py', 'core/_bits.py', '_old/__init__.py', '_old/a.py'):
        path = tmp_path / 'package' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(REFERENCE.modules(tmp_path / 'package')) == ['package.core', 'package.core.mesh']


def test_every_page_is_in_the_navigation(nav: list[str]) -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md')]
    notebooks = [path.relative_to(DOCS).with_suffix('.md').as_posix() for path in DOCS.rglob('*.ipynb')]
    experiments = [path.relative_to(ROOT).as_posix() for path in (ROOT / 'experiments').glob('*/README.md')]
    top = ['index.md', 'contributing.md', 'changelog.md']
    assert sorted(nav) == sorted([*pages, *notebooks, *experiments, *top])


@pytest.mark.parametrize(
    'name, read',
    [
        ('version', lambda project: project['version']),
        ('license', lambda project: project['license']),
        ('repository-code', lambda project: project['urls']['Source']),
        ('url', lambda project: project['urls']['Documentation']),
        ('authors', lambda project: project['authors']),
    ],
)
def test_the_citation_has_the_facts_of_the_package(name: str, read: Callable[[dict[str, Any]], Any]) -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())[name] == read(project)


def test_no_page_loads_anything_from_another_host() -> None:
    config = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
    assert config['theme']['font'] is False
    assert not {'extra_css', 'extra_javascript', 'repo_url'} & config.keys()


def test_what_scripts_import_is_there() -> None:
    # Experiments run by hand: a module that had moved was found a month later.
    lacks = []
    for path in [each for folder in ('experiments', 'configs', 'scripts') for each in (ROOT / folder).rglob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] == 'jaxdist':
                module = importlib.import_module(node.module or '')
                names = [name.name for name in node.names if not is_in(module, name.name)]
                lacks += [f'{path.relative_to(ROOT)}: {node.module} has no {name}' for name in names]
    assert not lacks


def is_in(module: ModuleType, name: str) -> bool:
    """Whether this can be imported from the module, which may be a package."""
    return hasattr(module, name) or importlib.util.find_spec(f'{module.__name__}.{name}') is not None
