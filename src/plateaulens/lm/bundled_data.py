"""Small data files that come with the package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "data", PACKAGE.parents[1] / "data")  # of an installed wheel; of the repository


def bundled(name: str) -> Path:
    """Path of a data file or folder of the package: "prompts.txt", "neox-0.2m".

    Raises:
        FileNotFoundError: When the package has no such file.
    """
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"plateaulens has no data file {name}; looked in {' and '.join(map(str, FOLDERS))}")
