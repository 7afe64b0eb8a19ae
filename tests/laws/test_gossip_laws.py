"""The laws of gossip are broken by lines that do not keep them."""

import pytest

from jaxdist import laws, line
from jaxdist.graphs.circulant import complete, ring
from jaxdist.laws import Law, LawBroken, Trial

BROKEN = {
    'too slow for the gap': ('gossip()', laws.brings_closer(complete()), 'workers are .* apart, and 1 steps later'),
    'never apart': ('average(every=1)', laws.brings_closer(ring()), 'with different updates are only'),
    'apart for ever': ('identity()', laws.approaches_consensus(0.5), 'after 12 steps without updates'),
    'own gradients': ('identity()', laws.follows_mean(0.5), 'updates are .* off the mean after 12 steps'),
    'another mean': ('scale(2.0)', laws.tracks_mean(), 'the mean of the updates'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_line_that_breaks_it_is_found(name: str) -> None:
    text, law, problem = BROKEN[name]
    assert isinstance(law, Law)
    with pytest.raises(LawBroken, match=problem):
        law.check(Trial(line.build(text), 8))
