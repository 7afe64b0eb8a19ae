"""Small flax models as pure functions on plain pytrees."""

from jaxdist.models.convnet import ConvNet
from jaxdist.models.perceptron import Perceptron
from jaxdist.models.scoring import misfit, model, score
from jaxdist.models.transformer import Transformer

Architecture = Transformer | ConvNet | Perceptron
"""The settings of a model; `.build(task)` makes it."""

__all__ = ['Architecture', 'ConvNet', 'Perceptron', 'Transformer', 'misfit', 'model', 'score']
