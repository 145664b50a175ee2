"""`Freeze`: parameters that do not learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from plateaulens.interventions.base import Intervention
from plateaulens.models.parameter_groups import parameters_of


@dataclass(frozen=True, eq=False, repr=False)
class Freeze(Intervention):
    """Keep parts of the model as they are while the rest learns; the optimizer skips them.

        model = graft(fresh, trained, "KQ")             # arXiv 2506.13688, fig. 5: optimal initialization
        with intervene(model, Freeze("KQ")):
            record(train(model, task, cfg), "runs/kq", eval_batch)

    On a fresh model it keeps a part at its random initialization.

    Args:
        parts: names of `plateaulens.models.parameter_groups.PARTS`, or globs over parameter names like "blocks.0.*".
    """

    parts: str | Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))

    def frozen(self, model: Any) -> list[nn.Parameter]:
        return list(parameters_of(model, self.parts).values())
