"""Fitting and scoring of probes, each a regression of scikit-learn at one site and offset.

    probe = fit_probes(dataset, states, ProbeConfig(C=100.0)).probe     # states [site offset batch d_model]
    probe(states.flatten(0, 1))                                         # logits [problem batch label]

A *problem* is the regression of all labels of a feature at one site and one offset.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from joblib import Parallel, delayed
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor

from plateaulens.probing.datasets import ProbeConfig, ProbeDataset
from plateaulens.tasks.base import REGRESSED_KINDS

TOLERANCE = 1e-6  # largest entry of the gradient that is left by a logistic regression
MAX_ITER = 500
MAX_HESSIAN = 2048  # number of coefficients up to which the Hessian of a softmax is factorized
ABSENT = 1e-4  # mean probability that a softmax gives to a class without training examples
RANK = 1e-12  # eigenvalues of x'x below this share of the largest are rounding errors of float32 states

Matrix = Float[np.ndarray, "n d"]
Labels = Float[np.ndarray, "n label"]
Layer = tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, " _"]]  # weights [out d] and biases [out]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear functions w . x + b, one for each problem and label.

    Attributes:
        weights: w; NaN where the label does not vary among the training examples.
        biases: b; NaN likewise.
    """

    weights: Float[Tensor, "problem label d"]
    biases: Float[Tensor, "problem label"]

    def __call__(self, x: Float[Tensor, "problem n d"]) -> Float[Tensor, "problem n label"]:
        """The values of w . x + b."""
        return torch.baddbmm(self.biases[:, None], x, self.weights.mT)

    def __getitem__(self, problems: Int[Tensor, " chosen"]) -> "LinearProbe":
        return LinearProbe(self.weights[problems], self.biases[problems])


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """Networks U relu(W x + b) + c, one for each problem.

    Attributes:
        inner: W and b. Labels that are probed one by one have hidden units of their own.
        outer: U, which is 0 for the units of other labels, and c, which is NaN where the label does not vary among the
            training examples.
    """

    inner: LinearProbe
    outer: LinearProbe

    def __call__(self, x: Float[Tensor, "problem n d"]) -> Float[Tensor, "problem n label"]:
        """The outputs."""
        return self.outer(self.inner(x).relu_())

    def __getitem__(self, problems: Int[Tensor, " chosen"]) -> "MLPProbe":
        return MLPProbe(self.inner[problems], self.outer[problems])


AnyProbe = TypeVar("AnyProbe", LinearProbe, MLPProbe)


@dataclass(frozen=True, eq=False)
class FittedProbes:
    """Probes of one dataset, and what they score.

    Attributes:
        probe: the functions, of sites x offsets problems.
        scores: by name, see `Probes.table`.
        losses: loss of each test sequence; NaN where it lacks the offset.
    """

    probe: LinearProbe | MLPProbe
    scores: dict[str, Float[Tensor, "site offset"]]
    losses: Float[Tensor, "site offset test"]


