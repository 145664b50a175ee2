"""`write_report`: one self-contained, offline HTML page on a run or an evaluation of checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from plateaulens.lm.evaluation import EvaluatedCheckpoints
from plateaulens.report.evaluation_page import evaluation_report
from plateaulens.report.probe_results import plateau_of
from plateaulens.report.run_page import headline, run_report
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run

__all__ = ["Section", "headline", "plateau_of", "write_report"]


def write_report(
    of: Run | EvaluatedCheckpoints,
    compare_with: Run | EvaluatedCheckpoints | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write `report.html` into the folder of a run or evaluation: headline, figures, examples, provenance.

    Args:
        of: what the page is about.
        compare_with: for an evaluation, a run to show on the same axes.
        sections: for a run, sections that replace the figures of a sequence task.

    Raises:
        ValueError: when nothing was measured yet, or `beside` is given for a run.
    """
    if isinstance(of, EvaluatedCheckpoints):
        return evaluation_report(of, compare_with)
    if compare_with is not None:
        raise ValueError("compare_with= is for the report of an evaluation; write_report(results, compare_with=run)")
    return run_report(of, sections)
