"""Labels of experiments: what differs, in few words, and never the same twice."""

import dataclasses

import pytest
from run_fixtures import SMALL, small

from jaxdist.training.experiment import ConstraintSettings, Experiment, Mesh, sweep
from jaxdist.training.labels import labels

pytestmark = pytest.mark.slow


def test_labels_are_the_differences() -> None:
    assert labels([small(line) for line in ('mean() | sgd(0.1)', 'mean(codec=int8()) | sgd(0.1)')]) == [
        'mean()',
        'mean(codec=int8())',
    ]
    assert labels([SMALL]) == [SMALL.update]
    two, three = (dataclasses.replace(SMALL, mesh=Mesh(workers=n), batch=6) for n in (2, 3))
    assert labels([two, three]) == ['workers=2', 'workers=3']


def test_short_lines_are_given_in_full_if_one_has_no_difference() -> None:
    assert labels([small('sgd(0.1)'), small('mean() | sgd(0.1)')]) == ['sgd(0.1)', 'mean() | sgd(0.1)']


def test_a_setting_of_two_parts_keeps_its_full_name() -> None:
    one, other = labels([dataclasses.replace(Experiment(), model=model) for model in (SMALL.model, Experiment().model)])
    assert one == 'model.kind=Perceptron, hidden=[8]'
    assert other.startswith('model.kind=Transformer, layers=2')


def test_settings_of_equal_text_get_different_labels() -> None:
    held = [('norm(each=True, bound=1.0)',), ('norm(each=True', 'bound=1.0)')]
    experiments = [dataclasses.replace(SMALL, constraints=ConstraintSettings(hold=hold)) for hold in held]
    assert len(set(labels(experiments))) == 2


@pytest.mark.parametrize('config', ['local_text', 'damping', 'norm', 'delay_images', 'codecs_images'])
def test_the_labels_of_the_configs_sweeps_are_unique_and_short(config: str, pytestconfig: pytest.Config) -> None:
    texts = labels([each for _, each in sweep(pytestconfig.rootpath / 'configs' / f'{config}.py')])
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) < 90
