"""The algorithmic tasks of arXiv 2505.03997, with the intermediate quantities of their algorithms."""

from plateaulens.tasks.algorithms.activity_selection import ActivitySelection
from plateaulens.tasks.algorithms.binary_arithmetic import BinaryAddition, MajorityOfMajorities, Multiplication
from plateaulens.tasks.algorithms.graphs import (
    BreadthFirstSearch,
    DepthFirstSearch,
    MinimumSpanningTree,
    ShortestPath,
    TopologicalSort,
)
from plateaulens.tasks.algorithms.maximum_subarray import MaximumSubarray

__all__ = [
    "ActivitySelection",
    "BinaryAddition",
    "BreadthFirstSearch",
    "DepthFirstSearch",
    "MajorityOfMajorities",
    "MaximumSubarray",
    "MinimumSpanningTree",
    "Multiplication",
    "ShortestPath",
    "TopologicalSort",
]
