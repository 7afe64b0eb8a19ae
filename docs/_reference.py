"""The API reference as Markdown: a page with the names of `import jaxdist`, and one page a subpackage.

The pages are made from the package's folders, so a new module is on its page without being listed anywhere.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / 'jaxdist'


def modules(package: Path = PACKAGE) -> Iterator[str]:
    """The dotted names of all modules below the package without a leading underscore, packages first, in order."""
    for path in sorted(package.rglob('*.py'), key=lambda path: (path.parent, path.name)):
        parts = path.relative_to(package.parent).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        if len(parts) > 1 and not any(part.startswith('_') for part in parts):
            yield '.'.join(parts)


def pages() -> dict[str, str]:
    """The text of each page by its place in the site."""
    by_package: dict[str, list[str]] = {}
    for module in modules():
        by_package.setdefault(module.split('.')[1], []).append(module)
    texts = {'reference/index.md': _index(sorted(by_package))}
    for package, names in sorted(by_package.items()):
        own = _assigned(PACKAGE / package / '__init__.py')  # its other names are those of the modules below
        options = f'{{heading_level: 2, members: {own or "false"}}}'
        parts = [f'# jaxdist.{package}', f'::: jaxdist.{package}\n    options: {options}']
        parts += [f'## {name}\n\n::: {name}' for name in names if name != f'jaxdist.{package}']
        texts[f'reference/{package}.md'] = '\n\n'.join(parts) + '\n'
    return texts


def exported(package: Path = PACKAGE) -> dict[str, str]:
    """The names of `import jaxdist` by its text, subpackages aside, each with the dotted name of its definition.

    The text is read, not run: the reference can be made where jaxdist does not import.
    """
    names = {}
    for node in _imports(package / '_public.py'):
        folder = package.parent.joinpath(*node.module.split('.'))
        again = {each.name: other.module for other in _imports(folder / '__init__.py') for each in other.names}
        for each in node.names:
            if each.asname == each.name and not (folder / each.name / '__init__.py').exists():
                names[each.name] = f'{again.get(each.name, node.module)}.{each.name}'
    for kind in ('algorithm', 'codec'):  # found in their folders, as jaxdist does it
        for path in (package / f'{kind}s').glob('[!_]*.py'):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and any(_is_call_of(kind, each) for each in node.decorator_list):
                    names[node.name] = f'jaxdist.{kind}s.{path.stem}.{node.name}'
    return names


def _imports(path: Path) -> list[ast.ImportFrom]:
    nodes = ast.parse(path.read_text()).body if path.exists() else []
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def _assigned(path: Path) -> list[str]:
    """The public names that a file assigns at its top."""
    nodes = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign))
    names = [each.id for node in nodes for each in node.targets if isinstance(each, ast.Name)]
    return [name for name in names if not name.startswith('_')]


def _is_call_of(name: str, node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _index(packages: list[str]) -> str:
    names = sorted(exported().items(), key=lambda item: item[0].lower())
    lines = ['# API reference', '', 'The names of `import jaxdist`, and where each is defined:', '']
    lines += ['| name | definition |', '|---|---|', '| `jaxdist.__version__` | the version, a string |']
    lines += [f'| `jaxdist.{name}` | [`{path}`][{path}] |' for name, path in names]
    lines += ['', 'The modules by subpackage:', '', *(f'- [`jaxdist.{each}`]({each}.md)' for each in packages)]
    return '\n'.join(lines) + '\n'
