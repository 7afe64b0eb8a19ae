"""Where the modules of version 0.1.0 are now, and their names; importable for one more release."""

from collections.abc import Mapping

from jaxdist.core.deprecation import Moved

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
    'jaxdist.gradient': Moved(['jaxdist.core.gradient'], {'cast': 'cast_params'}),
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
