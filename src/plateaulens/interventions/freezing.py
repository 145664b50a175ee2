"""`Freeze`: keep parameters untrained."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from plateaulens.interventions.base import Intervention
from plateaulens.models.parameter_groups import parameters_of
from plateaulens.protocols import HookedModel


@dataclass(frozen=True, eq=False, repr=False)
class Freeze(Intervention):
    """Keep parts of the model unchanged while the rest is trained; the optimizer skips them.

        model = graft(fresh, trained, "KQ")             # arXiv 2506.13688, fig. 5: optimal initialization
        with intervene(model, Freeze("KQ")):
            record(train(model, task, cfg), "runs/kq", eval_batch)

    On a fresh model the parts keep their random initialization.

    Args:
        parts: Names of `plateaulens.models.PARTS`, or globs over parameter names like "blocks.0.*".
    """

    parts: str | Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))

    def frozen(self, model: HookedModel) -> list[nn.Parameter]:
        return list(parameters_of(model, self.parts).values())
