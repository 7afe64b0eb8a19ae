"""The field's names for what jaxdist calls otherwise, for error messages: of algorithms and of arguments."""

import ast
from collections.abc import Iterable

from jaxdist.core.registry import find
from jaxdist.line.calls import Call, did_you_mean, dotted

_LOCAL = 'sgd(0.1) | average(every=10)'
_SIGN = 'mean(codec=sign(), feedback=True) | sgd(0.01)'
_TOP = 'mean(codec=top_k(k=8), feedback=True) | sgd(0.1)'
_SHARDED = 'parameter_server(optimizer=adam(0.001))'
_DELAYED = 'mean() | delay(steps=4) | sgd(0.1)'
_TRACKING = 'track() | sgd(0.1) | gossip(adapt_first=False)'

LINES = {
    **dict.fromkeys(('localsgd', 'fedavg', 'federatedaveraging', 'parameteraveraging', 'modelaveraging'), _LOCAL),
    **dict.fromkeys(('signsgd', 'efsignsgd', 'efsgd', 'onebit', 'onebitadam'), _SIGN),
    **dict.fromkeys(('majorityvote', 'signum'), 'mean(codec=majority()) | sgd(0.01)'),
    **dict.fromkeys(('allreduce', 'ddp', 'dataparallel', 'pmean', 'psum', 'syncsgd'), 'mean() | sgd(0.1)'),
    'powersgd': 'mean(codec=power_sgd(rank=2), feedback=True) | sgd(0.1)',
    **dict.fromkeys(('topk', 'topksgd', 'dgc', 'deepgradientcompression'), _TOP),
    'randomk': 'mean(codec=random_k(k=8), feedback=True) | sgd(0.1)',
    'terngrad': 'mean(codec=ternary()) | sgd(0.1)',
    **dict.fromkeys(('bf16compress', 'bf16compresshook'), 'mean(codec=bf16()) | sgd(0.1)'),
    **dict.fromkeys(('fp16compress', 'fp16compresshook'), 'mean(codec=fp16()) | sgd(0.1)'),
    **dict.fromkeys(('errorfeedback', 'ef', 'ef21'), 'mean(codec=int8(), feedback=True) | sgd(0.1)'),
    **dict.fromkeys(('zero', 'zero1', 'zeroredundancyoptimizer', 'shardedoptimizer'), _SHARDED),
    **dict.fromkeys(('fedopt', 'fedadam'), 'sgd(0.1) | diloco(every=10, outer=fed_adam(0.01))'),
    'fedyogi': 'sgd(0.1) | diloco(every=10, outer=fed_yogi(0.01))',
    'fedadagrad': 'sgd(0.1) | diloco(every=10, outer=fed_adagrad(0.01))',
    **dict.fromkeys(('postlocalsgd', 'postlocalsgdoptimizer'), 'post_local(optimizer=sgd(0.1), start=100, every=10)'),
    **dict.fromkeys(('bmuf', 'slowmomentum'), 'sgd(0.1) | slowmo(every=10, beta=0.5)'),
    **dict.fromkeys(('elasticaveraging', 'elasticsgd', 'elasticaveragingsgd'), 'sgd(0.1) | easgd(every=10)'),
    **dict.fromkeys(('stalesgd', 'delayedsgd'), _DELAYED),
    **dict.fromkeys(('asgd', 'asyncsgd', 'asynchronous'), 'k_async(k=1) | sgd(0.1)'),
    **dict.fromkeys(('bsp', 'backupworkers'), 'k_sync(k=4) | sgd(0.1)'),
    **dict.fromkeys(('rennala', 'rennalasgd'), 'k_batch_sync(k=4) | sgd(0.1)'),
    'fedbuff': 'k_batch_async(k=4) | sgd(0.1)',
    'stalesynchronousparallel': 'ssp(bound=3) | sgd(0.1)',
    **dict.fromkeys(('dpsgd', 'decentralizedsgd', 'decentralisedsgd', 'gossipsgd', 'diffusion'), 'sgd(0.1) | gossip()'),
    **dict.fromkeys(('diging', 'gradienttracking', 'gt', 'dsgt'), _TRACKING),
    **dict.fromkeys(('chocosgd', 'chocogossip'), 'sgd(0.1) | choco(codec=top_k(k=8), gamma=0.2)'),
    'deepsqueeze': 'sgd(0.1) | gossip(codec=int8(), feedback=True)',
    **dict.fromkeys(('sgp', 'pushsum', 'stochasticgradientpush'), 'sgd(0.1) | push_sum()'),
    **dict.fromkeys(('d2', 'exactdiffusion', 'nids'), 'sgd(0.1) | exact_diffusion()'),
    **dict.fromkeys(('qgdsgdm', 'qgm', 'quasiglobalmomentum'), 'sgd(0.1) | quasi_global() | gossip()'),
    **dict.fromkeys(('admm', 'consensusadmm'), 'fed_admm(every=10, optimizer=sgd(0.1))'),
}
"""Lines for algorithms that jaxdist has under another name, by their name in lower case without `_`."""

