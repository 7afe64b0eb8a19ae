"""Reference implementations in NumPy of gossip: graphs as mixing matrices, and rules of decentralised training.

A graph is a list of mixing matrices M [W, W], taken in turn, one for each communication round; M[i, j] is the weight
with which worker i takes the message of j. Rules are transformations as in `numpy_training`. Rules that the reference
notes from memory name in a comment the identity that they were checked by; `test_numpy_gossip.py` has it.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
from numpy_local import Sent
from numpy_training import Array

Edges = Iterable[tuple[int, int]]


# Graphs.


def uniform(neighbours: Sequence[set[int]]) -> Array:
    """Equal weights for each worker and those that it hears; `neighbours` may contain the worker itself."""
    matrix = np.zeros((len(neighbours), len(neighbours)))
    for i, others in enumerate(neighbours):
        heard = others | {i}
        for j in heard:
            matrix[i, j] = 1 / len(heard)
    return matrix


def ring(workers: int) -> list[Array]:
    """Both neighbours, which are one if W = 2."""
    return [uniform([{(i - 1) % workers, (i + 1) % workers} for i in range(workers)])]


def torus(rows: int, columns: int) -> list[Array]:
    """Worker r * columns + c at row r and column c hears the next ones in its row and in its column."""
    neighbours = []
    for r, c in np.ndindex(rows, columns):
        in_column = {(r + d) % rows * columns + c for d in (-1, 1)}
        neighbours.append(in_column | {r * columns + (c + d) % columns for d in (-1, 1)})
    return [uniform(neighbours)]


def hops(workers: int) -> list[int]:
    """1, 2, 4, ... below the number of workers."""
    return [2**k for k in range((workers - 1).bit_length())]


def hypercube(workers: int) -> list[Array]:
    """W = 2^k; worker i hears those whose number differs from i in one bit."""
    if workers & (workers - 1):
        raise ValueError(f'{workers} workers, has to be a power of two')
    return [uniform([{i ^ hop for hop in hops(workers)} for i in range(workers)])]


def exponential(workers: int) -> list[Array]:
    """Worker i hears i + 1, i + 2, i + 4, ... (Ying et al. 2021, arXiv 2110.13363)."""
    return [uniform([{(i + hop) % workers for hop in hops(workers)} for i in range(workers)])]


def one_peer(workers: int) -> list[Array]:
    """The neighbours of the exponential graph one at a time, with weight 1/2: hop 1 in the first round."""
    return [uniform([{(i + hop) % workers} for i in range(workers)]) for hop in hops(workers) or [0]]


def complete(workers: int) -> list[Array]:
    """The exact mean."""
    return [np.full((workers, workers), 1 / workers)]


def metropolis(workers: int, edges: Edges) -> list[Array]:
    """An undirected graph with Metropolis weights: M_ij = 1 / (1 + max(degree_i, degree_j))."""
    linked = {frozenset(edge) for edge in edges}
    degree = [sum(i in edge for edge in linked) for i in range(workers)]
    matrix = np.zeros((workers, workers))
    for i, j in map(tuple, linked):
        matrix[i, j] = matrix[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return [matrix + np.diag(1 - matrix.sum(1))]


def star(workers: int) -> list[Array]:
    """Worker 0 is linked with all others."""
    return metropolis(workers, [(0, i) for i in range(1, workers)])


def erdos_renyi(workers: int, probability: float, rng: np.random.Generator) -> list[Array]:
    """Each pair is linked with a probability, drawn again until all workers are connected; Metropolis weights."""
    while True:
        pairs = [(i, j) for i in range(workers) for j in range(i + 1, workers)]
        graph = metropolis(workers, [pair for pair in pairs if rng.random() < probability])
        if (np.linalg.matrix_power(graph[0], workers) > 0).all():
            return graph


def matchings(
    workers: int, matching: Sequence[Sequence[tuple[int, int]]], active: Sequence[Iterable[int]], alpha: float
) -> list[Array]:
    """MATCHA (Wang et al. 2019, arXiv 1905.09435): I - alpha times the Laplacians of the matchings that are active.

    `active` lists for each round the numbers of its matchings. Checked: rows and columns sum to 1, and one matching
    with alpha = 1/2 takes the means of pairs.
    """
    graph = []
    for numbers in active:
        matrix = np.eye(workers)
        for i, j in (edge for number in numbers for edge in matching[number]):
            difference = np.eye(workers)[i] - np.eye(workers)[j]
            matrix -= alpha * np.outer(difference, difference)
        graph.append(matrix)
    return graph


def directed(workers: int, edges: Edges) -> list[Array]:
    """Edges (sender, receiver), weights 1 / (1 + outdegree) of the sender: columns sum to 1, rows need not."""
    arcs = set(edges)
    out = [sum(sender == i for sender, _ in arcs) for i in range(workers)]
    matrix = np.diag([1 / (1 + degree) for degree in out])
    for sender, receiver in arcs:
        matrix[receiver, sender] = 1 / (1 + out[sender])
    return [matrix]


def spectral_gap(graph: Sequence[Array]) -> float:
    """1 - |M - J| for M the product of a cycle and J the exact mean; of several rounds, the geometric mean."""
    product = np.eye(len(graph[0]))
    for matrix in graph:
        product = matrix @ product
    distance = float(np.linalg.norm(product - 1 / len(product), 2))
    return 1 - distance ** (1 / len(graph))


def mix(matrix: Array, vectors: Array) -> Array:
    """Each worker's weighted sum of the vectors [W, n] that it hears."""
    mixed = np.zeros_like(vectors)
    for i, weights in enumerate(matrix):
        for j, weight in enumerate(weights):
            if weight:
                mixed[i] += weight * vectors[j]
    return mixed


