"""What the site has beside docs/: the home page, the experiments, the notebooks as pages, and the API reference.

Sources keep the links that work in the repository; on the site each points to the page, the file, or the source.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SOURCE = 'https://github.com/jaxdist/jaxdist/blob/main'
TOP = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md'}
ROW = re.compile(r'^\|.*$', re.MULTILINE)
CODE = re.compile(r'`[^`\n]+`')
LINK = re.compile(r'\]\(([^()\s#:]+)(#[^()\s]*)?\)')


def pages() -> dict[str, str]:
    """The pages of the API reference."""
    spec = importlib.util.spec_from_file_location('reference', ROOT / 'docs/_reference.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def on_config(config: Any) -> Any:
    """Adds the reference's pages to the navigation."""
    config.nav.append({'API reference': [*pages()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what does not lie in docs/."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name, page in TOP.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / 'docs').rglob('*.ipynb')):
        page = path.relative_to(ROOT / 'docs').with_suffix('.md')
        files.append(File.generated(config, page.as_posix(), content=as_markdown(path)))
    for path in sorted((ROOT / 'experiments').rglob('*')):
        if path.suffix in ('.md', '.png', '.html'):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def as_markdown(path: Path) -> str:
    """A notebook's cells, code as blocks of Python."""
    cells = [(cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(path.read_text())['cells']]
    return '\n\n'.join(f'```python\n{text}\n```' if kind == 'code' else text for kind, text in cells) + '\n'


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = {site: name for name, site in TOP.items()}.get(here, here if here.startswith('experiments/') else None)
    folder = (ROOT / (source or f'docs/{here}')).parent

    def to_site(match: re.Match[str]) -> str:
        path, anchor = (folder / match[1]).resolve(), match[2] or ''
        if not path.exists() or not path.is_relative_to(ROOT):
            return match[0]  # mkdocs reports it if it is broken
        name = path.relative_to(ROOT).as_posix()
        site = TOP.get(name, name.removeprefix('docs/')).replace('.ipynb', '.md')
        if site not in files.src_uris:
            return f']({SOURCE}/{name}{anchor})'
        return f']({"../" * here.count("/")}{site}{anchor})'

    # In the code of a table GitHub wants | escaped, and Python-Markdown does not.
    markdown = ROW.sub(lambda row: CODE.sub(lambda span: span[0].replace('\\|', '|'), row[0]), markdown)
    return LINK.sub(to_site, markdown)
