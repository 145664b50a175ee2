"""`pythia`: the Pythia and PolyPythias suites."""

from typing import Any

from plateaulens._registry import look_up
from plateaulens.lm.opening import from_hub
from plateaulens.lm.suite import Checkpoints

PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
POLY_SIZES, POLY_SEEDS = PYTHIA_SIZES[:5], range(1, 10)  # arXiv 2503.09543
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 144_000, 1000))  # arXiv 2304.01373, section 2.1
TOKENS_A_STEP = 2_097_152  # 1024 sequences of 2048 tokens


def pythia(size: str, *, deduped: bool = False, seed: int | None = None, **options: Any) -> Checkpoints:
    """Pythia (arXiv 2304.01373), 154 steps; with `seed` a run of PolyPythias (arXiv 2503.09543).

    Args:
        size: "14m" to "12b".
        deduped: Whether the model was trained on the deduplicated Pile.
        seed: Seed of a PolyPythia, 1 to 9; they go up to "410m".
        **options: Options of `from_hub`.

    Raises:
        ValueError: For an unknown size or seed, or both `deduped` and `seed`.
    """
    look_up("size of Pythia", size, dict.fromkeys(PYTHIA_SIZES))
    if deduped and seed is not None:
        raise ValueError("PolyPythias were trained on the standard Pile; give deduped= or seed=, not both")
    if seed is not None and (seed not in POLY_SEEDS or size not in POLY_SIZES):
        raise ValueError(f"PolyPythias are {', '.join(POLY_SIZES)} with seeds 1 to 9; got {size} with seed {seed}")
    name = f"EleutherAI/pythia-{size}" + ("-deduped" if deduped else "" if seed is None else f"-seed{seed}")
    return from_hub(name, r"^step(\d+)$", expected=PYTHIA_STEPS, tokens_a_step=TOKENS_A_STEP, **options)