# Transformations.


class Gossip:
    """D-PSGD, in a round every `every` steps: M (x + u), or with `adapt_first` False M x + u (arXiv 1705.09056)."""

    def __init__(self, graph: Sequence[Array], adapt_first: bool = True, every: int = 1) -> None:
        self.matrices, self.adapt_first, self.every = cycle(graph), adapt_first, every
        self.time = 0

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.time += 1
        if self.time % self.every:
            return values
        if self.adapt_first:
            return mix(next(self.matrices), params + values) - params
        return mix(next(self.matrices), params) + values - params


class Tracking:
    """Gradient tracking, before an optimiser and `Gossip` with `adapt_first` False (DIGing, arXiv 1607.03218).

    y(t) = M y(t - 1) + g(t) - g(t - 1), from zeros, with M the matrix that `Gossip` has at step t.
    """

    def __init__(self, graph: Sequence[Array]) -> None:
        self.matrices = cycle(graph)
        self.tracked: Array | None = None
        self.last = np.zeros(())

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        before = np.zeros_like(values) if self.tracked is None else self.tracked
        self.tracked = mix(next(self.matrices), before) + values - self.last
        self.last = values
        return self.tracked


class ExactDiffusion:
    """Exact diffusion with (I + M) / 2 (arXiv 1702.05122), or D2 with M (arXiv 1803.07068) if `lazy` is False."""

    def __init__(self, matrix: Array, lazy: bool = True) -> None:
        self.matrix = (np.eye(len(matrix)) + matrix) / 2 if lazy else matrix
        self.adapted: Array | None = None  # psi

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        last = params if self.adapted is None else self.adapted
        self.adapted = params + values
        return mix(self.matrix, self.adapted + params - last) - params


