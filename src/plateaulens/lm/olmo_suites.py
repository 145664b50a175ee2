"""`olmo2`: the OLMo-2 suites."""

from typing import Any, Literal

from plateaulens._registry import look_up
from plateaulens.lm.opening import from_hub
from plateaulens.lm.suite import Checkpoints

REPOSITORIES = {
    "1B": "allenai/OLMo-2-0425-1B",
    "7B": "allenai/OLMo-2-1124-7B",
    "13B": "allenai/OLMo-2-1124-13B",
    "32B": "allenai/OLMo-2-0325-32B",
}


def olmo2(size: str, *, stage: Literal[1, 2] = 1, ingredient: int = 1, **options: Any) -> Checkpoints:
    """OLMo-2 (arXiv 2501.00656): stage 1 is pre-training, stage 2 the annealing runs ("ingredients").

    Args:
        size: "1B", "7B", "13B" or "32B".
        stage: 1 or 2.
        ingredient: Number of the annealing run, in stage 2.
        **options: Options of `from_hub`.

    Raises:
        ValueError: For an unknown size or stage.
    """
    repo = look_up("size of OLMo-2", size.upper(), REPOSITORIES)
    if stage not in (1, 2):
        raise ValueError(f"OLMo-2 was pre-trained in stages 1 and 2, got stage {stage}")
    part = "" if stage == 1 else f"ingredient{ingredient}-"
    return from_hub(repo, rf"^stage{stage}-{part}step(\d+)-tokens\d+B$", **options)
