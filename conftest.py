"""Eight emulated devices for every test, and a cache of compiled programs that is kept between runs.

JAX writes its cache in place, so a killed process can leave half an entry, and two processes can write the same one.
Each test process therefore has its own folder, with links to the kept entries, and adds its new entries to the kept
ones when it ends. Remove the folder that `kept_entries` names to start cold.
"""

import contextlib
import gc
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import pytest

from jaxdist.cli.compilation_cache import processor
from jaxdist.core import registry

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_enable_compilation_cache', True)

FLAGS = ['--xla_cpu_parallel_codegen_split_count=1', '--xla_backend_optimization_level=2']
"""Each program is compiled by one thread, for test processes fill the processors already: the code is the same. XLA's
own optimisations are a user's; LLVM's are those of -O2. Those of -O3, the default, quadruple the time for random
numbers.
"""

OPTIMISED = ('tests/reference/', 'tests/laws/test_algorithms', 'tests/laws/test_edges', 'tests/faults/test_step_guard')
"""Tests of numbers, which LLVM's optimisations may round otherwise. The others compile without these, in two thirds of
the time.
"""

if jax.version.__version_info__ < (0, 11):
    # XLA's former emitter of fused loops, which later versions lack, compiles in half the time. LLVM optimises as much;
    # a few fusions differ from a user's.
    FLAGS += ['--xla_cpu_use_fusion_emitters=false']

OWN = pytest.StashKey[Path]()
DAYS = 14
"""Entries are kept for so many days after they were compiled."""


def set_flags() -> None:
    """Sets XLA's flags for this process, and not for those that it starts: these compile as a user's do."""
    before = os.environ.get('XLA_FLAGS')
    os.environ['XLA_FLAGS'] = ' '.join([before or '', *FLAGS]).strip()
    jax.jit(lambda: 0)()  # XLA reads its flags once, when it first compiles
    if before is None:
        del os.environ['XLA_FLAGS']
    else:
        os.environ['XLA_FLAGS'] = before


def kept_entries() -> Path:
    """The folder of what was compiled by this version of JAX for this processor with these flags."""
    key = hashlib.sha256(f'{processor()} {FLAGS}'.encode()).hexdigest()[:12]
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'jaxdist-tests' / f'jax-{jax.__version__}-{key}'


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Has LLVM optimise for tests of numbers only; in a quick run for none."""
    plain = bool(os.environ.get('JAX_DISABLE_MOST_OPTIMIZATIONS')) or not item.nodeid.startswith(OPTIMISED)
    jax.config.update('jax_disable_most_optimizations', plain)


def pytest_configure(config: pytest.Config) -> None:
    """Links the kept entries into a folder of this process, and has JAX use that."""
    if hasattr(config, 'workerinput') or not config.getoption('numprocesses', None):  # a process that runs tests
        set_flags()
        registry.names()  # tests replace the registry for a while: jaxdist's own names must be in it before
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)  # tracing makes many objects and few cycles: fewer collections save a tenth
        kept = kept_entries()
        kept.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix='run-', dir=kept.parent))
        for entry in kept.glob('*-cache'):
            with contextlib.suppress(FileNotFoundError):  # another process may have removed it just now
                if time.time() - entry.stat().st_mtime > DAYS * 86400:
                    entry.unlink()
                else:
                    os.link(entry, own / entry.name)
        config.stash[OWN] = own
        os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # for processes that tests start: JAX has read it here
        jax.config.update('jax_compilation_cache_dir', str(own))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
        jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')  # their path would be part of each key


def pytest_unconfigure(config: pytest.Config) -> None:
    """Adds the new entries to the kept ones."""
    own = config.stash.get(OWN, None)
    if own is not None:
        kept = kept_entries()
        for entry in own.glob('*-cache'):
            if entry.stat().st_nlink == 1 and not (kept / entry.name).exists():
                entry.replace(kept / entry.name)
        shutil.rmtree(own)
