"""Compiling for eight TPU v5e chips on a machine that has none: the `tpu` extra brings the compiler, libtpu."""

import os

import jax
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

# libtpu reads these when it is loaded: ask no metadata server, and let several processes load it and write no logs.
os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5litepod-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_LOG_DIR='disabled',
)


@pytest.fixture(scope='session')
def chips() -> topologies.TopologyDescription:
    """Eight chips, to compile for; nothing runs on them."""
    jax.config.update('jax_enable_compilation_cache', False)  # a program for a TPU cannot be loaded without one
    compilation_cache.reset_cache()  # else JAX keeps to what it read when it first compiled
    return topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
