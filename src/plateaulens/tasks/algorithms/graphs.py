"""Graph algorithms as sequences (arXiv 2505.03997): traversals, shortest path, topological sort, spanning tree.

A graph is written as its edges, each a pair of letters, in lexicographic order. Of several valid answers the one of the
reference code is given.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.algorithms.graph_algorithms import (
    Graphs,
    Nodes,
    edge_list,
    search,
    shortest_path,
    spanning_tree,
    topological_order,
)
from plateaulens.tasks.algorithms.graph_sampling import connected_graphs
from plateaulens.tasks.algorithms.string_task import StringTask
from plateaulens.tasks.base import Feature, check, generator, permutations


@dataclass(frozen=True, kw_only=True)
class GraphTask(StringTask):
    """Base of the graph tasks. A subclass defines `named`, `spare` and `solve`.

    The paper draws isomorphism classes without replacement and names their nodes at random. Labeled graphs, the
    default, are similar: with 11 nodes both kinds have 27.6 edges on average.

    Args:
        nodes: Number of nodes of each graph, 2 to 26.
        classes: Sample uniformly over isomorphism classes of connected graphs, as in the paper, instead of over labeled
            graphs.
        answer_only: Exclude `=` from the loss and from decoding.

    Raises:
        ValueError: unless there are 2 to 26 nodes.
    """

    nodes: int = 11
    classes: bool = False
    symbols = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # pyright: ignore[reportAssignmentType]  # a constant property
    named: ClassVar[int] = 0  # number of nodes written before the edges
    directed: ClassVar[bool] = False
    spare: ClassVar[int] = 0  # tokens by which the paper's context is longer than any example

    def __post_init__(self) -> None:
        check(2 <= self.nodes <= 26, f"{type(self).__name__} needs 2 to 26 nodes, got nodes={self.nodes}")

    @property
    def n_answer(self) -> int:
        return self.nodes

    @property
    def n_ctx(self) -> int:
        return self.named + self.nodes * (self.nodes - 1) + self.n_answer + 2 + self.spare

    def loss_floor(self) -> float:
        """Zero: the answer follows from the input, and `=` is certain wherever it is scored.

        The end of the edges cannot be predicted, but no other target among them is scored: a model that predicts `=`
        after each edge is right wherever the loss counts it.
        """
        return 0.0

    def published_chance(self) -> float:
        """Chance level of the released code, ln 27."""
        return log(27)

    def draw(self, n: int, rng: torch.Generator) -> Graphs:
        """Graphs as adjacency matrices; in a directed graph, row u marks the heads of the edges from u."""
        return connected_graphs(n, self.nodes, rng, classes=self.classes)

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Int[Tensor, "batch out"]:
        """The true answers; -1 where an example has fewer tokens."""
        raise NotImplementedError

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        rng = generator(seed, device)
        graphs, named = self.draw(n, rng), permutations(n, self.nodes, rng)[:, : self.named]
        return self.assemble(torch.cat([named, edge_list(graphs)], 1), self.solve(graphs, named))

    def read(self, batch: Batch, *, released: bool = False) -> tuple[Graphs, Nodes, Nodes]:
        """Parse a batch.

        Args:
            batch: Batch of this task.
            released: Use the positions of the ablations in the released code, which takes the position of `=` in the
                first example for its position in all.

        Returns:
            The graphs [batch node node], the nodes of each answer [batch node] and their positions [batch node]; -1 for
            no node.
        """
        positions = batch.answer_positions[:, -self.n_answer - 1 :]  # of `=` and of the nodes
        equals, at = positions[:, :1], positions[:, 1:]
        order = batch.tokens.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1)
        edges = batch.tokens[:, self.named :][:, : self.nodes * (self.nodes - 1)].unflatten(1, (-1, 2))
        written = torch.arange(self.named, self.named + 2 * edges.shape[1], 2, device=at.device) < equals
        no_edge = self.nodes**2  # an extra entry, which is dropped below
        entry = torch.where(written, edges[..., 0] * self.nodes + edges[..., 1], no_edge)
        graphs = torch.zeros(len(batch), no_edge + 1, dtype=torch.bool, device=at.device)
        graphs = graphs.scatter(1, entry, True)[:, :-1].unflatten(1, (self.nodes, self.nodes))
        if released:
            at = torch.where(at < 0, -1, equals[0] + 1 + torch.arange(at.shape[1], device=at.device))
        return (graphs if self.directed else graphs | graphs.mT), order, at


@dataclass(frozen=True, kw_only=True)
class Traversal(GraphTask):
    """The prompt is a start node and the edges; the answer is every node in the order of the visits."""

    named = 1

    def published_chance(self) -> float:
        """Chance level of the released code: ln 26 for n of n+2 targets."""
        return self.nodes / (self.nodes + 2) * log(26)


@dataclass(frozen=True, kw_only=True)
class BreadthFirstSearch(Traversal):
    """The nodes in the order of a breadth-first search: a queue, neighbors in ascending order.

    >>> print(BreadthFirstSearch(nodes=5).example(seed=1))
    prompt  DABACBCBDBECDCE
    answer  =DBCAE<EOS>
    """

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Nodes:
        return search(graphs, named[:, 0], newest=False, again=False)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`queue`: the waiting nodes after each visit, read at the visited node; `adjacency_list`: its neighbors."""
        graphs, order, at = self.read(batch, released=released)
        return {
            "queue": Feature(waiting_nodes(graphs, order), at[:, :-1], "labels", "quiet"),
            "adjacency_list": Feature(neighbors(graphs, order), at, "labels", "loud"),
        }


