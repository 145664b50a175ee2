"""Probes: what can be read from activations, layer by layer and position by position, and from which step on.

    probes = probe(model, batch, "carry", baseline=untrained)            # -> Probes
    probes.thirds()                                                      # test loss and that of the untrained network
    table = probe_checkpoints(run, batch, ["carry", "first_operand"])    # every checkpoint -> xarray
    print(quiet_or_loud(table, "carry", plateau_steps=[64, 96], after_step=420))
    probe(model, batch, "carry", hidden=32)                              # a hidden layer, for nonlinear features

As in arXiv 2505.03997, a probe is an independent logistic regression for each site, offset and label. Sequences are
split, not rows, and copies of a sequence are in one part of the split (the paper's code keeps (a, b) and (b, a)
together, too). The loss of a probe on an untrained network is better than chance: compare with a `baseline`. A probe
that succeeds does not show a computation where a linear probe of the visible tokens succeeds too: see `probe_tokens`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.hooks import match_hooks
from plateaulens.probing.datasets import PAPER_C, ProbeConfig, ProbeDataset, ProbeSplit, group_copies, states_at
from plateaulens.probing.results import Probes, fit_dataset
from plateaulens.protocols import CheckpointSeries, HookedModel
from plateaulens.tasks.base import REGRESSED_KINDS, Feature

RESIDUAL = "blocks.*.hook_resid_post"


def probe(
    model: HookedModel,
    batch: Batch,
    feature: str | Feature,
    sites: str | Sequence[str] = RESIDUAL,
    *,
    baseline: HookedModel | None = None,
    hidden: int | None = None,
    bias: bool = True,
    C: float | Sequence[float] = (1.0, PAPER_C),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    pooled: bool = False,
    shuffled: bool = True,
    seed: int = 0,
    n_jobs: int = 2,
) -> Probes:
    """Fit a probe of `feature` at every site and offset, and test it on other sequences.

    A probe minimizes mean loss + |w|^2 / (2 C n) over n examples, with scikit-learn's estimators: logistic regression
    for labels of 0 and 1, softmax regression for classes (and for labels of which each example has exactly one), ridge
    regression for numbers, whose loss is half the squared error. With `hidden`, a probe is a network with one layer of
    rectified units (`MLPClassifier`, `MLPRegressor`), w are all its weights, and its optimum is a local one.

    Args:
        model: the hooked model.
        batch: sequences of a task, teacher-forced; a probe learns more from more of them.
        feature: name of a feature of the task, or a feature of this batch.
        sites: hook names or globs.
        baseline: another model to probe in the same way, usually an untrained one.
        hidden: number of hidden units; None for linear probes.
        bias: whether linear probes of numbers have a bias; those of arXiv 2410.22244 have none.
        C: inverse strength of the penalty, as in scikit-learn, or several values, of which each probe takes the one
            with the least loss on the validation sequences. 100 is the paper's; inf (for numbers) means no penalty.
        fractions: shares of the sequences to train on, to choose C by and to test on. With one C, the second share is
            trained on, too.
        pooled: whether to fit one probe a site to the rows of all offsets; losses are by offset all the same.
        shuffled: whether to fit probes to shuffled labels, too, as a control.
        seed: seed of the split, of the shuffling and of a hidden layer's initial weights.
        n_jobs: number of threads that fit probes.

    Raises:
        ValueError: for an unknown feature or site, prompts without a task, labels that are not of their kind, `hidden`
            below 1, no `bias` where it is needed, fractions that leave a part empty, or positions that the model does
            not reach.
    """
    config = ProbeConfig(
        hidden=hidden,
        bias=bias,
        C=C,
        fractions=fractions,
        pooled=pooled,
        shuffled=shuffled,
        seed=seed,
        n_jobs=n_jobs,
    )
    datasets = _datasets(batch, feature, config)
    probes = _probe_model(model, batch, datasets, sites, config)[0]
    if baseline is None:
        return probes
    return probes.compare_with(_probe_model(baseline, batch, datasets, sites, replace(config, shuffled=False))[0])


def probe_checkpoints(
    run: CheckpointSeries,
    batch: Batch,
    features: str | Feature | Sequence[str | Feature] | Mapping[str, str | Feature],
    sites: str | Sequence[str] = RESIDUAL,
    *,
    steps: Sequence[int] | None = None,
    baseline: HookedModel | None = None,
    hidden: int | None = None,
    bias: bool = True,
    C: float | Sequence[float] = (1.0, PAPER_C),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    pooled: bool = False,
    shuffled: bool = True,
    seed: int = 0,
    n_jobs: int = 2,
    progress: bool = True,
) -> xr.Dataset:
    """Apply `probe` to every checkpoint.

    Args:
        run: a `Run`, a suite of checkpoints, or another object with `steps` and `model(step)`.
        batch: sequences of a task, as for `probe`.
        features: one feature, or several: names of the task's features, or a mapping `{"mine": feature}`.
        sites: hook names or globs.
        steps: steps of the checkpoints to probe; all by default.
        baseline: model to compare with; the network of step 0 by default.
        hidden: number of hidden units, as for `probe`.
        bias: whether probes of numbers have a bias, as for `probe`.
        C: inverse strength of the penalty, as for `probe`.
        fractions: shares of the split, as for `probe`.
        pooled: whether to fit one probe for all offsets, as for `probe`.
        shuffled: whether to fit shuffled labels too, as for `probe`.
        seed: seed, as for `probe`.
        n_jobs: number of threads that fit probes.
        progress: whether to show a progress bar.

    Returns:
        The tables of `Probes` over (step, site, offset), with an axis `feature` in front if several were given, NaN at
        offsets that a feature does not have; `losses` and `baseline_losses` have an axis of test sequences, too.

    Raises:
        ValueError: as `probe`, and if there is no checkpoint or no untrained network.
    """
    from tqdm.auto import tqdm

    config = ProbeConfig(
        hidden=hidden,
        bias=bias,
        C=C,
        fractions=fractions,
        pooled=pooled,
        shuffled=shuffled,
        seed=seed,
        n_jobs=n_jobs,
    )
    datasets = _datasets(batch, features, config)
    chosen = list(run.steps if steps is None else steps)
    if not chosen or not datasets:
        raise ValueError(f"nothing to probe: {len(chosen)} checkpoints of {run!r}, {len(datasets)} features")
    untrained = _untrained(run) if baseline is None else baseline
    references = _probe_model(untrained, batch, datasets, sites, replace(config, shuffled=False))
    tables: list[list[xr.Dataset]] = [[] for _ in datasets]
    for step in tqdm(chosen, unit="step", disable=not progress):
        for by_step, probes, reference in zip(
            tables, _probe_model(run.model(step), batch, datasets, sites, config), references, strict=True
        ):
            by_step.append(probes.compare_with(reference).to_dataset())
    joined = [xr.concat(by_step, xr.Variable("step", chosen)) for by_step in tables]
    if isinstance(features, str | Feature):
        return joined[0]
    return xr.concat(joined, xr.Variable("feature", [dataset.name for dataset in datasets]), join="outer")


def probe_tokens(
    batch: Batch,
    feature: str | Feature,
    visible: Int[Tensor, "batch offset token"] | None = None,
    *,
    hidden: int | None = None,
    C: float | Sequence[float] = (1.0, PAPER_C),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    seed: int = 0,
    n_jobs: int = 2,
) -> Probes:
    """Probe one-hot tokens, without a model: what can be read if tokens are attended to and nothing is computed.

    In an addition, position s_r sees a_r, b_r and s_r, and the carry is a linear threshold of these bits.

    Args:
        batch: sequences of a task, as for `probe`; equal `fractions` and `seed` give equal test sequences.
        feature: name of a feature of the task, or a feature of this batch.
        visible: positions of the tokens that each offset is given, -1 for none; by default all up to its own.
        hidden: number of hidden units, as for `probe`.
        C: inverse strength of the penalty, as for `probe`.
        fractions: shares of the split, as for `probe`.
        seed: seed, as for `probe`.
        n_jobs: number of threads that fit probes.

    Returns:
        Probes of one site, "tokens", whose weights are of (token, value).

    Raises:
        ValueError: as `probe`, and for tokens after the position that they are given to.
    """
    config = ProbeConfig(hidden=hidden, C=C, fractions=fractions, seed=seed, n_jobs=n_jobs)
    dataset = _datasets(batch, feature, config)[0]
    last = dataset.positions.T[..., None]
    if visible is None:
        visible = torch.arange(batch.inputs.shape[1]).expand(*last.shape[:2], -1).transpose(0, 1)
        visible = visible.where(visible <= last.transpose(0, 1), -1)
    positions = visible.cpu().transpose(0, 1)
    if positions.shape[:2] != last.shape[:2] or ((positions > last) & (last >= 0)).any():
        raise ValueError(
            f"visible= is [batch offset token], no token after its offset's position; got {list(visible.shape)}"
        )
    tokens = batch.tokens.cpu()[torch.arange(len(batch))[:, None], positions.clamp(min=0)]
    x = F.one_hot(tokens).float() * (positions >= 0)[..., None]
    return fit_dataset(dataset, ("tokens",), x.flatten(2)[None], config)


def answer_tokens(batch: Batch) -> Feature:
    """The answer tokens as classes, at the positions that predict them.

    `probe(model, batch, answer_tokens(batch), "blocks.0.hook_attn_out", hidden=256, pooled=True)` is the probe of
    arXiv 2506.13688 on the output of attention, except that the paper splits rows, so that rows of one sequence are in
    both parts.
    """
    return Feature(batch.answers.clamp(min=0), batch.answer_positions, "classes")


def _datasets(
    batch: Batch,
    features: str | Feature | Sequence[str | Feature] | Mapping[str, str | Feature],
    config: ProbeConfig,
) -> list[ProbeDataset]:
    """The datasets of features with different names and labels that are allowed for their kind."""
    if not isinstance(features, Mapping):
        several = [features] if isinstance(features, str | Feature) else list(features)
        names = [feature if isinstance(feature, str) else "feature" for feature in several]
        if len(set(names)) < len(names):
            raise ValueError(f"features need different names, got {names}; name them: {{'mine': feature}}")
        features = dict(zip(names, several, strict=True))
    groups = torch.arange(len(batch)) if batch.n_new else group_copies(batch.tokens)
    split = ProbeSplit.of(groups, config)
    datasets = [replace(ProbeDataset.of(batch, feature, split), name=name) for name, feature in features.items()]
    for dataset in datasets:
        _check_labels(dataset, config)
    return datasets


def _check_labels(dataset: ProbeDataset, config: ProbeConfig) -> None:
    name, labels = dataset.name, dataset.labels[dataset.exists]
    if dataset.kind in REGRESSED_KINDS:
        if not labels.isfinite().all():
            raise ValueError(f"labels of {name} are not finite; give positions of -1 where it has no value")
        return
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"labels of {name} are not 0 and 1; a feature with other numbers is 'integer', 'real' or 'classes'"
        )
    if not config.bias:
        raise ValueError(f"bias=False is for least squares, and {name} is of kind {dataset.kind!r}; leave bias out")
    if config.penalties[-1] == np.inf:
        raise ValueError(
            f"C=inf leaves separable labels without an optimum, and {name} is of kind {dataset.kind!r}; try C=1e4"
        )


def _untrained(run: CheckpointSeries) -> HookedModel:
    """The network before its first step."""
    if 0 in run.steps:
        return run.model(0)
    if (new_model := getattr(run, "new_model", None)) is None:
        raise ValueError(f"{run!r} has no step 0; pass an untrained network as baseline=")
    return new_model()


def _probe_model(
    model: HookedModel, batch: Batch, datasets: Sequence[ProbeDataset], sites: str | Sequence[str], config: ProbeConfig
) -> list[Probes]:
    """Probes of every dataset, from the same passes of the model."""
    names = match_hooks(model, [sites] if isinstance(sites, str) else list(sites))
    states = states_at(model, batch, datasets, names)
    return [fit_dataset(dataset, tuple(names), x, config) for dataset, x in zip(datasets, states, strict=True)]
