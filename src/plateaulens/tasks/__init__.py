"""Tasks: samplers of prompts with true answers, by paper; `TASKS` has them by name."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from plateaulens._registry import build, look_up
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
from plateaulens.tasks.base import Feature, Task, output_map
from plateaulens.tasks.matrices.completion import MatrixBatch, MatrixCompletion, MatrixMixture, MatrixSequence
from plateaulens.tasks.sequences.addition import Addition
from plateaulens.tasks.sequences.copying import Copy, Reverse
from plateaulens.tasks.sequences.histogram import Histogram
from plateaulens.tasks.sequences.moving_window_sum import MovingWindowSum, WindowMix
from plateaulens.tasks.sequences.number_task import ModularTask, NumberTask
from plateaulens.tasks.sequences.permutation import Permutation
from plateaulens.tasks.sequences.prefix_sum import PrefixSum
from plateaulens.tasks.sequences.repeat import Repeat

TASKS: dict[str, type[Task]] = {
    "mws": MovingWindowSum,
    "mix": WindowMix,
    "prefix": PrefixSum,
    "addition": Addition,
    "permutation": Permutation,
    "histogram": Histogram,
    "copy": Copy,
    "reverse": Reverse,
    "repeat": Repeat,
    "binary-addition": BinaryAddition,
    "multiplication": Multiplication,
    "majority": MajorityOfMajorities,
    "subarray": MaximumSubarray,
    "activities": ActivitySelection,
    "bfs": BreadthFirstSearch,
    "dfs": DepthFirstSearch,
    "path": ShortestPath,
    "topological": TopologicalSort,
    "mst": MinimumSpanningTree,
    "matrix": MatrixCompletion,
    "matrix-mixture": MatrixMixture,
    "matrix-sequence": MatrixSequence,
}


def task_to_json(task: Task) -> dict[str, Any]:
    """A task as `{"task": name, parameter: value, ...}`; the name of a user's task is that of its class."""
    name = next((name for name, cls in TASKS.items() if cls is type(task)), type(task).__name__)
    return {"task": name, **asdict(task)}


def task_from_json(values: Mapping[str, Any]) -> Task:
    """The task of a dictionary written by `task_to_json`.

    Raises:
        ValueError: If the name or a parameter is unknown (the message has the nearest one).
    """
    rest = {k: v for k, v in values.items() if k != "task"}
    return build(look_up("task", values["task"], TASKS), rest, f"task {values['task']!r}")


__all__ = [
    "TASKS",
    "ActivitySelection",
    "Addition",
    "BinaryAddition",
    "BreadthFirstSearch",
    "Copy",
    "DepthFirstSearch",
    "Feature",
    "Histogram",
    "MajorityOfMajorities",
    "MatrixBatch",
    "MatrixCompletion",
    "MatrixMixture",
    "MatrixSequence",
    "MaximumSubarray",
    "MinimumSpanningTree",
    "ModularTask",
    "MovingWindowSum",
    "Multiplication",
    "NumberTask",
    "Permutation",
    "PrefixSum",
    "Repeat",
    "Reverse",
    "ShortestPath",
    "Task",
    "TopologicalSort",
    "WindowMix",
    "output_map",
    "task_from_json",
    "task_to_json",
]