class Extra:
    """EXTRA (Shi et al. 2015, arXiv 1404.6264): x(t + 2) = (I + M) x(t + 1) - (I + M)/2 x(t) + u(t + 1) - u(t).

    Checked: x(t + 1) = M x(t) + u(t) + the sum over s < t of (M - (I + M)/2) x(s), so that a fixed point is a consensus
    in which the updates sum to zero.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.last: tuple[Array, Array] | None = None  # parameters and values

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.last is None:
            new = mix(self.matrix, params) + values
        else:
            old, old_values = self.last
            new = params + mix(self.matrix, params) - (old + mix(self.matrix, old)) / 2 + values - old_values
        self.last = params, values
        return new - params


class PushSum:
    """Stochastic gradient push (Assran et al. 2019, arXiv 1811.10792) for column-stochastic matrices.

    The parameters are z = x / w: the numerators x = w z + u and the weights w are mixed alike.
    """

    def __init__(self, graph: Sequence[Array]) -> None:
        self.matrices = cycle(graph)
        self.weights = np.ones((len(graph[0]), 1))

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        matrix = next(self.matrices)
        numerators = mix(matrix, self.weights * params + values)
        self.weights = mix(matrix, self.weights)
        return numerators / self.weights - params


class Choco:
    """CHOCO-SGD (Koloskova et al. 2019, arXiv 1902.00340): gossip over estimates that all neighbours agree on."""

    def __init__(self, graph: Sequence[Array], sent: Sent, gamma: float, every: int = 1) -> None:
        self.matrices, self.sent, self.gamma, self.every = cycle(graph), sent, gamma, every
        self.time = 0
        self.estimates: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        self.time += 1
        if self.time % self.every:
            return values
        if self.estimates is None:
            self.estimates = np.zeros_like(params)
        local = params + values
        self.estimates = self.estimates + np.array([self.sent(each) for each in local - self.estimates])
        return values + self.gamma * (mix(next(self.matrices), self.estimates) - self.estimates)


class DeepSqueeze:
    """Gossip over compressed parameters with error feedback (Tang et al. 2019, arXiv 1907.07346).

    Checked: with an exact codec it is D-PSGD over (1 - gamma) I + gamma M, and the mean moves by the mean of updates.
    """

    def __init__(self, graph: Sequence[Array], sent: Sent, gamma: float) -> None:
        self.matrices, self.sent, self.gamma = cycle(graph), sent, gamma
        self.error = np.zeros(())  # [W, n] after the first step

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        whole = params + values + self.error
        messages = np.array([self.sent(each) for each in whole])
        self.error = whole - messages
        return values + self.gamma * (mix(next(self.matrices), messages) - messages)


class QuasiGlobal:
    """Quasi-global momentum, in place of an optimiser before `Gossip` (Lin et al. 2021, arXiv 2102.04761)."""

    def __init__(self, rate: float, mu: float, beta: float) -> None:
        self.rate, self.mu, self.beta = rate, mu, beta
        self.momentum = np.zeros(())
        self.last: Array | None = None

    def __call__(self, values: Array, counts: Array, params: Array) -> Array:
        if self.last is not None:
            self.momentum = self.mu * self.momentum + (1 - self.mu) * (self.last - params) / self.rate
        self.last = params
        return -self.rate * (self.beta * self.momentum + values)


class GossipMultipliers:
    """Dual ascent on the mean over workers of the constraints h_i <= 0, by gossip over sums and multipliers.

    s = M s + h(t) - h(t - 1), from zeros, tracks the mean of h; then lambda = max(M lambda + rate s, 0).
    """

    def __init__(self, graph: Sequence[Array], rate: float, constraints: int) -> None:
        self.matrices, self.rate = cycle(graph), rate
        self.multipliers = np.zeros((len(graph[0]), constraints))
        self.sums, self.last = self.multipliers, self.multipliers

    def __call__(self, constraints: Array) -> Array:
        """The new multipliers [W, m] from each worker's h_i at its own parameters, [W, m]."""
        matrix = next(self.matrices)
        self.sums = mix(matrix, self.sums) + constraints - self.last
        self.last = constraints
        self.multipliers = np.maximum(mix(matrix, self.multipliers) + self.rate * self.sums, 0)
        return self.multipliers
