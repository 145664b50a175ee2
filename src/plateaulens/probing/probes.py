"""Probes: what can be read from activations, layer by layer and position by position, and when it could be.

    found = probe(model, batch, "carry", baseline=untrained)       # -> Probes
    found.thirds()                                                 # test loss beside the untrained network's
    over = probe_checkpoints(run, batch, ["carry", "first_operand"])      # every checkpoint -> xarray
    print(quiet_or_loud(over, "carry", plateau_steps=[64, 96], after_step=420))
    probe(model, batch, "carry", hidden=32)                        # one hidden layer: what no line tells

After arXiv 2505.03997, whose probes are independent logistic regressions, one a site, offset and label. Sequences are
split, not rows, and copies of a sequence stay on one side (the paper's code keeps (a, b) and (b, a) together, too). A
probe on an untrained network is no chance level: give a `baseline`. Nor does a probe that succeeds show a computation,
where the tokens that the position can see tell the label to a linear probe already: `probe_tokens`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.hooks import match_hooks
from plateaulens.probing.fitting import ProbeDataset, ProbeSplit, copies, states_at
from plateaulens.probing.results import Probes, answered
from plateaulens.probing.solvers import logistic
from plateaulens.probing.verdict import Verdict, quiet_or_loud, thirds
from plateaulens.tasks.base import NUMBERS, Feature

__all__ = [
    "Probes",
    "Verdict",
    "answer_tokens",
    "logistic_fit",
    "probe",
    "probe_checkpoints",
    "probe_tokens",
    "quiet_or_loud",
    "thirds",
]

RESIDUAL = "blocks.*.hook_resid_post"
PAPER = 100.0  # scikit-learn's C in arXiv 2505.03997


def probe(
    model: Any,
    batch: Batch,
    feature: str | Feature,
    sites: str | Sequence[str] = RESIDUAL,
    *,
    baseline: Any = None,
    hidden: int | None = None,
    bias: bool = True,
    C: float | Sequence[float] = (1.0, PAPER),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    pooled: bool = False,
    shuffled: bool = True,
    seed: int = 0,
) -> Probes:
    """Fit a probe of `feature` at every site and offset, and test it on sequences that it has not seen.

    A probe has the least mean loss + |w|^2 / (2 C n) over n examples, b being free; of numbers the loss is half the
    squared error. Of several C each probe takes the one of the least loss on the validation sequences; of one alone
    these are trained on too. Labels are probed one by one, but classes of which each example has exactly one together
    (a softmax). With `hidden` a probe is a network of one layer of so many rectified units, w all its weights, and what
    is found a local optimum, from weights that `seed` draws.

    Args:
        model: any hooked model.
        batch: sequences of a task, teacher-forced; their number decides how much a probe can learn.
        feature: a name of the task's, or the feature of this batch.
        sites: hook names or globs.
        baseline: another model to probe in the same way, best an untrained one.
        hidden: units of the hidden layer; None for linear probes.
        bias: whether linear probes of numbers have b; those of arXiv 2410.22244 have none.
        C: the inverse strength of the penalty, as in scikit-learn; 100 is the paper's, inf (of numbers) for none.
        fractions: of the sequences to train on, to choose C by and to test on.
        pooled: one probe a site for all offsets, each row of a sequence an example; `loss` is still by offset.
        shuffled: whether to fit shuffled labels too, as a control.
        seed: of the split, the shuffling and the weights that a hidden layer starts from.

    Raises:
        ValueError: for an unknown feature or site, prompts without a task, labels that are not of their kind, `hidden`
            below 1, no `bias` where it is needed, fractions that leave a part empty, or positions that the model does
            not reach.
    """
    question = _asked(batch, feature, _split(batch, fractions, C, seed, hidden, bias))[0]
    found = _probed(model, batch, [question], sites, [None], shuffled, pooled)[0]
    if baseline is None:
        return found
    return found.compare_with(_probed(baseline, batch, [question], sites, [None], False, pooled)[0])


def probe_checkpoints(
    run: Any,
    batch: Batch,
    features: str | Feature | Sequence[str | Feature] | Mapping[str, str | Feature],
    sites: str | Sequence[str] = RESIDUAL,
    *,
    steps: Sequence[int] | None = None,
    baseline: Any = None,
    hidden: int | None = None,
    bias: bool = True,
    C: float | Sequence[float] = (1.0, PAPER),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    pooled: bool = False,
    shuffled: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """`probe` at every checkpoint, each linear fit starting from the one before.

    Args:
        run: a Run, or anything with `.steps` and `.model(step)`.
        batch: as in `probe`.
        features: one, or several: the task's by name, your own as `{"mine": feature}`.
        sites: as in `probe`.
        steps: all checkpoints by default.
        baseline: a model; by default the network of step 0.
        hidden: as in `probe`.
        bias: as in `probe`.
        C: as in `probe`.
        fractions: as in `probe`.
        pooled: as in `probe`.
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

    questions = _asked(batch, features, _split(batch, fractions, C, seed, hidden, bias))
    chosen = list(run.steps if steps is None else steps)
    if not chosen or not questions:
        raise ValueError(f"nothing to probe: {len(chosen)} checkpoints of {run!r}, {len(questions)} features")
    last: list[Probes | None] = [None] * len(questions)
    untrained = _untrained(run) if baseline is None else baseline
    others = _probed(untrained, batch, questions, sites, last, False, pooled)
    rows: list[list[xr.Dataset]] = [[] for _ in questions]
    for step in tqdm(chosen, unit="step", disable=not progress):
        found = _probed(run.model(step), batch, questions, sites, last, shuffled, pooled)
        for own, new, other in zip(rows, found, others, strict=True):
            own.append(new.compare_with(other).uninterruptible())
        last = list(found)
    tables = [xr.concat(own, xr.Variable("step", chosen)) for own in rows]
    if isinstance(features, str | Feature):
        return tables[0]
    return xr.concat(tables, xr.Variable("feature", [q.name for q in questions]), join="outer")


