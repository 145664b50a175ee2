"""Public reports about published checkpoints, each with its address and date.

The reports are as read in November 2026 and not checked here; a publisher may have corrected the files since. `audit`
compares the files of today. A report leads to a warning about a step only when it is about the weights of that step.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_MAIN_OF_2_8B = (
    *(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    *range(1000, 54_000, 1000),
    *(55_000, 60_000, 65_000, 70_000, 80_000, 90_000, 100_000, 103_000, 110_000, 120_000, 130_000, 140_000),
)
_SECOND_OF_2_8B = (54_000, 56_000, 57_000, 58_000, 59_000, 61_000, 62_000, 63_000, 64_000, 143_000)
_SIZES = r"EleutherAI/pythia-(70m|160m|410m|1b|1\.4b|2\.8b|6\.9b|12b)"  # the eight of the paper, not deduplicated


@dataclass(frozen=True, kw_only=True)
class Report:
    """One public report.

    Attributes:
        repositories: Regular expression for the whole names of the Hub repositories that it is about.
        steps: Steps that it is about; empty when it is not about steps of these repositories.
        kind: One of "duplicate" (several steps, the same weights), "wrong weights" (not those of that step), "missing",
            or "reuploaded" (wrong once, replaced since).
        what: The report in one line.
        url: Address of the thread.
        date: Date of the report, year-month-day.
        status: Status of the thread when it was read.
    """

    repositories: str
    steps: Sequence[int]
    kind: Literal["duplicate", "wrong weights", "missing", "reuploaded"]
    what: str
    url: str
    date: str
    status: Literal["open", "closed"]

    @property
    def warns(self) -> bool:
        """Whether it reports that these steps have other weights than their names say."""
        return self.kind in ("duplicate", "wrong weights")

    def __str__(self) -> str:
        return f"reported in {self.url} ({self.date}): {self.what}"


REPORTS = (
    Report(
        repositories=r"EleutherAI/pythia-2\.8b",
        steps=_MAIN_OF_2_8B,
        kind="duplicate",
        what="76 step branches, every one up to step 53000 among them, serve the model.safetensors of main",
        url="https://github.com/EleutherAI/pythia/issues/205",
        date="2026-08-14",
        status="open",
    ),
    Report(
        repositories=r"EleutherAI/pythia-2\.8b",
        steps=_SECOND_OF_2_8B,
        kind="duplicate",
        what="10 step branches serve one model.safetensors, whose embeddings are those of main",
        url="https://github.com/EleutherAI/pythia/issues/205",
        date="2026-08-14",
        status="open",
    ),
    Report(
        repositories=r"EleutherAI/pythia-2\.8b",
        steps=range(6301),
        kind="duplicate",
        what="the weights from step 0 to step 6300 are identical",
        url="https://github.com/EleutherAI/pythia/issues/195",
        date="2026-03-06",
        status="open",
    ),
    Report(
        repositories=r"EleutherAI/pythia-12b",
        steps=(50_000, 58_000),
        kind="wrong weights",
        what="the first of 3 shards (input embedding, early layers) is the final model's; the others are their own",
        url="https://github.com/EleutherAI/pythia/issues/206",
        date="2026-08-14",
        status="open",
    ),
    Report(
        repositories=r"EleutherAI/pythia-12b-deduped",
        steps=(32_000,),
        kind="reuploaded",
        what="the step performed like the last ones; the reporter found it reasonable once uploaded anew (2023-06-15)",
        url="https://github.com/EleutherAI/pythia/issues/108",
        date="2023-06-06",
        status="open",
    ),
    Report(
        repositories=r"EleutherAI/pythia-160m-weight-seed[12]",
        steps=range(1, 143_001),
        kind="wrong weights",
        what="from step 1 on, the weights appear not to descend from the run's own step 0",
        url="https://github.com/EleutherAI/pythia/issues/203",
        date="2026-07-21",
        status="open",
    ),
    *(
        Report(
            repositories=f"EleutherAI/pythia-410m-seed{seed}",
            steps=(step,),
            kind="missing",
            what="the weights of this step are missing",
            url="https://github.com/EleutherAI/pythia/issues/202",
            date="2026-07-17",
            status="open",
        )
        for seed, step in ((9, 40_000), (6, 88_000), (2, 111_000))
    ),
    Report(
        repositories=r"EleutherAI/pythia-[\d.]+[mb](-deduped)?",
        steps=(0, 1),
        kind="duplicate",
        what="step 1 equals step 0 because warm-up gives the first update a learning rate of 0",
        url="https://github.com/EleutherAI/gpt-neox/issues/1373",
        date="2026-02-14",
        status="open",
    ),
    Report(
        repositories=_SIZES,
        steps=(0, 1),
        kind="duplicate",
        what="steps 0 and 1 have identical weights in all eight models",
        url="https://github.com/EleutherAI/pythia/issues/83",
        date="2023-04-05",
        status="open",
    ),
    Report(
        repositories=_SIZES,
        steps=(0, 2),
        kind="duplicate",
        what="steps 0 and 2 seem to share their weights in all models",
        url="https://github.com/EleutherAI/pythia/issues/198",
        date="2026-05-18",
        status="open",
    ),
    Report(
        repositories=r"allenai/OLMo-2-1124-7B",
        steps=(101_000, 175_000, 300_000),
        kind="duplicate",
        what="stage 1's steps 101000, 175000 and 300000 serve the same six shards (about 25 branches were looked at)",
        url="https://github.com/allenai/OLMo/issues/915",
        date="2026-08-17",
        status="open",
    ),
    Report(
        repositories=r"allenai/OLMo-2-1124-13B",
        steps=range(100_001),
        kind="missing",
        what="the 13B model has no checkpoints for steps 0 to 100000 on the Hub; the first is step 102500",
        url="https://github.com/allenai/OLMo/issues/842",
        date="2025-05-27",
        status="open",
    ),
    Report(
        repositories=r"allenai/OLMo-1B",
        steps=range(117_001, 330_000),
        kind="missing",
        what="none between about 117000 and 330000; the publisher has no others (2025-08-27)",
        url="https://github.com/allenai/OLMo/issues/879",
        date="2025-08-25",
        status="closed",
    ),
    Report(
        repositories=r"allenai/OLMo-(7B|1B)",
        steps=(),
        kind="missing",
        what="the published lists of checkpoint addresses (not the Hub's branches) have gaps",
        url="https://github.com/allenai/OLMo/issues/726",
        date="2024-10-03",
        status="open",
    ),
    Report(
        repositories=r"allenai/OLMo-3-1025-7B",
        steps=(),
        kind="missing",
        what="all 1415 stage 1 checkpoints in OLMo-core's format (not the Hub's branches) answer 404",
        url="https://github.com/allenai/OLMo-core/issues/729",
        date="2026-06-16",
        status="open",
    ),
)


def reports_for(name: str, step: int | None = None) -> list[Report]:
    """The reports about a repository; with `step`, those that name it."""
    reports = [r for r in REPORTS if re.fullmatch(r.repositories, name, re.IGNORECASE)]
    return reports if step is None else [r for r in reports if step in r.steps]