@dataclass(frozen=True, kw_only=True)
class DepthFirstSearch(Traversal):
    """The nodes in the order of a depth-first search: a stack, the last neighbor in the alphabet first.

    >>> print(DepthFirstSearch(nodes=5).example(seed=1))
    prompt  DABACBCBDBECDCE
    answer  =DCEBA<EOS>
    """

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Nodes:
        return search(graphs, named[:, 0], newest=True, again=True)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """`adjacency_list`: the neighbors of each visited node; `queue`: the stack of another search.

        As in the released code, that search pushes a node only once and so visits in another order: its stack after r
        of its own visits is read at the r-th node of the answer.
        """
        graphs, order, at = self.read(batch, released=released)
        other = search(graphs, order[:, 0], newest=True, again=False)
        return {
            "queue": Feature(waiting_nodes(graphs, other), at[:, :-1], "labels"),
            "adjacency_list": Feature(neighbors(graphs, order), at, "labels", "loud"),
        }


@dataclass(frozen=True, kw_only=True)
class ShortestPath(GraphTask):
    """The prompt is two nodes and the edges; the answer is the shortest path that a bidirectional search finds.

    >>> print(ShortestPath(nodes=5).example(seed=1))
    prompt  DEABACBCBDBECDCE
    answer  =DBE<EOS>
    """

    named = 2

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Nodes:
        return shortest_path(graphs, named)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """The neighbors of each node of the path, and the whole graph, read where that node is predicted."""
        return adjacency(*self.read(batch, released=released))


@dataclass(frozen=True, kw_only=True)
class TopologicalSort(GraphTask):
    """The prompt is the edges of an acyclic directed graph; the answer is a topological order of its nodes.

    >>> print(TopologicalSort(nodes=5).example(seed=1))
    prompt  BACADAEAEBECED
    answer  =EDCBA<EOS>
    """

    spare = 1
    directed = True

    def draw(self, n: int, rng: torch.Generator) -> Graphs:
        place = permutations(n, self.nodes, rng)
        return super().draw(n, rng) & (place[:, :, None] < place[:, None, :])

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Nodes:
        return topological_order(graphs)

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """The heads of the edges from each node, read there, and the whole graph, read where that node is predicted."""
        return adjacency(*self.read(batch, released=released))


@dataclass(frozen=True, kw_only=True)
class MinimumSpanningTree(GraphTask):
    """The edges that Kruskal's algorithm keeps; edges have no weight and are taken in the order of the input.

    >>> print(MinimumSpanningTree(nodes=5).example(seed=1))
    prompt  ABACBCBDBECDCE
    answer  =ABACBDBE<EOS>
    """

    spare = 1

    @property
    def n_answer(self) -> int:
        return 2 * (self.nodes - 1)

    def solve(self, graphs: Graphs, named: Int[Tensor, "batch named"]) -> Int[Tensor, "batch out"]:
        return edge_list(spanning_tree(graphs))[:, : self.n_answer]


def neighbors(graphs: Graphs, order: Nodes) -> Int[Tensor, "batch out node"]:
    """The neighbors of each node of `order`, as 0s and 1s."""
    return (graphs.take_along_dim(order.clamp(min=0)[..., None], 1) & (order >= 0)[..., None]).long()


def waiting_nodes(graphs: Graphs, order: Nodes) -> Int[Tensor, "batch visit node"]:
    """After each visit but the last, as 0s and 1s: the neighbors of visited nodes that are not visited themselves."""
    discovered = neighbors(graphs, order).cumsum(1) > 0
    return (discovered & (F.one_hot(order, graphs.shape[-1]).cumsum(1) == 0))[:, :-1].long()


def adjacency(graphs: Graphs, order: Nodes, at: Nodes) -> dict[str, Feature]:
    """Features of each node of the answer: its neighbors, read there, and the whole graph, read one position before."""
    edges = graphs[:, ~torch.eye(graphs.shape[-1], dtype=torch.bool, device=graphs.device)].long()
    before = torch.where(at < 0, -1, at - 1)
    return {
        "adjacency_list": Feature(neighbors(graphs, order), at, "labels"),
        "adjacency_matrix": Feature(edges[:, None].expand(-1, at.shape[1], -1), before, "labels"),
    }
