"""jaxdist: distributed algorithms as optax transformations that run inside a worker axis of a JAX mesh."""

from jaxdist import algorithms as algorithms
from jaxdist import codecs as codecs
from jaxdist import laws as laws
from jaxdist.algorithms.average import average as average
from jaxdist.algorithms.delay import delay as delay
from jaxdist.algorithms.mean import mean as mean
from jaxdist.codecs.int8 import int8 as int8