KEYWORDS = {
    **dict.fromkeys(
        ('h', 'k', 'tau', 'period', 'interval', 'syncevery', 'localsteps', 'innersteps'), ('every', 'steps')
    ),
    **dict.fromkeys(('lr', 'eta', 'alpha', 'stepsize'), ('learning_rate', 'lr')),
    **dict.fromkeys(('compressor', 'compression', 'compress', 'quantizer'), ('codec', 'push')),
    **dict.fromkeys(('ef', 'errorfeedback', 'residual'), ('feedback',)),
    **dict.fromkeys(('outeroptimizer', 'outeropt', 'serveroptimizer', 'outerlr'), ('outer',)),
    **dict.fromkeys(('inneroptimizer', 'inneropt', 'inner', 'opt', 'optim'), ('optimizer',)),
    **dict.fromkeys(('delay', 'staleness', 'lag'), ('steps',)),
    **dict.fromkeys(('wd', 'l2'), ('weight_decay',)),
    'beta1': ('b1',),
    'beta2': ('b2',),
    'epsilon': ('eps',),
    'beta': ('momentum', 'decay'),
    'blocksize': ('block',),
    **dict.fromkeys(('topology', 'mixing', 'neighbours', 'neighbors'), ('graph',)),
    'groupsize': ('block',),
}
"""Our names of arguments by the field's, in lower case without `_`."""


def line_hint(name: str, candidates: Iterable[str]) -> str:
    """The end of a message about an unknown name: the line for that algorithm, or similar names.

    >>> line_hint('FedAvg', [])
    ": write 'sgd(0.1) | average(every=10)'"
    """
    line = LINES.get(_plain(name))
    return f': write {line!r}' if line else did_you_mean(name, candidates)


def keyword_hint(name: str, parameters: Iterable[str]) -> str:
    """The end of a message about an unknown keyword: our name for it, or similar ones.

    >>> keyword_hint('H', ['every', 'outer', 'exchange'])
    ": did you mean 'every'?"
    """
    known = [other for other in KEYWORDS.get(_plain(name), ()) if other in set(parameters)]
    return f': did you mean {known[0]!r}?' if known else did_you_mean(name, parameters)


def settings_for(name: str, line: str) -> list[str]:
    """What `--set` is given to change this argument in the calls of a line: `adamw.learning_rate`.

    >>> settings_for('lr', 'mean() | adamw(1e-3)')
    ['adamw.learning_rate']
    """
    try:
        body = ast.parse(line, mode='eval').body
    except SyntaxError:  # the line's own error says what is wrong
        return []
    calls = [Call(node) for node in ast.walk(body) if isinstance(node, ast.Call) and find(dotted(node.func))]
    ours = {name.replace('-', '_'), *KEYWORDS.get(_plain(name.replace('-', '_')), ())}
    return [f'{call.name}.{keyword}' for call in calls for keyword in call.parameters if keyword in ours]


def _plain(name: str) -> str:
    return name.rpartition('.')[2].lower().replace('_', '')
