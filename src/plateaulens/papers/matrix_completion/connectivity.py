"""What can be seen of matrices with masked cells."""

from jaxtyping import Bool
from torch import Tensor


def disconnected(observed: Bool[Tensor, "*batch row col"]) -> Bool[Tensor, "*batch row col"]:
    r"""The masked cells that nothing determines: no path of observed cells leads from their row to their column.

    With rows and columns as the nodes of a bipartite graph and observed cells as its edges, these are the cells between
    two components. Scaling the rows of one by c and its columns by 1/c changes no observed cell and no rank, but those
    (Kiraly, Theran and Tomioka, arXiv 1211.4116, where of rank 1 all other cells are determined).
    """
    paths = observed.float()  # from row to column, of 1, 3, 9, ... cells or less
    for _ in range(
        min(observed.shape[-2:]).bit_length()
    ):  # a path without detours has at most 2 min(row, col) - 1 cells
        paths = (paths @ paths.mT @ paths).clamp(max=1.0)
    return paths == 0
