"""`load`: a suite by one word, as it is given in a shell."""

from pathlib import Path
from typing import Any

from plateaulens.lm.olmo_suites import olmo2
from plateaulens.lm.opening import from_folder, from_hub
from plateaulens.lm.pythia_suites import pythia
from plateaulens.lm.suite import Checkpoints


def load(name: str | Path, **options: Any) -> Checkpoints:
    """A suite by one word: "pythia-14m", "pythia-14m-seed3", "olmo2-7b", "owner/name" of a Hub, or a folder.

    Args:
        name: The word.
        **options: Options of `from_folder` for a folder, else of `from_hub`.

    Raises:
        ValueError: For any other word.
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
        f"{word!r} is neither a suite nor a folder; give pythia-14m, pythia-70m-deduped, pythia-14m-seed3, olmo2-7b, "
        "owner/name of a Hub, or a folder of step0, step1, ..."
    )
