"""Former names of version 0.1.0 and the present ones. The former names still work for one release.

This file has data only, so that every other file may import it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Moved(NamedTuple):
    """The present place of a former module's names.

    Attributes:
        modules: present modules; a name is taken from the first that has it.
        names: former name -> present name, for names that changed.
    """

    modules: Sequence[str]
    names: Mapping[str, str] = {}


_COLLECTIVES = {
    'total': 'psum',
    'mean': 'pmean',
    'largest': 'pmax',
    'gather': 'all_gather',
    'exchange': 'all_to_all',
    'scatter': 'reduce_scatter',
    'size': 'axis_size',
    'index': 'axis_index',
    'on_mesh': 'is_manual',
    'per_worker': 'pvary',
}
_PROGRAMS = {'spread': 'build_program', 'imagined': 'abstract', 'which_vary': 'varying', 'part_shapes': 'local_shapes'}
_SPECS = {'cut_as': 'sharded_as', 'cuts': 'shard_specs', 'part_of': 'leaves_sharded_as', 'follow': 'state_specs'}

MOVED: Mapping[str, Moved] = {
    'jaxdist.wire': Moved(['jaxdist.core.collectives', 'jaxdist.core.bits'], _COLLECTIVES),
    'jaxdist.workers': Moved(['jaxdist.core.workers', 'jaxdist.core.program', 'jaxdist.core.layout'], _PROGRAMS),
    'jaxdist.mesh': Moved(['jaxdist.core.mesh', 'jaxdist.core.protocol'], _SPECS),
    'jaxdist.registry': Moved(['jaxdist.core.registry']),
    'jaxdist.task': Moved(['jaxdist.core.types']),
    'jaxdist.gradient': Moved(['jaxdist.core.gradient', 'jaxdist.core.partition'], {'cast': 'cast_params'}),
    'jaxdist.step': Moved(['jaxdist.training.step']),
    'jaxdist.train': Moved(['jaxdist.training.train'], {'Moment': 'TrainingStep'}),
    'jaxdist.experiment': Moved(['jaxdist.training.experiment'], {'Constraints': 'ConstraintSettings'}),
    'jaxdist.run': Moved(['jaxdist.training.run']),
    'jaxdist.folder': Moved(['jaxdist.training.run_folder']),
    'jaxdist.plan': Moved(['jaxdist.training.plan']),
    'jaxdist.compare': Moved(['jaxdist.training.compare'], {'Contender': 'Variant', 'contenders': 'variants'}),
    'jaxdist.resize': Moved(['jaxdist.training.resize']),
    'jaxdist.script': Moved(['jaxdist.training.user_code']),
    'jaxdist.checkpoint': Moved(['jaxdist.training.checkpoint']),
}
"""Former module -> the present place of its names."""

LAWS: Mapping[str, str] = {
    'Verdict': 'LawResult',
    'draws_anew': 'fresh_keys',
    'judge': 'check_law',
    'loses_nothing': 'conserves_feedback',
    'meets': 'synchronises',
    'meets_at': 'synchronises_at',
    'meets_in_turn': 'synchronises_in_turn',
    'near_meeting': 'synchronises_near',
    'one_when_alike': 'alike_equals_one',
    'own_noise': 'independent_noise',
    'walks': 'matches_reference',
}
"""Former name -> present name in `jaxdist.laws`."""

ALGORITHM_ARGUMENTS: Mapping[str, str] = {'meets': 'syncs'}
"""Former argument -> present argument of `jaxdist.core.registry.algorithm`."""

DUAL_ARGUMENTS: Mapping[str, str] = {'settles': 'final'}
"""Former argument -> present argument of `jaxdist.core.registry.dual`."""

STATE_PROPERTIES: Mapping[str, str] = {'workers_diverge': 'works_locally', 'sharded_fields': 'owned'}
"""Present property -> former property of an algorithm's state; see `jaxdist.core.protocol`."""
