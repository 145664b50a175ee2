"""The suites by their names: Pythia, OLMo-2, any repository of a Hub, any folder."""

from pathlib import Path
from typing import Any

from plateaulens._registry import look_up
from plateaulens.lm.source import STEP, LocalSource
from plateaulens.lm.suite import Checkpoints

PYTHIA_SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
POLY_SIZES, POLY_SEEDS = PYTHIA_SIZES[:5], range(1, 10)  # arXiv 2503.09543
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 144_000, 1000))  # arXiv 2304.01373, section 2.1
PYTHIA_TOKENS = 2_097_152  # a step: 1024 sequences of 2048
OLMO2 = {
    "1B": "allenai/OLMo-2-0425-1B",
    "7B": "allenai/OLMo-2-1124-7B",
    "13B": "allenai/OLMo-2-1124-13B",
    "32B": "allenai/OLMo-2-0325-32B",
}


def from_hub(
    repo: str,
    pattern: str = STEP.pattern,
    *,
    cache: str | Path | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> Checkpoints:
    """Any repository of a Hugging Face Hub whose revisions are named by step.

    Args:
        repo: "owner/name".
        pattern: a regular expression whose first group is the step in a revision's name.
        cache: where checkpoints are kept while they are used; by default `$PLATEAULENS_CACHE` or
            `~/.cache/plateaulens`.
        token: as huggingface_hub's: None for the saved one, False for none.
        **options: of `Checkpoints`.

    Raises:
        ValueError: later, when its steps are asked for: a repository that is not there or has no steps.
    """
    from plateaulens.lm.hub import HubSource

    return Checkpoints(HubSource(repo, pattern, cache=cache, token=token), **options)


def pythia(size: str, *, deduped: bool = False, seed: int | None = None, **options: Any) -> Checkpoints:
    """Pythia (arXiv 2304.01373), 154 steps; with `seed` a run of PolyPythias (arXiv 2503.09543).

    Args:
        size: "14m" to "12b".
        deduped: trained on the deduplicated Pile.
        seed: 1 to 9 of PolyPythias, which go up to "410m".
        **options: of `hub`.

    Raises:
        ValueError: for an unknown size or seed, or both `deduped` and `seed`.
    """
    look_up("size of Pythia", size, dict.fromkeys(PYTHIA_SIZES))
    if deduped and seed is not None:
        raise ValueError("PolyPythias were trained on the standard Pile; give deduped= or seed=, not both")
    if seed is not None and (seed not in POLY_SEEDS or size not in POLY_SIZES):
        raise ValueError(f"PolyPythias are {', '.join(POLY_SIZES)} with seeds 1 to 9; got {size} with seed {seed}")
    name = f"EleutherAI/pythia-{size}" + ("-deduped" if deduped else "" if seed is None else f"-seed{seed}")
    return from_hub(name, r"^step(\d+)$", expected=PYTHIA_STEPS, tokens_a_step=PYTHIA_TOKENS, **options)


def olmo2(size: str, *, stage: int = 1, ingredient: int = 1, **options: Any) -> Checkpoints:
    """OLMo-2 (arXiv 2501.00656): stage 1 is pre-training, stage 2 the annealing runs ("ingredients").

    Args:
        size: "1B", "7B", "13B" or "32B".
        stage: 1 or 2.
        ingredient: of stage 2.
        **options: of `hub`.

    Raises:
        ValueError: for an unknown size or stage.
    """
    repo = look_up("size of OLMo-2", size.upper(), OLMO2)
    if stage not in (1, 2):
        raise ValueError(f"OLMo-2 was pre-trained in stages 1 and 2, got stage {stage}")
    part = "" if stage == 1 else f"ingredient{ingredient}-"
    return from_hub(repo, rf"^stage{stage}-{part}step(\d+)-tokens\d+B$", **options)


def from_folder(folder: str | Path, pattern: str = STEP.pattern, **options: Any) -> Checkpoints:
    """Sub-folders `step0`, `step1`, ... in Hugging Face's layout, as `plateaulens pretrain` writes them.

    Raises:
        FileNotFoundError: when the folder is not there, or has no such sub-folder.
    """
    return Checkpoints(LocalSource(folder, pattern), **options)


def load(name: str | Path, **options: Any) -> Checkpoints:
    """A suite by one word, as in a shell: "pythia-14m", "pythia-14m-seed3", "olmo2-7b", "owner/name" or a folder.

    Args:
        name: the word.
        **options: of `local` for a folder, else of `hub`.

    Raises:
        ValueError: for anything else.
    """
    word = str(name)
    if Path(name).is_dir():
        return from_folder(name, **options)
    family, _, rest = word.partition("-")
    if family == "pythia" and rest:
        size, _, variant = rest.partition("-")
        if variant in ("", "deduped"):
            return pythia(size, deduped=bool(variant), **options)
        if variant.startswith("seed") and variant[4:].isdigit():
            return pythia(size, seed=int(variant[4:]), **options)
    if family == "olmo2" and rest:
        return olmo2(rest, **options)
    if word.count("/") == 1 and not word.startswith((".", "/")):
        return from_hub(word, **options)
    raise ValueError(
        f"{word!r} is no folder and no suite; say pythia-14m, pythia-70m-deduped, pythia-14m-seed3, olmo2-7b, "
        "owner/name of a Hub, or a folder of step0, step1, ..."
    )
