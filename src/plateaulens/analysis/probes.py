"""Linear probes: what can be read from activations, layer by layer and position by position, and when it could be.

    found = probe(model, batch, "carry", baseline=untrained)       # -> Probes
    found.thirds()                                                 # test loss beside the untrained network's
    over = probe_over(run, batch, ["carry", "first_operand"])      # every checkpoint -> xarray
    print(quiet_or_loud(over, "carry", plateau_steps=[64, 96], after_step=420))

After arXiv 2505.03997, whose probes are independent logistic regressions, one a site, offset and label. Sequences are
split, not rows. A probe on an untrained network is no chance level: give a `baseline`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens._shapes import Batch
from plateaulens.analysis.probing import Parts, Question, best_fit, states_at
from plateaulens.analysis.quiet import Verdict, quiet_or_loud, thirds
from plateaulens.analysis.solvers import Fit, logistic
from plateaulens.hooked import matching
from plateaulens.tasks.base import Feature

__all__ = ["Probes", "Verdict", "answer_tokens", "logistic_fit", "probe", "probe_over", "quiet_or_loud", "thirds"]

RESIDUAL = "blocks.*.hook_resid_post"
PAPER = 100.0  # scikit-learn's C in arXiv 2505.03997


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """Probes of one feature in one model: w . x + b at each site and offset.

    Attributes:
        feature: its name.
        kind: see `Feature`.
        sites: hook names.
        positions: where each offset was read in each sequence of the batch.
        weights: w, for activations as they are; 0 where a label does not vary.
        biases: b.
        table: by site and offset: `loss` on the test sequences in nats (of integers, the mean squared error),
            `train_loss`, `accuracy` and `auroc` (of integers, `r2`), the `C` that was taken; `shuffled`, the loss of
            probes trained and tested on labels shuffled among sequences, and `selectivity`, shuffled - loss; and
            `baseline`, the loss in another model. Means over labels; NaN where labels do not vary.
        losses: of each test sequence, NaN where it has none: what a bootstrap resamples.
        baseline_losses: in the other model; all NaN without one.
        test: which sequences of the batch the tests are.
    """

    feature: str
    kind: str
    sites: tuple[str, ...]
    positions: Int[Tensor, "batch offset"]
    weights: Float[Tensor, "site offset label d_model"]
    biases: Float[Tensor, "site offset label"]
    table: xr.Dataset
    losses: Float[Tensor, "site offset test"]
    baseline_losses: Float[Tensor, "site offset test"]
    test: Int[Tensor, " test"]

    @property
    def train_loss(self) -> Float[np.ndarray, "site offset"]:
        """The loss by which sites are chosen."""
        return self.table.train_loss.values

    def best_site(self) -> list[str | None]:
        """Of each offset the site of the lowest train loss (arXiv 2505.03997); None where nothing varies."""
        best = np.nan_to_num(self.train_loss, nan=np.inf).argmin(0)
        return [None if np.isnan(self.train_loss[:, i]).all() else self.sites[b] for i, b in enumerate(best)]

    def thirds(self) -> xr.Dataset:
        """As the function `thirds`."""
        return thirds(self.table)

    def __repr__(self) -> str:
        rows = self.thirds().to_dataframe().round(4)
        return f"Probes of {self.feature} ({self.kind}), {len(self.sites)} sites, {len(self.test)} tests\n{rows}"


def probe(
    model: Any,
    batch: Batch,
    feature: str | Feature,
    sites: str | Sequence[str] = RESIDUAL,
    *,
    baseline: Any = None,
    C: float | Sequence[float] = (1.0, PAPER),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    shuffled: bool = True,
    seed: int = 0,
) -> Probes:
    """Fit a probe of `feature` at every site and offset, and test it on sequences that it has not seen.

    A probe has the least mean loss + |w|^2 / (2 C n) over n examples, b being free. Of several C each probe takes the
    one of the least loss on the validation sequences; of one alone these are trained on too. Labels are probed one by
    one, but classes of which each example has exactly one together (a softmax).

    Args:
        model: any hooked model.
        batch: sequences of a task, teacher-forced; their number decides how much a probe can learn.
        feature: a name of the task's, or the feature of this batch.
        sites: hook names or globs.
        baseline: another model to probe in the same way, best an untrained one.
        C: the inverse strength of the penalty, as in scikit-learn; 100 is the paper's, inf for none.
        fractions: of the sequences to train on, to choose C by and to test on.
        shuffled: whether to fit shuffled labels too, as a control.
        seed: of the split and the shuffling.

    Raises:
        ValueError: for an unknown feature or site, prompts without a task, fractions that leave a part empty, or
            positions that the model does not reach.
    """
    question = Question.of(batch, feature, Parts.of(len(batch), fractions, C, seed))
    found = _probed(model, batch, [question], sites, [None], shuffled)[0]
    return found if baseline is None else _beside(found, _probed(baseline, batch, [question], sites, [None], False)[0])


def probe_over(
    run: Any,
    batch: Batch,
    features: str | Feature | Sequence[str | Feature],
    sites: str | Sequence[str] = RESIDUAL,
    *,
    steps: Sequence[int] | None = None,
    baseline: Any = None,
    C: float | Sequence[float] = (1.0, PAPER),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    shuffled: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """`probe` at every checkpoint, each fit starting from the one before.

    Args:
        run: a Run, or anything with `.steps` and `.model(step)`.
        batch: as in `probe`.
        features: one, or several by name.
        sites: as in `probe`.
        steps: all checkpoints by default.
        baseline: a model; by default the network of step 0.
        C: as in `probe`.
        fractions: as in `probe`.
        shuffled: as in `probe`.
        seed: as in `probe`.
        progress: whether to show a progress bar.

    Returns:
        The tables of `Probes` over (step, site, offset), and over features where these were a list, NaN at offsets
        that a feature does not have; `losses` and `baseline_losses` over test sequences too.

    Raises:
        ValueError: as `probe`, and without checkpoints or an untrained network.
    """
    from tqdm.auto import tqdm

    several = not isinstance(features, str | Feature)
    asked = [features] if isinstance(features, str | Feature) else list(features)
    parts = Parts.of(len(batch), fractions, C, seed)
    questions = [Question.of(batch, feature, parts) for feature in asked]
    chosen = list(run.steps if steps is None else steps)
    if not chosen or not questions:
        raise ValueError(f"nothing to probe: {len(chosen)} checkpoints of {run!r}, {len(questions)} features")
    untrained = baseline if baseline is not None else run.model(0) if 0 in run.steps else run.new_model()
    others = _probed(untrained, batch, questions, sites, [None] * len(questions), False)
    last: list[Probes | None] = [None] * len(questions)
    rows: list[list[xr.Dataset]] = [[] for _ in questions]
    for step in tqdm(chosen, unit="step", disable=not progress):
        found = _probed(run.model(step), batch, questions, sites, last, shuffled)
        for own, new, other in zip(rows, found, others, strict=True):
            own.append(_whole(_beside(new, other)))
        last = list(found)
    tables = [xr.concat(own, xr.Variable("step", chosen)) for own in rows]
    if not several:
        return tables[0]
    return xr.concat(tables, xr.Variable("feature", [q.name for q in questions]), join="outer")


def logistic_fit(
    x: Float[Tensor, "offset n d_model"], y: Int[Tensor, "offset n"], C: float = PAPER
) -> tuple[Float[Tensor, "offset d_model"], Float[Tensor, " offset"]]:
    """Weights and biases of one binary probe an offset: what `ablate_feature` takes as `fit=`."""
    fit = logistic(x, y[..., None].to(x), 1 / (C * x.shape[1]))
    return fit.weights[:, 0], fit.biases[:, 0]


def answer_tokens(batch: Batch) -> Feature:
    """The answer tokens where each is predicted, as classes.

    The probe of arXiv 2506.13688 is `probe(model, batch, answer_tokens(batch), "blocks.0.hook_attn_out")`.
    """
    return Feature(batch.answers.clamp(min=0), batch.out, "classes")


# One model.


def _probed(
    model: Any,
    batch: Batch,
    questions: Sequence[Question],
    sites: str | Sequence[str],
    starts: Sequence[Probes | None],
    shuffled: bool,
) -> list[Probes]:
    names = matching(model, [sites] if isinstance(sites, str) else list(sites))
    states = states_at(model, batch, questions, names)
    return [_answered(q, tuple(names), x, s, shuffled) for q, x, s in zip(questions, states, starts, strict=True)]


def _answered(
    question: Question,
    sites: tuple[str, ...],
    states: Float[Tensor, "site offset batch d_model"],
    start: Probes | None,
    shuffled: bool,
) -> Probes:
    shape, x = states.shape[:2], states.flatten(0, 1)
    first = None if start is None else Fit.of(start.weights.flatten(0, 1), start.biases.flatten(0, 1))
    fit, scores, losses = best_fit(question, x, first)
    control = (
        best_fit(question.shuffled(), x, None)[1]["loss"] if shuffled else torch.full_like(scores["loss"], torch.nan)
    )
    scores |= {
        "shuffled": control,
        "selectivity": control - scores["loss"],
        "baseline": torch.full_like(control, torch.nan),
    }
    values: dict[str, Any] = {name: (("site", "offset"), v.view(shape).numpy()) for name, v in scores.items()}
    table = xr.Dataset({**values, "offsets": shape[1]}, {"site": list(sites), "offset": range(shape[1])})
    own = losses.view(*shape, -1)
    return Probes(
        feature=question.name,
        kind=question.kind,
        sites=sites,
        positions=question.positions,
        weights=fit.weights.nan_to_num().view(*shape, *fit.weights.shape[1:]),
        biases=fit.biases.nan_to_num().view(*shape, -1),
        table=table,
        losses=own,
        baseline_losses=torch.full_like(own, torch.nan),
        test=question.parts.test,
    )


def _beside(found: Probes, other: Probes) -> Probes:
    """With the losses of a baseline."""
    if found.sites != other.sites:
        raise ValueError(f"the baseline has {', '.join(other.sites)}, and the model {', '.join(found.sites)}")
    return replace(found, table=found.table.assign(baseline=other.table.loss), baseline_losses=other.losses)


def _whole(found: Probes) -> xr.Dataset:
    """The table, and the losses of each test sequence."""
    axes = ("site", "offset", "test")
    named = {"losses": found.losses, "baseline_losses": found.baseline_losses}
    return found.table.assign({name: (axes, value.numpy()) for name, value in named.items()})
