"""`MetricsLog`: metrics.jsonl of a run, one JSON object per line and measured step."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

import pandas as pd

from plateaulens._io import to_json_value, write_atomically
from plateaulens._signals import defer_sigint


class MetricsLog:
    """Values by ascending step in a file of JSON lines, to which lines are appended.

    A crash may leave a partial last line: it is skipped with a warning when read, and removed before the next append.

    Args:
        path: The file, which need not exist yet.

    Raises:
        ValueError: for a line that is not a measured step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = self._last_step()
        self._repaired = False

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the values of a step.

        Raises:
            ValueError: if `step` is not above the last one.
        """
        step = index(step)  # also of NumPy
        if step <= self.last:
            raise ValueError(f"step {step} is not above the last logged step {self.last} of {self.path.parent}")
        line = json.dumps({"step": step, **{name: to_json_value(v) for name, v in values.items()}}, allow_nan=False)
        if not self._repaired:
            self.truncate(self.last)
        with defer_sigint():  # otherwise a line may be in the file and not in `last`, and would be written twice
            with self.path.open("a") as f:
                f.write(line + "\n")
                f.flush()
            self.last = step

    def frame(self) -> pd.DataFrame:
        """The values with a row per step; null is NaN."""
        rows = self._rows()
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame(index=pd.Index([], name="step"))

    def truncate(self, last: int) -> None:
        """Remove the lines after step `last`, and a partial last line."""
        lines = self._lines()
        kept = [line for line in lines if _step_of(line) <= last]
        if kept != lines:  # do not write to the folder of a complete run
            write_atomically(self.path, lambda p: p.write_text("".join(kept)))
        self.last, self._repaired = self._last_step(), True

    def sync(self) -> None:
        """Wait until all lines are on disk."""
        if self.path.exists():
            with self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []

    def _rows(self) -> list[dict[str, Any]]:
        lines = self._lines()
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            warnings.warn(f"{self.path}: the last line is incomplete and is left out; resume repairs it", stacklevel=4)
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append({name: _nan_from_null(value) for name, value in _parse(line).items()})
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line {number}, is not a measured step ({error}); repair or remove it"
                ) from error
        return rows

    def _last_step(self) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = self._rows()
        return int(rows[-1]["step"]) if rows else -1


def _parse(line: str) -> dict[str, Any]:
    """The values of a line; ValueError if it is not that of a measured step."""
    match json.loads(line):
        case {"step": int()} as row:
            return row
    raise ValueError("no step")


def _step_of(line: str) -> float:
    """The step of a line; infinity for a partial line."""
    try:
        return float(_parse(line)["step"]) if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def _nan_from_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_from_null(v) for v in value]
    return math.nan if value is None else value
