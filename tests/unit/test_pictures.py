"""A comparison's pictures: each is drawn where it shows something, and an old one that shows nothing is removed."""

import pytest
from report_fixtures import line, run, score

from jaxdist.training.pictures import KINDS, draw_pictures

pytestmark = pytest.mark.slow

BASELINE = ('entropy', 4.0)
EQUAL = [line('a', 1e6, 2.0), line('b', 1e6, 1.9)]
DIFFERENT = [line('a', 1e6, 2.0), line('b', 2e6, 1.9)]
ONE_EVALUATION = {'a': [run([2.0])], 'b': [run([1.9])]}
CURVES = {'a': [run([3.0, 2.0])], 'b': [run([3.0, 1.9])]}


@pytest.mark.parametrize(
    'summaries, records, names',
    [
        (EQUAL, ONE_EVALUATION, ['ranking.png']),
        (DIFFERENT, ONE_EVALUATION, ['ranking.png', 'frontier.png']),
        (EQUAL, CURVES, ['ranking.png', 'curves.png']),
        (DIFFERENT, CURVES, ['ranking.png', 'frontier.png', 'curves.png']),
        (DIFFERENT[:1], ONE_EVALUATION, ['ranking.png']),
        ([line('a', 1e6, None)], {}, []),
    ],
)
def test_what_shows_something_is_drawn(tmp_path, summaries, records, names):
    for kind in KINDS:
        (tmp_path / f'{kind}.png').write_text('of an earlier report')
    pictures = draw_pictures(summaries, records, BASELINE, tmp_path)
    assert [picture.path.name for picture in pictures] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in tmp_path.iterdir())
    texts = [text for picture in pictures for text in (picture.caption, picture.alternative)]
    assert len(set(texts)) == 2 * len(names)


def test_curves_whose_records_are_lost_stay(tmp_path):
    (tmp_path / 'curves.png').write_text('of an earlier report')
    pictures = draw_pictures(EQUAL, None, BASELINE, tmp_path)
    assert [picture.path.name for picture in pictures] == ['ranking.png', 'curves.png']
    assert (tmp_path / 'curves.png').read_text() == 'of an earlier report'


def test_every_metric_has_pictures(tmp_path):
    (tmp_path / 'frontier-an_old_one.png').write_text('of an earlier report')
    both = [each._replace(metrics={**each.metrics, 'macro F1': score(0.5, better='higher')}) for each in DIFFERENT]
    records = {'a': [[{'step': s, 'held_out': {'loss': 2.0, 'macro F1': 0.5}} for s in (1, 2)]]}
    names = [picture.path.name for picture in draw_pictures(both, records, BASELINE, tmp_path)]
    assert names[:3] == ['ranking.png', 'frontier.png', 'curves.png']
    assert names[3:] == ['ranking-macro_F1.png', 'frontier-macro_F1.png', 'curves-macro_F1.png']
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
