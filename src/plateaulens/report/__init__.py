"""`write_report`: one self-contained, offline HTML page about a run or a survey."""

from collections.abc import Sequence
from pathlib import Path

from plateaulens.lm.evaluation import Survey
from plateaulens.report.evaluation_page import survey_report
from plateaulens.report.probe_results import plateau_of
from plateaulens.report.run_page import headline, run_report
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run

__all__ = ["Section", "headline", "plateau_of", "write_report"]


def write_report(of: Run | Survey, beside: Run | Survey | None = None, sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` into the folder of a run or survey: headline, figures, examples, provenance.

    Args:
        of: what the page is about.
        beside: for a survey, a run to show on the same axes.
        sections: for a run, sections that replace the figures of a sequence task.

    Raises:
        ValueError: when nothing was measured yet, or `beside` is given for a run.
    """
    if isinstance(of, Survey):
        return survey_report(of, beside)
    if beside is not None:
        raise ValueError("beside= belongs to the report of a survey; write_report(survey, beside=run)")
    return run_report(of, sections)
