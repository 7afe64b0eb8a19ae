"""Small flax models, as pure functions of plain pytrees."""

from jaxdist.models.convnet import ConvNet
from jaxdist.models.flax_modules import from_linen, from_nnx
from jaxdist.models.mixture_transformer import MixtureTransformer
from jaxdist.models.parts import from_parts
from jaxdist.models.perceptron import Perceptron
from jaxdist.models.scoring import misfit, model, score
from jaxdist.models.transformer import Transformer

Architecture = Transformer | MixtureTransformer | ConvNet | Perceptron
"""The settings of a model; `.build(task)` returns the model."""

__all__ = [
    'Architecture',
    'ConvNet',
    'MixtureTransformer',
    'Perceptron',
    'Transformer',
    'from_linen',
    'from_nnx',
    'from_parts',
    'misfit',
    'model',
    'score',
]
