"""`from_hub` and `from_folder`: suites of checkpoints from a repository of a Hub, or from a folder."""

from pathlib import Path
from typing import Any

from plateaulens.lm.hub import HubSource
from plateaulens.lm.source import STEP, LocalSource
from plateaulens.lm.suite import Checkpoints


def from_hub(
    repo: str,
    pattern: str = STEP.pattern,
    *,
    cache: str | Path | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> Checkpoints:
    """The checkpoints in a repository of a Hugging Face Hub whose revisions are named by step.

    Args:
        repo: "owner/name".
        pattern: Regular expression whose first group is the step in a revision's name.
        cache: Folder for downloaded checkpoints; by default `$PLATEAULENS_CACHE` or `~/.cache/plateaulens`.
        token: As in huggingface_hub: None for the saved one, False for none.
        **options: Options of `Checkpoints`.

    Raises:
        ValueError: For a name that no repository can have; later, when its steps are listed, for a repository that
            does not exist or has no steps.
    """
    return Checkpoints(HubSource(repo, pattern, cache=cache, token=token), **options)


def from_folder(folder: str | Path, pattern: str = STEP.pattern, **options: Any) -> Checkpoints:
    """The checkpoints in sub-folders `step0`, `step1`, ... in Hugging Face's layout, as `pretrain` writes them.

    Args:
        folder: The folder.
        pattern: Regular expression whose first group is the step in a sub-folder's name.
        **options: Options of `Checkpoints`.

    Raises:
        FileNotFoundError: When the folder does not exist, or has no such sub-folder.
    """
    return Checkpoints(LocalSource(folder, pattern), **options)
