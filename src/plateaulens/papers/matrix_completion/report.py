"""The sections on matrix completion in the report of a run."""

from plateaulens.analysis.checkpoint_steps import evenly, map_checkpoints
from plateaulens.papers.matrix_completion.completions import completions
from plateaulens.papers.matrix_completion.head_atlas import head_atlas
from plateaulens.papers.matrix_completion.plots import completion, head_maps, matrix_steps
from plateaulens.report.probe_results import plateau_of
from plateaulens.report.sections import Section
from plateaulens.runs.run import Run
from plateaulens.tasks import MatrixCompletion

STEPS = 8  # checkpoints that the sliders go through
LOSSES = {"loss", "observed_loss", "masked_loss"}


def report_sections(run: Run) -> list[Section]:
    """Losses, completions of one matrix and attention of every head over the checkpoints of `run`.

    Returns:
        No section for runs of other tasks; for matrices of several sizes, the losses alone.
    """
    if not set(run.metrics) >= LOSSES:
        return []
    sections = [
        Section(
            "Copying, then completing",
            "The model is shown a matrix with hidden cells and predicts every entry. The gray band is the plateau, the "
            "dotted line the drop. Dashed: the loss of a model that copies what it is shown and predicts 0 for the "
            "rest, the share of hidden cells times the variance of an entry.",
            completion(run, plateau_of(run)),
        )
    ]
    if (
        not isinstance(run.task, MatrixCompletion)
        or not run.steps
        or not run.has_eval_batch
        or run.model_config is None
    ):
        return sections
    steps, eval_batch = evenly(run.steps, STEPS), run.eval_batch()
    matrices = matrix_steps(completions(run, eval_batch[:1], steps))
    sections.append(Section("", "Move the sliders through the checkpoints.", matrices))
    some = eval_batch[:256]
    if (some.answer_positions >= 0).any():  # without a hidden cell there is no query to count
        atlas = map_checkpoints(run, lambda model: head_atlas(model, some), steps)
        text = (
            "A head is labeled by the category of keys that hidden cells attend to more than twice as much as uniform "
            "attention would. More: plateaulens matrix ablate RUN, and patch, switch, copy, probe, ..."
        )
        sections.append(Section("", text, head_maps(atlas), 170 * run.model_config.n_heads))
    return sections
