"""jaxdist: distributed algorithms as optax transformations that run inside a worker axis of a JAX mesh."""

from jaxdist import algorithms as algorithms
from jaxdist import codecs as codecs
from jaxdist import laws as laws
from jaxdist.algorithms.average import average as average
from jaxdist.algorithms.delay import delay as delay
from jaxdist.algorithms.mean import mean as mean
from jaxdist.codecs.bf16 import bf16 as bf16
from jaxdist.codecs.by_path import by_path as by_path
from jaxdist.codecs.by_size import by_size as by_size
from jaxdist.codecs.fp8 import fp8 as fp8
from jaxdist.codecs.fp16 import fp16 as fp16
from jaxdist.codecs.int2 import int2 as int2
from jaxdist.codecs.int4 import int4 as int4
from jaxdist.codecs.int8 import int8 as int8
from jaxdist.codecs.majority import majority as majority
from jaxdist.codecs.natural import natural as natural
from jaxdist.codecs.power_sgd import power_sgd as power_sgd
from jaxdist.codecs.qsgd import qsgd as qsgd
from jaxdist.codecs.random_k import random_k as random_k
from jaxdist.codecs.sign import sign as sign
from jaxdist.codecs.ternary import ternary as ternary
from jaxdist.codecs.threshold import threshold as threshold
from jaxdist.codecs.top_k import top_k as top_k
