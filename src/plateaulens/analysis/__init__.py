"""Questions to a Run: where its plateau is, and how what is inside evolves."""

from plateaulens.analysis.curvature import largest_hessian_eigenvalue, sharpness
from plateaulens.analysis.evolution import Evolution, evolve
from plateaulens.analysis.plateau import Plateau, find_plateau, first_crossing

__all__ = [
    "Evolution",
    "Plateau",
    "evolve",
    "find_plateau",
    "first_crossing",
    "largest_hessian_eigenvalue",
    "sharpness",
]