def fit_probes(
    dataset: ProbeDataset, states: Float[Tensor, "site offset batch d_model"], config: ProbeConfig
) -> FittedProbes:
    """Fit a probe for each site and offset, each with the C that has the least loss on the validation sequences.

    Pooled probes are fitted once for each site, to the rows of all offsets; their losses are those of each offset.
    """
    sites, offsets = states.shape[:2]
    data = dataset.pooled() if config.pooled else dataset
    x = states.flatten(1, 2) if config.pooled else states.flatten(0, 1)
    repeats = len(x) // len(data.labels)
    y, exists = data.labels.repeat(repeats, 1, 1), data.exists.repeat(repeats, 1)
    exclusive = _exclusive(y, exists, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hidden layer's optimum is an approximate one
        fits = Parallel(n_jobs=config.n_jobs, prefer="threads")(
            delayed(_fit_best)(*problem, data, config) for problem in zip(x, y, exists, exclusive.tolist(), strict=True)
        )
    probe = _joined([fit for fit, _ in fits])
    test, train = data.split.test, data.split.train
    z = probe(x[:, test])
    losses = _losses(z, y[:, test], exclusive, data.kind).where(exists[:, test], torch.nan)
    train_losses = _losses(probe(x[:, train]), y[:, train], exclusive, data.kind).where(exists[:, train], torch.nan)
    scores = {
        "loss": losses.nanmean(1),
        "train_loss": train_losses.nanmean(1),
        **_scores(z, y[:, test], exists[:, test], exclusive, data.kind),
    }
    scores["C"] = torch.tensor([C for _, C in fits]).where(scores["loss"].isfinite(), torch.nan)
    losses = losses.view(sites, offsets, -1)
    if config.pooled:
        tested = losses.isfinite().any(2)
        scores = {name: value[:, None].where(tested, torch.nan) for name, value in scores.items()}
        scores["loss"] = losses.nanmean(2)
        probe = probe[torch.arange(sites).repeat_interleave(offsets)]
    return FittedProbes(probe, {name: value.view(sites, offsets) for name, value in scores.items()}, losses)


def fit_logistic(
    x: Float[Tensor, "offset n d_model"], y: Int[Tensor, "offset n"], C: float = 100.0
) -> tuple[Float[Tensor, "offset d_model"], Float[Tensor, " offset"]]:
    """Weights and biases of one binary logistic regression an offset, for `ablate_feature(fit=...)`.

    Args:
        x: states.
        y: labels, 0 or 1; both must occur at each offset.
        C: inverse strength of the penalty, as in scikit-learn.
    """
    layers = [
        _logistic(rows.double().numpy(), labels.numpy(), C) for rows, labels in zip(x.cpu(), y.cpu(), strict=True)
    ]
    weights, biases = (torch.from_numpy(np.concatenate(parts)).to(x) for parts in zip(*layers, strict=True))
    return weights, biases


# One problem.


def _fit_best(
    x: Float[Tensor, "batch d"],
    y: Float[Tensor, "batch label"],
    exists: Bool[Tensor, " batch"],
    exclusive: bool,
    data: ProbeDataset,
    config: ProbeConfig,
) -> tuple[LinearProbe | MLPProbe, float]:
    """The probe with the least loss on the validation sequences, and its C."""
    train, validation = (part[exists[part]] for part in (data.split.train, data.split.validation))
    rows, labels = x[train].double().numpy(), y[train].double().numpy()
    probes = [_fit(rows, labels, data.kind, exclusive, C, config) for C in config.penalties]
    if len(probes) == 1:
        return probes[0], config.penalties[0]
    softmax = torch.tensor([exclusive])
    losses = [_losses(p(x[None, validation]), y[None, validation], softmax, data.kind).nanmean() for p in probes]
    best = int(torch.stack(losses).nan_to_num(torch.inf).argmin())
    return probes[best], config.penalties[best]


def _fit(x: Matrix, y: Labels, kind: str, exclusive: bool, C: float, config: ProbeConfig) -> LinearProbe | MLPProbe:
    """A probe of one problem, fitted to all rows; NaN for labels that do not vary."""
    varies = y.max(0) > y.min(0) if len(y) else np.zeros(y.shape[1], bool)
    if exclusive or (kind in REGRESSED_KINDS and config.hidden is None):
        varies[:] = varies.any()
    layer = _nan_layer(y.shape[1], x.shape[1])
    if config.hidden is None:
        if varies.any():
            _fill(layer, varies, _linear(x, y[:, varies], kind, exclusive, C, config.bias))
        return LinearProbe(*_tensors(layer))
    return _mlp(x, y, varies, kind, exclusive, C, config)


def _linear(x: Matrix, y: Labels, kind: str, exclusive: bool, C: float, bias: bool = True) -> Layer:
    """Ridge regression, softmax regression, or one logistic regression a label."""
    if kind in REGRESSED_KINDS:
        return _ridge(x, y, C, bias)
    if exclusive:
        return _softmax(x, y.argmax(1), y.shape[1], C)
    layers = [_logistic(x, labels, C) for labels in y.T]
    return np.concatenate([w for w, _ in layers]), np.concatenate([b for _, b in layers])


def _ridge(x: Matrix, y: Labels, C: float, bias: bool = True) -> Layer:
    """Least sum of (w . x + b - y)^2 + |w|^2 / C, in closed form; the shortest w where several are least.

    Equal to scikit-learn's `Ridge(alpha=1 / C)`, which does not allow C = inf.
    """
    center, mean = (x.mean(0), y.mean(0)) if bias else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    basis, values = _principal_axes(x - center)
    inverse = np.divide(1, values + 1 / C, out=np.zeros_like(values), where=values + 1 / C > 0)
    weights = ((basis * inverse) @ (basis.T @ ((x - center).T @ (y - mean)))).T
    return weights, mean - weights @ center


def _logistic(x: Matrix, y: Real[np.ndarray, " n"], C: float) -> Layer:
    """Logistic regression: one row of weights for two classes, otherwise a row for each class."""
    center = x.mean(0)
    basis, _ = _principal_axes(x - center)
    rows = len(np.unique(y)) if len(np.unique(y)) > 2 else 1
    solver = "newton-cholesky" if rows * (basis.shape[1] + 1) <= MAX_HESSIAN else "newton-cg"
    fit = LogisticRegression(C=C, solver=solver, tol=TOLERANCE, max_iter=MAX_ITER).fit((x - center) @ basis, y)
    weights = fit.coef_ @ basis.T
    return weights, fit.intercept_ - weights @ center


def _principal_axes(x: Matrix) -> tuple[Float[np.ndarray, "d rank"], Float[np.ndarray, " rank"]]:
    """Eigenvectors of x'x and their eigenvalues, without those of rounding errors.

    Weights of a penalized regression are combinations of the rows of x, and the rotation does not change their norm, so
    that the optimum stays the same and the Hessian has full rank.
    """
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = values >= RANK * values[-1]
    return vectors[:, kept], np.maximum(values[kept], 0)


def _softmax(x: Matrix, y: Int[np.ndarray, " n"], classes: int, C: float) -> Layer:
    """Softmax regression with a row of weights for each of `classes`, whether or not it occurs in y."""
    present = np.unique(y)
    # Two rows w / 2 and -w / 2 of a softmax have half the penalty of the one row w of a binary regression.
    weights, biases = _logistic(x, y, C if len(present) > 2 else 2 * C)
    return _all_classes(weights, biases, present, classes, x)


def _all_classes(
    weights: Float[np.ndarray, "row d"],
    biases: Float[np.ndarray, " row"],
    present: Int[np.ndarray, " present"],
    classes: int,
    x: Matrix,
) -> Layer:
    """A row for each class: two of opposite sign for a binary regression, a small probability for absent classes."""
    if len(present) == 2:
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    biases = biases - biases.mean()
    absent = np.log(ABSENT * len(x)) - logsumexp(-logsumexp(x @ weights.T + biases, axis=1))
    every = np.zeros((classes, x.shape[1])), np.full(classes, absent)
    _fill(every, present, (weights, biases))
    return every


def _mlp(
    x: Matrix,
    y: Labels,
    varies: Bool[np.ndarray, " label"],
    kind: str,
    exclusive: bool,
    C: float,
    config: ProbeConfig,
) -> MLPProbe:
    """One network with an output for each class, or one network a label, side by side in one layer of units."""
    width, labels = config.hidden or 1, y.shape[1]
    networks = 1 if exclusive else labels
    inner = np.zeros((networks * width, x.shape[1])), np.zeros(networks * width)
    outer = np.zeros((labels, networks * width)), np.where(varies, 0.0, np.nan)
    options = {"hidden_layer_sizes": (width,), "solver": "lbfgs", "alpha": 1 / C, "max_iter": MAX_ITER}
    Network = MLPRegressor if kind in REGRESSED_KINDS else MLPClassifier
    for i in range(networks):
        if not varies[i]:
            continue
        targets = y.argmax(1) if exclusive else y[:, i]
        fit = Network(random_state=config.seed, **options).fit(x, targets)
        units = slice(i * width, (i + 1) * width)
        inner[0][units], inner[1][units] = fit.coefs_[0].T, fit.intercepts_[0]
        top = fit.coefs_[1].T, fit.intercepts_[1]
        if exclusive:
            hidden = np.maximum(x @ inner[0].T + inner[1], 0)
            top = _all_classes(*top, fit.classes_, labels, hidden)
        rows = slice(None) if exclusive else slice(i, i + 1)
        outer[0][rows, units], outer[1][rows] = top
    return MLPProbe(LinearProbe(*_tensors(inner)), LinearProbe(*_tensors(outer)))


def _nan_layer(rows: int, columns: int) -> Layer:
    return np.full((rows, columns), np.nan), np.full(rows, np.nan)


def _fill(layer: Layer, rows: np.ndarray, values: Layer) -> None:
    layer[0][rows], layer[1][rows] = values


def _tensors(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weights and biases of one problem."""
    weights, biases = (torch.from_numpy(part).float()[None] for part in layer)
    return weights, biases


def _joined(probes: Sequence[LinearProbe | MLPProbe]) -> LinearProbe | MLPProbe:
    """The problems of several probes, one after another; hidden layers are padded to one width with idle units."""
    networks = [probe for probe in probes if isinstance(probe, MLPProbe)]
    if not networks:
        return _concatenated([probe for probe in probes if isinstance(probe, LinearProbe)])
    width = max(probe.inner.biases.shape[1] for probe in networks)
    inner, outer = [], []
    for probe in networks:
        idle = width - probe.inner.biases.shape[1]
        inner.append(LinearProbe(F.pad(probe.inner.weights, (0, 0, 0, idle)), F.pad(probe.inner.biases, (0, idle))))
        outer.append(LinearProbe(F.pad(probe.outer.weights, (0, idle)), probe.outer.biases))
    return MLPProbe(_concatenated(inner), _concatenated(outer))


def _concatenated(probes: Sequence[LinearProbe]) -> LinearProbe:
    return LinearProbe(torch.cat([probe.weights for probe in probes]), torch.cat([probe.biases for probe in probes]))


# Losses and scores.


def _exclusive(
    y: Float[Tensor, "problem batch label"], exists: Bool[Tensor, "problem batch"], data: ProbeDataset
) -> Bool[Tensor, " problem"]:
    """Whether exactly one label of each training example is 1, so that a softmax predicts them together."""
    if data.kind in REGRESSED_KINDS or data.kind == "classes":
        return torch.full((len(y),), data.kind == "classes")
    y, exists = y[:, data.split.train], exists[:, data.split.train]
    one_hot = (y.sum(-1) == 1) & (y.amax(-1) == 1)
    return (one_hot | ~exists).all(1) & (y.shape[-1] > 1)


def _losses(
    z: Float[Tensor, "problem n label"],
    y: Float[Tensor, "problem n label"],
    exclusive: Bool[Tensor, " problem"],
    kind: str,
) -> Float[Tensor, "problem n"]:
    """Loss of each example, in the mean over the labels that vary: nats, or squared error for numbers."""
    if kind in REGRESSED_KINDS:
        return (z - y).square().mean(-1)
    binary = (F.softplus(z) - y * z).nanmean(-1)
    return (-(z.log_softmax(-1) * y).sum(-1)).where(exclusive[:, None], binary) if exclusive.any() else binary


def _scores(
    z: Float[Tensor, "problem n label"],
    y: Float[Tensor, "problem n label"],
    exists: Bool[Tensor, "problem n"],
    exclusive: Bool[Tensor, " problem"],
    kind: str,
) -> dict[str, Float[Tensor, " problem"]]:
    """Test scores other than the loss, see `Probes.table`."""
    if kind in REGRESSED_KINDS:
        truth = y.where(exists[..., None], torch.nan)
        error, variance = (z - truth).square().nanmean(1), (truth - truth.nanmean(1, keepdim=True)).square().nanmean(1)
        scores = {"r2": (1 - error / variance).where(variance > 0, torch.nan).nanmean(1)}
        if kind == "real":
            vector = y.shape[-1] > 1  # the cosine of numbers is a sign
            cosine = F.cosine_similarity(z, truth, dim=-1) if vector else torch.full_like(z[..., 0], torch.nan)
            scores |= {"cosine": cosine.nanmean(1), "absolute_cosine": cosine.abs().nanmean(1)}
        return scores
    correct = ((z > 0) == (y > 0)).float().where(z.isfinite(), torch.nan).nanmean(-1)
    correct_class = (z.argmax(-1) == y.argmax(-1)).float().where(z.isfinite().all(-1), torch.nan)
    correct = correct_class.where(exclusive[:, None], correct).where(exists, torch.nan)
    ranked = z.log_softmax(-1).where(exclusive[:, None, None], z)  # a softmax's logits have no common zero
    return {"accuracy": correct.nanmean(1), "auroc": auroc(ranked, y > 0, exists).nanmean(1)}


def auroc(
    scores: Float[Tensor, "problem n label"],
    positive: Bool[Tensor, "problem n label"],
    exists: Bool[Tensor, "problem n"],
) -> Float[Tensor, "problem label"]:
    """Area under the ROC curve: the share of pairs (positive, negative) in the right order, ties counting half.

    Returns:
        One value for each problem and label; NaN where there is no positive or no negative example.
    """
    z = scores.where(exists[..., None], torch.inf).mT.contiguous()
    ordered = z.sort(-1).values
    ranks = (torch.searchsorted(ordered, z) + torch.searchsorted(ordered, z, right=True) + 1) / 2
    positives, negatives = (positive & exists[..., None]).mT, (~positive & exists[..., None]).mT
    n, m = positives.sum(-1), negatives.sum(-1)
    share = ((ranks * positives).sum(-1, dtype=torch.double) - n * (n + 1) / 2) / (n * m)
    return share.to(scores).where((n > 0) & (m > 0) & ~scores.isnan().any(1), torch.nan)
