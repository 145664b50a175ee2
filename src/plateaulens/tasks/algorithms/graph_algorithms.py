"""Graph algorithms on adjacency matrices, over a whole batch at once.

Row u of a matrix has the nodes that the edges of u lead to; that of an undirected graph is symmetric. Answers are
those of SageMath's implementations, on which the data of arXiv 2505.03997 rest.
"""

from itertools import combinations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Graphs = Bool[Tensor, "batch node node"]
Nodes = Int[Tensor, "batch node"]


def distances(graphs: Graphs) -> Int[Tensor, "batch node node"]:
    """Edges between any two nodes; as many as there are nodes where there is no path."""
    nodes = graphs.shape[-1]
    step = (graphs | torch.eye(nodes, dtype=torch.bool, device=graphs.device)).float()
    within = torch.eye(nodes, device=graphs.device).expand_as(step)
    total = torch.zeros_like(graphs, dtype=torch.long)
    for _ in range(nodes):
        total += within == 0
        within = (within @ step).clamp(max=1)
    return total


def edge_list(graphs: Graphs) -> Int[Tensor, "batch token"]:
    """Edges in the order of their two nodes, as tail and head (the smaller first if undirected); -1 pads."""
    nodes = graphs.shape[-1]
    u, v = torch.triu_indices(nodes, nodes, 1, device=graphs.device)
    forward, backward = graphs[:, u, v], graphs[:, v, u]
    ends = torch.where(forward[..., None], torch.stack([u, v], 1), torch.stack([v, u], 1))
    missing = ~(forward | backward)
    first = missing.int().argsort(dim=1, stable=True)[..., None].expand_as(ends)
    return ends.masked_fill(missing[..., None], -1).gather(1, first).flatten(1)


def search(graphs: Graphs, start: Int[Tensor, " batch"], *, newest: bool, again: bool) -> Nodes:
    """Nodes in the order of their visits; each visit pushes the neighbors in ascending order.

    A queue or stack need not be kept: when each node was pushed is enough to say which comes next.

    Args:
        graphs: connected.
        start: visited first.
        newest: of those pushed visit the newest (a stack), else the oldest (a queue).
        again: push also those that wait already; in a stack they move to the top.
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
    """The shortest path that Sage's search from both ends finds; -1 pads.

    The two sides take turns at discovering a whole level, the first end's begins, and the first node known to both
    is on the path. So that node lies in the middle, and comes first in the breadth-first order of the side
    which finds it; either half of the path goes back to whatever node discovered the one at hand.
    """
    nodes = graphs.shape[-1]
    far = distances(graphs).take_along_dim(ends[..., None], 1)  # [batch, end, node]
    length = far[:, 0].take_along_dim(ends[:, 1:], 1)
    found = torch.stack([search(graphs, end, newest=False, again=False).argsort(1) for end in ends.unbind(1)], 1)
    half = length // 2
    middle = (far[:, 0] == length - half) & (far[:, 1] == half)
    met = torch.where(length % 2 == 1, found[:, 0], found[:, 1]).masked_fill(~middle, nodes).argmin(1, keepdim=True)
    known = graphs | torch.eye(nodes, dtype=torch.bool, device=graphs.device)  # an end leads to itself
    path = torch.full_like(found[:, 0], -1)
    for side in (0, 1):
        back = found[:, side, None].where(known, nodes).argmin(-1)
        node = met
        for _ in range(nodes // 2 + 1):
            place = far[:, side].gather(1, node)
            path.scatter_(1, length - place if side else place, node)
            node = back.gather(1, node)
    return path


def topological_order(graphs: Graphs) -> Nodes:
    """The order that Sage's `is_directed_acyclic` gives as its certificate: finished last, first in the order.

    Its depth-first search begins at the first node left and goes on to the last of those left that an edge leads to.
    Whatever has been entered is still left, so that the same walk from the beginning ends at the node finished next.
    """
    nodes = graphs.shape[-1]
    name = torch.arange(nodes, device=graphs.device)
    left = torch.ones_like(graphs[:, 0])
    order = []
    for _ in range(nodes):
        onward = name.where(graphs & left[:, None], -1).amax(-1)
        onward = onward.where(onward >= 0, name)
        for _ in range(nodes.bit_length()):  # each time twice as far
            onward = onward.gather(1, onward)
        order.append(onward.gather(1, left.int().argmax(1, keepdim=True)))
        left = left.scatter(1, order[-1], False)
    return torch.cat(order[::-1], 1)


def spanning_tree(graphs: Graphs) -> Graphs:
    """The edges, each one way, that join two components when taken in the order of their nodes."""
    tree, nodes = torch.zeros_like(graphs), graphs.shape[-1]
    part = torch.arange(nodes, device=graphs.device).expand_as(graphs[:, 0])
    for u, v in combinations(range(nodes), 2):
        tree[:, u, v] = graphs[:, u, v] & (part[:, u] != part[:, v])
        joined = tree[:, u, v, None] & (part == part[:, v, None])
        part = torch.where(joined, part[:, u, None], part)
    return tree