def probe_tokens(
    batch: Batch,
    feature: str | Feature,
    seen: Int[Tensor, "batch offset token"] | None = None,
    *,
    hidden: int | None = None,
    C: float | Sequence[float] = (1.0, PAPER),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    seed: int = 0,
) -> Probes:
    """`probe` of one-hot tokens, without a model: what can be read once tokens are attended to and nothing is computed.

    Position s_r of an addition sees a_r, b_r and s_r, and a linear threshold of these bits is the carry.

    Args:
        batch: as in `probe`; so are the other arguments, and with the same `fractions` and `seed` the tests.
        feature: see `batch`.
        seen: positions of the tokens that each offset is given, -1 for none; by default all up to its own.
        hidden: see `batch`.
        C: see `batch`.
        fractions: see `batch`.
        seed: see `batch`.

    Returns:
        Probes of one site, "tokens", whose weights are of (token, value).

    Raises:
        ValueError: as `probe`, and for tokens after the position that they are given to.
    """
    question = _asked(batch, feature, _split(batch, fractions, C, seed, hidden))[0]
    own = question.positions.T[..., None]
    if seen is None:
        seen = torch.arange(batch.inputs.shape[1]).expand(*own.shape[:2], -1).transpose(0, 1)
        seen = seen.where(seen <= own.transpose(0, 1), -1)
    places = seen.cpu().transpose(0, 1)
    if places.shape[:2] != own.shape[:2] or ((places > own) & (own >= 0)).any():
        raise ValueError(f"seen= is [batch offset token], no token after its offset's position; got {list(seen.shape)}")
    tokens = batch.tokens.cpu()[torch.arange(len(batch))[:, None], places.clamp(min=0)]
    x = F.one_hot(tokens).float() * (places >= 0)[..., None]
    return answered(question, ("tokens",), x.flatten(2)[None], None, True, False)


def logistic_fit(
    x: Float[Tensor, "offset n d_model"], y: Int[Tensor, "offset n"], C: float = PAPER
) -> tuple[Float[Tensor, "offset d_model"], Float[Tensor, " offset"]]:
    """Weights and biases of one binary probe an offset: what `ablate_feature` takes as `fit=`."""
    fit = logistic(x, y[..., None].to(x), 1 / (C * x.shape[1]))
    return fit.weights[:, 0], fit.biases[:, 0]


def answer_tokens(batch: Batch) -> Feature:
    """The answer tokens where each is predicted, as classes.

    `probe(model, batch, answer_tokens(batch), "blocks.0.hook_attn_out", hidden=256, pooled=True)` asks what the probe
    of arXiv 2506.13688 asks of the attention's output. The paper's splits rows, so that rows of one sequence are on
    both sides.
    """
    return Feature(batch.answers.clamp(min=0), batch.answer_positions, "classes")


def _split(batch: Batch, *options: Any) -> ProbeSplit:
    return ProbeSplit.of(len(batch), *options, of_what=None if batch.n_new else copies(batch.tokens))


def _asked(
    batch: Batch, features: str | Feature | Sequence[str | Feature] | Mapping[str, str | Feature], parts: ProbeSplit
) -> list[ProbeDataset]:
    """Questions that have names of their own and labels that their kind allows."""
    if not isinstance(features, Mapping):
        each = [features] if isinstance(features, str | Feature) else list(features)
        names = [feature if isinstance(feature, str) else "feature" for feature in each]
        if len(set(names)) < len(names):
            raise ValueError(f"features need names that differ, got {names}; name them: {{'mine': feature}}")
        features = dict(zip(names, each, strict=True))
    asked = [replace(ProbeDataset.of(batch, feature, parts), name=name) for name, feature in features.items()]
    for q in asked:
        if q.kind in NUMBERS:
            if not q.labels[q.there].isfinite().all():
                raise ValueError(f"labels of {q.name} are not finite; give positions of -1 where it has no value")
            continue
        if not q.labels[q.there].sub(0.5).abs().eq(0.5).all():
            raise ValueError(
                f"labels of {q.name} are not 0 and 1; a feature of other numbers is 'integer', 'real' or 'classes'"
            )
        if not parts.bias:
            raise ValueError(f"bias=False is for least squares, and {q.name} is {q.kind}; leave bias out")
        if max(parts.C) == np.inf:
            raise ValueError(f"C=inf leaves separable labels without an optimum, and {q.name} is {q.kind}; try C=1e4")
    return asked


def _untrained(run: Any) -> Any:
    """The network before its first step."""
    if 0 not in run.steps and not hasattr(run, "new_model"):
        raise ValueError(f"{run!r} has no step 0; pass an untrained network as baseline=")
    return run.model(0) if 0 in run.steps else run.new_model()


# One model.


def _probed(
    model: Any,
    batch: Batch,
    questions: Sequence[ProbeDataset],
    sites: str | Sequence[str],
    starts: Sequence[Probes | None],
    shuffled: bool,
    pooled: bool,
) -> list[Probes]:
    names = match_hooks(model, [sites] if isinstance(sites, str) else list(sites))
    states = states_at(model, batch, questions, names)
    return [
        answered(q, tuple(names), x, s, shuffled, pooled) for q, x, s in zip(questions, states, starts, strict=True)
    ]
