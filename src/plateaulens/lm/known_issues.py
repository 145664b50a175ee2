"""Public reports of defects in published checkpoints, each with its address and date.

`known_issues.json` holds what others reported, as read in November 2026 and not verified here: a publisher may have
replaced the files since. `audit` checks what a repository serves today. Only reports about the weights of a step lead
to a warning.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Report:
    """One public report.

    Attributes:
        repositories: Regular expression that matches the whole name of the Hub repositories it is about.
        spans: Ranges of the steps it names; empty if it is not about single steps.
        kind: "duplicate" (several steps with the same weights), "wrong weights" (not those of the step), "missing", or
            "reuploaded" (wrong at first, replaced since).
        what: The defect, in one line.
        url: Address of the thread.
        date: Date of the report, year-month-day.
        status: Status of the thread when it was read.
    """

    repositories: str
    spans: tuple[range, ...]
    kind: Literal["duplicate", "wrong weights", "missing", "reuploaded"]
    what: str
    url: str
    date: str
    status: Literal["open", "closed"]

    @property
    def warns(self) -> bool:
        """Whether the steps may serve other weights than their names say."""
        return self.kind in ("duplicate", "wrong weights")

    @property
    def steps(self) -> list[int]:
        """The steps it names."""
        return [step for span in self.spans for step in span]

    def __str__(self) -> str:
        return f"reported in {self.url} ({self.date}): {self.what}"


def _span(text: str) -> range:
    """Steps written as "5", "1-8" or "1000-9000/1000": first, last and spacing."""
    ends, _, spacing = text.partition("/")
    first, _, last = ends.partition("-")
    return range(int(first), int(last or first) + 1, int(spacing or 1))


def _read(entry: dict[str, Any]) -> Report:
    return Report(spans=tuple(map(_span, entry.pop("steps").split())), **entry)


REPORTS = tuple(map(_read, json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))))


def reports_for(name: str, step: int | None = None) -> list[Report]:
    """The reports about a repository; with `step`, only those that name it."""
    reports = [report for report in REPORTS if re.fullmatch(report.repositories, name, re.IGNORECASE)]
    return reports if step is None else [report for report in reports if any(step in span for span in report.spans)]
