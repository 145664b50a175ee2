"""Sections on matrix completion for the report of a run."""

from plateaulens.analysis.checkpoint_steps import evenly_spaced, map_checkpoints
from plateaulens.papers.matrix_completion.cells import LOSSES
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.head_atlas import head_atlas
from plateaulens.papers.matrix_completion.plots import completion, head_maps, matrix_steps
from plateaulens.report.probe_results import plateau_of
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run
from plateaulens.tasks import MatrixCompletion

SLIDER_STEPS = 8  # largest number of checkpoints in a figure with a slider


def report_sections(run: Run) -> list[Section]:
    """Sections with losses, predictions of one matrix, and attention of every head over the checkpoints of a run.

    Returns:
        The losses alone for matrices of several sizes or a run without checkpoints; nothing for runs of other tasks.
    """
    if not set(run.metrics) >= set(LOSSES):
        return []
    sections = [
        Section(
            "Copying, then completing",
            "The input is a matrix with masked cells; the model predicts every entry. Gray: the plateau; dotted: the "
            "drop; dashed: the loss of a model that copies observed cells and predicts 0 for masked ones, which is the "
            "share of masked cells times the variance of an entry.",
            completion(run, plateau_of(run)),
        )
    ]
    is_one_size = isinstance(run.task, MatrixCompletion)
    if not is_one_size or not run.steps or not run.has_eval_batch or run.model_config is None:
        return sections
    steps, eval_batch = evenly_spaced(run.steps, SLIDER_STEPS), run.eval_batch()
    matrices = matrix_steps(completions(run, eval_batch[:1], steps))
    sections.append(Section("", "Move the sliders through the checkpoints.", matrices))
    batch = eval_batch[:256]
    if (batch.answer_positions >= 0).any():  # the atlas needs masked cells as queries
        atlas = map_checkpoints(run, lambda model: head_atlas(model, batch), steps)
        text = (
            "A head is labeled by the category of keys to which masked cells attend more than twice as much as with "
            "uniform attention. For more: plateaulens matrix ablate RUN, or patch, swap, copy, probe, ..."
        )
        sections.append(Section("", text, head_maps(atlas), 170 * run.model_config.n_heads))
    return sections
