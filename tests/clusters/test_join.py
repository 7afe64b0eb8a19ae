"""Joining JAX's coordination service: what JAX is asked for."""

from typing import Any

import jax
import pytest

from jaxdist.cluster.coordination import MARGIN, Coordination, Place


def test_jax_detects_nothing_itself_and_listens_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *place, **options: asked.update(options, place=place))
    before = jax.config.jax_enable_preemption_service
    # JAX would take one GPU for a process of SLURM, and listen on all interfaces.
    monkeypatch.setenv('SLURM_LOCALID', '0')
    try:
        Coordination.start(Place('10.0.0.1:9911', 4, 1, None), '10.0.0.1:9911', join=60.0, silence=30.0)
        assert not jax.config.jax_enable_preemption_service
    finally:
        jax.config.update('jax_enable_preemption_service', before)
    assert asked == {
        'place': ('10.0.0.1:9911', 4, 1),
        'local_device_ids': None,
        'cluster_detection_method': 'deactivate',
        'coordinator_bind_address': '10.0.0.1:9911',
        'initialization_timeout': 60 + MARGIN,
        'heartbeat_timeout_seconds': 30 + MARGIN,
    }
