"""Any codec goes with any algorithm that averages, by any exchange: bytes by the formula, and nothing lost."""

import re

import pytest

from jaxdist import laws, line, registry, workers
from jaxdist.codecs.average import bytes_sent
from jaxdist.codecs.exchange import EXCHANGES

CODECS = [next(iter(entry.examples)) for entry in registry.codecs().values()]
SLOW = pytest.mark.slow


def feeds_back(codec: str) -> bool:
    """QSGD's error is larger than the vector: fed back, it grows without end."""
    return not codec.startswith('qsgd')


def judged(text: str, count: int, *claims: laws.Law) -> None:
    """Holds the laws, and that the bytes of the trace are the compiled program's."""
    metered = next(law for law in laws.universal() if law.name == 'metered as compiled')
    trial = laws.Trial(line.build(text), count)
    broken = [verdict for law in (metered, *claims) if (verdict := laws.judge(law, trial)).problem]
    assert not broken, broken


@pytest.mark.parametrize('exchange', [*EXCHANGES, None])
@pytest.mark.parametrize('codec', [pytest.param(c, marks=[SLOW] * (c[:4] not in ('int4', 'top_'))) for c in CODECS])
def test_mean(codec: str, exchange: str | None) -> None:
    feedback = feeds_back(codec)
    nothing_lost = [laws.loses_nothing(lambda state: state.memory.residual)] if feedback else []
    sends = laws.sends(bytes_sent(line.build_codec(codec), exchange))
    text = f'mean(codec={codec}, feedback={feedback}, exchange={exchange!r})'
    judged(text, 4, laws.agrees(), *nothing_lost, sends)


@SLOW
@pytest.mark.parametrize('exchange', EXCHANGES)
@pytest.mark.parametrize('codec', CODECS)
def test_average(codec: str, exchange: str) -> None:
    feedback = feeds_back(codec)
    conserves = [laws.conserves_mean(lambda state: state.memory.residual)] if feedback else []
    sends = laws.sends(bytes_sent(line.build_codec(codec), exchange), every=2)
    judged(f'average(every=2, codec={codec}, feedback={feedback}, exchange={exchange!r})', 3, *conserves, sends)


@pytest.mark.parametrize('count', [2, 8])
def test_bytes_at_other_worker_counts(count: int) -> None:
    for exchange in EXCHANGES:
        judged(
            f'mean(codec=int4(), exchange={exchange!r})',
            count,
            laws.sends(bytes_sent(line.build_codec('int4()'), exchange)),
        )


@pytest.mark.parametrize(
    'text, problem',
    [
        ("mean(exchange='gather')", 'needs a codec'),
        ("mean(codec=int8(), exchange='pigeon')", "exchange='pigeon' must be one of"),
        ('mean(codec=int4(block=7))', 'must be a multiple of 2'),
        ('mean(codec=sign(block=12))', 'must be a multiple of 8'),
        ('mean(codec=top_k(k=0))', 'k=0 must be 1 to the block'),
        ('mean(codec=top_k(k=5, block=4))', 'k=5 must be 1 to the block'),
        ('mean(codec=top_k(k=1, block=100000))', 'block=100000 must be 1 to 65536'),
        ("mean(codec=fp8(format='e3m4'))", "must be 'e4m3' or 'e5m2'"),
        ('mean(codec=qsgd(bits=3))', 'bits=3 must be 2, 4 or 8'),
        ("mean(codec=int4(rounding='up'))", "must be 'nearest' or 'stochastic'"),
        ('mean(codec=ternary(clip=0.0))', 'must be above 0'),
    ],
)
def test_bad_parameters(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        laws.Trial(line.build(text), 2).program(workers.simulated(2))
