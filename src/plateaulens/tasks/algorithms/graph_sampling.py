"""Random connected graphs as adjacency matrices: labeled ones, or true isomorphism classes."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from math import factorial, prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.tasks.algorithms.graph_algorithms import Graphs, distances
from plateaulens.tasks.base import permutations


def connected_graphs(n: int, nodes: int, rng: torch.Generator, classes: bool = False) -> Graphs:
    """`n` connected graphs: every labeled one equally likely, or with `classes` every isomorphism class."""
    graphs = random_graphs(n, nodes, rng, classes)
    while (apart := distances(graphs)[:, 0].amax(1) == nodes).any():
        graphs[apart] = random_graphs(int(apart.sum()), nodes, rng, classes)
    return graphs


def random_graphs(n: int, nodes: int, rng: torch.Generator, classes: bool) -> Graphs:
    """`n` graphs, connected or not: every edge with probability 1/2, or every isomorphism class equally likely.

    The latter is Dixon & Wilf's algorithm (J. Algorithms 4, 1983), which needs no list of the classes: with 11 nodes
    there are 1,018,997,864. A permutation is drawn with the chance that it has among all pairs of a permutation
    and a graph that it leaves as it is, then such a graph. A class of m graphs is in nodes! of these pairs whatever
    its m, because each of its graphs has nodes!/m symmetries.
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
    """For every kind of permutation of the nodes, by its cycle lengths: what is left as it is.

    Returns:
        The graphs it leaves as they are, summed over the permutations of the kind and divided by nodes!;
        for one of them, the first edge of the orbit of each edge.
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


def partitions(total: int, most: int) -> Iterator[tuple[int, ...]]:
    """The ways to write `total` as a sum of numbers up to `most`, largest first."""
    if total == 0:
        yield ()
    for part in range(min(total, most), 0, -1):
        yield from ((part, *rest) for rest in partitions(total - part, part))
