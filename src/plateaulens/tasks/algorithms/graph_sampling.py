"""Random connected graphs as adjacency matrices, uniform over labeled graphs or over isomorphism classes."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from math import factorial, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.tasks.algorithms.graph_algorithms import Graphs, distances
from plateaulens.tasks.base import permutations


def connected_graphs(n: int, nodes: int, rng: torch.Generator, *, classes: bool = False) -> Graphs:
    """`n` connected graphs, uniform over labeled graphs, or with `classes` over isomorphism classes."""
    graphs = random_graphs(n, nodes, rng, classes=classes)
    while (unconnected := distances(graphs)[:, 0].amax(1) == nodes).any():
        graphs[unconnected] = random_graphs(int(unconnected.sum()), nodes, rng, classes=classes)
    return graphs


def random_graphs(n: int, nodes: int, rng: torch.Generator, *, classes: bool) -> Graphs:
    """`n` graphs, connected or not: each edge with probability 1/2, or uniform over isomorphism classes.

    Classes are sampled by the algorithm of Dixon and Wilf (J. Algorithms 4, 1983), which needs no list of the classes
    (with 11 nodes there are 1,018,997,864): a permutation is drawn with its probability among all pairs of a
    permutation and a graph that it leaves unchanged, then such a graph. A class of m graphs is in nodes! of these pairs
    for any m, because each of its graphs has nodes!/m symmetries.
    """
    u, v = torch.triu_indices(nodes, nodes, 1, device=rng.device)
    edges = torch.randint(2, (n, len(u)), generator=rng, device=rng.device)
    if classes:
        weights, orbits = (x.to(rng.device) for x in symmetries(nodes))
        edges = edges.gather(1, orbits[torch.multinomial(weights, n, replacement=True, generator=rng)])
    graphs = torch.zeros(n, nodes, nodes, dtype=torch.bool, device=rng.device)
    graphs[:, u, v] = graphs[:, v, u] = edges.bool()
    if not classes:
        return graphs
    rows, names = torch.arange(n, device=rng.device)[:, None, None], permutations(n, nodes, rng)
    return graphs[rows, names[:, :, None], names[:, None, :]]


@lru_cache
def symmetries(nodes: int) -> tuple[Float[Tensor, " kind"], Int[Tensor, "kind edge"]]:
    """The graphs that each kind of permutation of the nodes, by its cycle lengths, leaves unchanged.

    Returns:
        The number of graphs left unchanged, summed over the permutations of the kind and divided by nodes! [kind]; and
        for one permutation of the kind the first edge of the orbit of each edge [kind edge].
    """
    kinds = list(partitions(nodes, nodes))
    u, v = torch.triu_indices(nodes, nodes, 1)
    edge = torch.zeros(nodes, nodes, dtype=torch.long)
    edge[u, v] = edge[v, u] = torch.arange(len(u))
    turn = torch.tensor([[sum(k[:i]) + (j + 1) % c for i, c in enumerate(k) for j in range(c)] for k in kinds])
    image = edge[turn[:, u], turn[:, v]]
    orbits = torch.arange(len(u)).expand_as(image)
    for _ in range((nodes * nodes).bit_length()):  # after k rounds the first of 2^k images; an orbit has fewer
        orbits, image = orbits.minimum(orbits.gather(1, image)), image.gather(1, image)
    free = (orbits == torch.arange(len(u))).sum(1).double()
    same = [prod(c**many * factorial(many) for c, many in Counter(k).items()) for k in kinds]
    return 2**free / torch.tensor(same, dtype=torch.double), orbits


def partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of numbers up to `largest`, in descending order."""
    if total == 0:
        yield ()
    for part in range(min(total, largest), 0, -1):
        yield from ((part, *rest) for rest in partitions(total - part, part))
