"""`write_report`: one self-contained HTML page on a run or an evaluation of checkpoints."""

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
    run_or_evaluation: Run | EvaluatedCheckpoints,
    compare_with: Run | EvaluatedCheckpoints | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write `report.html` into the folder of a run or evaluation: headline, figures, examples, provenance.

    Args:
        run_or_evaluation: Run or evaluation that the page is about.
        compare_with: Run that the page of an evaluation shows on the same axes.
        sections: Sections that replace the figures of a sequence task on the page of a run.

    Returns:
        The path of the page.

    Raises:
        ValueError: when nothing was measured yet, or `compare_with` is not a run on the page of an evaluation.
    """
    if isinstance(compare_with, EvaluatedCheckpoints) or (compare_with and isinstance(run_or_evaluation, Run)):
        raise ValueError("compare_with= is for the report of an evaluation; write_report(evaluation, compare_with=run)")
    if isinstance(run_or_evaluation, EvaluatedCheckpoints):
        return evaluation_report(run_or_evaluation, compare_with)
    return run_report(run_or_evaluation, sections)
