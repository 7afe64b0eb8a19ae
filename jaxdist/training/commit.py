"""The commit of jaxdist's sources."""

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of jaxdist's sources, with `+changes` where they differ from it; None if they are not in git.

    >>> commit() is None or len(commit().removesuffix('+changes')) == 40
    True
    """
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ('+changes' if changes.strip() else '')
