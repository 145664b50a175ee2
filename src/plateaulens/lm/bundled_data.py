"""Small data files that come with the package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "data", PACKAGE.parents[1] / "data")  # of an installed wheel; of the repository


def bundled(name: str) -> Path:
    """Where a data file or folder that comes with the package lies: "prompts.txt", "neox-0.2m".

    Raises:
        FileNotFoundError: when it does not come with the package.
    """
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no {name} comes with plateaulens; looked in {' and '.join(map(str, FOLDERS))}")
