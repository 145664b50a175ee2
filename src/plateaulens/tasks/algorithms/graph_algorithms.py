"""Graph algorithms on batches of adjacency matrices.

Row u of a matrix marks the nodes that edges from u lead to; undirected graphs have symmetric matrices. Results equal
those of SageMath's implementations, which generated the data of arXiv 2505.03997.
"""

from itertools import combinations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Graphs = Bool[Tensor, "batch node node"]
Nodes = Int[Tensor, "batch node"]


def distances(graphs: Graphs) -> Int[Tensor, "batch node node"]:
    """Number of edges on a shortest path between any two nodes; the number of nodes where there is no path."""
    nodes = graphs.shape[-1]
    step = (graphs | torch.eye(nodes, dtype=torch.bool, device=graphs.device)).float()
    within = torch.eye(nodes, device=graphs.device).expand_as(step)
    total = torch.zeros_like(graphs, dtype=torch.long)
    for _ in range(nodes):
        total += within == 0
        within = (within @ step).clamp(max=1)
    return total


def edge_list(graphs: Graphs) -> Int[Tensor, "batch token"]:
    """Edges as pairs of tail and head (undirected: the smaller node first) in lexicographic order, padded with -1."""
    nodes = graphs.shape[-1]
    u, v = torch.triu_indices(nodes, nodes, 1, device=graphs.device)
    forward, backward = graphs[:, u, v], graphs[:, v, u]
    ends = torch.where(forward[..., None], torch.stack([u, v], 1), torch.stack([v, u], 1))
    missing = ~(forward | backward)
    first = missing.int().argsort(dim=1, stable=True)[..., None].expand_as(ends)
    return ends.masked_fill(missing[..., None], -1).gather(1, first).flatten(1)


def search(graphs: Graphs, start: Int[Tensor, " batch"], *, newest: bool, again: bool) -> Nodes:
    """Nodes in the order in which a breadth-first or depth-first search visits them.

    Each visit pushes the neighbors in ascending order. No queue or stack is kept: the time at which each node was
    pushed determines which one is next.

    Args:
        graphs: Connected graphs.
        start: Node visited first.
        newest: Visit the node pushed last (a stack); otherwise the one pushed first (a queue).
        again: Push nodes again that are waiting already; in a stack they move to the top.
    """
    nodes, never = graphs.shape[-1], -(graphs.shape[-1] ** 3)
    name = torch.arange(nodes, device=graphs.device)
    rank = torch.full_like(graphs[:, 0], never, dtype=torch.long).scatter_(1, start[:, None], 0)
    done = torch.zeros_like(graphs[:, 0])
    order = []
    for visit in range(1, nodes + 1):
        order.append(rank.masked_fill(done, never).argmax(1, keepdim=True))
        done = done.scatter(1, order[-1], True)
        pushed = graphs.take_along_dim(order[-1][..., None], 1)[:, 0]
        time = visit * nodes + name
        rank = torch.where(pushed if again else pushed & (rank == never), time if newest else -time, rank)
    return torch.cat(order, 1)


def shortest_path(graphs: Graphs, ends: Int[Tensor, "batch 2"]) -> Nodes:
    """The shortest path that Sage's bidirectional search finds, padded with -1.

    The two sides take turns at discovering a whole level, the first end's side first, and the first node known to both
    is on the path. That node is in the middle of the path and comes first in the breadth-first order of the side that
    finds it; each half of the path leads back through the nodes that discovered one another.
    """
    nodes = graphs.shape[-1]
    far = distances(graphs).take_along_dim(ends[..., None], 1)  # [batch, end, node]
    length = far[:, 0].take_along_dim(ends[:, 1:], 1)
    visit_rank = torch.stack([search(graphs, end, newest=False, again=False).argsort(1) for end in ends.unbind(1)], 1)
    half = length // 2
    middle = (far[:, 0] == length - half) & (far[:, 1] == half)
    finder_rank = torch.where(length % 2 == 1, visit_rank[:, 0], visit_rank[:, 1])
    met = finder_rank.masked_fill(~middle, nodes).argmin(1, keepdim=True)
    reachable = graphs | torch.eye(nodes, dtype=torch.bool, device=graphs.device)  # an end leads to itself
    path = torch.full_like(visit_rank[:, 0], -1)
    for side in (0, 1):
        back = visit_rank[:, side, None].where(reachable, nodes).argmin(-1)
        node = met
        for _ in range(nodes // 2 + 1):
            place = far[:, side].gather(1, node)
            path.scatter_(1, length - place if side else place, node)
            node = back.gather(1, node)
    return path


def topological_order(graphs: Graphs) -> Nodes:
    """The topological order that Sage's `is_directed_acyclic` returns as its certificate.

    Its depth-first search begins at the first unfinished node and goes on to the last unfinished node that an edge
    leads to; nodes come in the reverse order of finishing. Repeating the walk from the beginning ends at the node
    finished next.
    """
    nodes = graphs.shape[-1]
    name = torch.arange(nodes, device=graphs.device)
    unfinished = torch.ones_like(graphs[:, 0])
    order = []
    for _ in range(nodes):
        onward = name.where(graphs & unfinished[:, None], -1).amax(-1)
        onward = onward.where(onward >= 0, name)
        for _ in range(nodes.bit_length()):  # pointer doubling: each round goes twice as far
            onward = onward.gather(1, onward)
        order.append(onward.gather(1, unfinished.int().argmax(1, keepdim=True)))
        unfinished = unfinished.scatter(1, order[-1], False)
    return torch.cat(order[::-1], 1)


def spanning_tree(graphs: Graphs) -> Graphs:
    """Edges, each in one direction, that join two components when taken in lexicographic order (Kruskal)."""
    tree, nodes = torch.zeros_like(graphs), graphs.shape[-1]
    part = torch.arange(nodes, device=graphs.device).expand_as(graphs[:, 0])
    for u, v in combinations(range(nodes), 2):
        tree[:, u, v] = graphs[:, u, v] & (part[:, u] != part[:, v])
        joined = tree[:, u, v, None] & (part == part[:, v, None])
        part = torch.where(joined, part[:, u, None], part)
    return tree
