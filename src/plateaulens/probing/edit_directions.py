"""What an ablation takes out of the states at each offset of a feature: the methods, and the controls to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.hooks import device_of
from plateaulens.metrics.functional.precision import at_least_float32
from plateaulens.tasks.base import Feature
from plateaulens.tracing.traces import trace

# From states [offset n d_model] and labels [offset n] to weights [offset d_model] and biases [offset].
Fitter = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SAME = 1e-3  # of a direction, the share outside the others below which it counts as one of them
STEEPEST = 32.0  # bound of the exponent a of "variance"


@dataclass(frozen=True, eq=False)
class EditDirections:
    """Directions of each offset, and what they are put to; `joint` ones are orthonormal, with zeros for none last."""

    basis: Float[Tensor, "offset k d_model"]
    target: Float[Tensor, "offset k"]
    joint: bool

    @property
    def there(self) -> Bool[Tensor, "offset k"]:
        return self.basis.any(-1)


class FitData:
    """The training examples' states and labels at each offset, those that have it first; and how probes are fitted."""

    def __init__(
        self, model: Any, batch: Batch, feature: Feature, sites: tuple[str, ...], fit: Fitter | None, k: int
    ) -> None:
        cache = trace(model, batch, list(dict.fromkeys(sites))).cache
        positions = feature.positions.T.to(device_of(model))
        exist, examples = positions >= 0, torch.arange(len(batch), device=positions.device)
        order = (~exist).long().argsort(dim=1, stable=True)
        states = at_least_float32(
            torch.stack([cache[s][examples, p.clamp(min=0)] for s, p in zip(sites, positions, strict=True)])
        )
        labels = feature.labels.to(positions.device).transpose(0, 1)
        labels = F.one_hot(labels.long().clamp(min=0)) if feature.kind == "classes" else labels
        labels = labels.reshape(*positions.shape, -1)
        offsets = torch.arange(len(positions), device=positions.device)[:, None]
        self.fit, self.k, self.counts = fit, k, exist.sum(1)
        self.states, self.labels = states[offsets, order], labels[offsets, order]
        self.inside = exist[offsets, order][..., None]
        self.n = self.counts.clamp(min=1)[:, None].to(states)
        self.mean = self.states.where(self.inside, 0.0).sum(1) / self.n
        centered = (self.states - self.mean[:, None]).where(self.inside, 0.0).double()
        self.covariance = centered.mT @ centered / self.n[..., None]

    def shuffled(self, rng: torch.Generator) -> Int[Tensor, "offset n label"]:
        """The labels, shuffled at each offset among the examples that have it."""
        new = self.labels.clone()
        for labels, n in zip(new, self.counts.tolist()):
            labels[:n] = labels[torch.randperm(n, generator=rng).to(labels.device)]
        return new

    def fitted(
        self, states: Float[Tensor, "offset n d_model"], labels: Int[Tensor, "offset n label"]
    ) -> tuple[Float[Tensor, "offset label d_model"], Float[Tensor, "offset label"]]:
        """Probes of all offsets, as many at once as have equally many examples; zeros where a label does not vary."""
        if self.fit is None:
            raise ValueError("the method or a control fits probes: give fit=, or leave 'shuffled' out of controls=")
        weights = states.new_zeros(*labels.shape[::2], states.shape[-1])
        biases = states.new_zeros(labels.shape[::2])
        for n in self.counts.unique().tolist():
            for label in range(labels.shape[-1]):
                y = labels[:, :n, label]
                some = (self.counts == n) & (y != y[:, :1]).any(1)
                if some.any():
                    weights[some, label], biases[some, label] = self.fit(states[some, :n], y[some])
        return weights, biases


def hyperplanes(
    weights: Float[Tensor, "offset label d_model"], biases: Float[Tensor, "offset label"]
) -> EditDirections:
    """Each row's own projection, onto w . x + b = 0."""
    size = weights.norm(dim=-1, keepdim=True)
    target = (-biases / size[..., 0]).where(size[..., 0] > 0, 0.0)
    return EditDirections((weights / size).where(size > 0, 0.0), target, joint=False)


def _intersection(
    weights: Float[Tensor, "offset label d_model"], biases: Float[Tensor, "offset label"]
) -> EditDirections:
    """Onto w . x + b = 0 for all rows at once: with W = A diag(s) V, rows V and targets -A'b / s."""
    rows = hyperplanes(weights, biases)
    a, s, v = torch.linalg.svd(rows.basis, full_matrices=False)
    there = s > SAME * s[:, :1].clamp(min=SAME)
    target = torch.einsum("olk,ol->ok", a, rows.target) / s
    return EditDirections(v.where(there[..., None], 0.0), target.where(there, 0.0), joint=True)


def _by_hyperplane(known: FitData, labels: Int[Tensor, "offset n label"]) -> EditDirections:
    return hyperplanes(*known.fitted(known.states, labels))


def _by_nullspace(known: FitData, labels: Int[Tensor, "offset n label"]) -> EditDirections:
    states, (offsets, d_model) = known.states, known.mean.shape
    if known.k * labels.shape[-1] >= d_model:
        raise ValueError(f"k={known.k} fits of {labels.shape[-1]} labels leave nothing of {d_model} dimensions")
    basis, target = states.new_zeros(offsets, 0, d_model), states.new_zeros(offsets, 0)
    for _ in range(known.k):
        weights, biases = known.fitted(states, labels)
        rest = weights
        for _ in range(2):  # once leaves rounding errors, which matter where little is left
            gone = rest @ basis.mT  # the part along what was projected out, where every state is at its target
            rest, biases = rest - gone @ basis, biases + torch.einsum("olk,ok->ol", gone, target)
        rest = rest.where(rest.norm(dim=-1, keepdim=True) > SAME * weights.norm(dim=-1, keepdim=True), 0.0)
        new = _intersection(rest, biases)
        states = states - (states @ new.basis.mT - new.target[:, None]) @ new.basis
        basis, target = torch.cat([basis, new.basis], 1), torch.cat([target, new.target], 1)
    order = (~basis.any(-1)).long().argsort(dim=1, stable=True)
    rows = torch.arange(offsets, device=order.device)[:, None]
    return EditDirections(basis[rows, order], target[rows, order], joint=True)


def _by_mean_difference(known: FitData, labels: Int[Tensor, "offset n label"]) -> EditDirections:
    y = labels.to(known.states).where(known.inside, 0.0)
    centered = (y - y.sum(1, keepdim=True) / known.n[..., None]).where(known.inside, 0.0)
    covariances = centered.mT @ (known.states - known.mean[:, None])
    varies = (centered.abs().amax(1) > 0)[..., None]
    basis = _intersection(covariances.where(varies, 0.0), covariances.new_zeros(covariances.shape[:2])).basis
    return EditDirections(basis, _along(known.mean, basis), joint=True)


def _along(mean: Float[Tensor, "offset d_model"], basis: Float[Tensor, "offset k d_model"]) -> Tensor:
    return torch.einsum("om,okm->ok", mean, basis)


Method = Callable[[FitData, Tensor], EditDirections]
METHODS: dict[str, Method] = {
    "hyperplane": _by_hyperplane,
    "nullspace": _by_nullspace,
    "mean_difference": _by_mean_difference,
}


# Controls.


def _gaussian(removal: EditDirections, known: FitData | None, find: Method, rng: torch.Generator) -> EditDirections:
    basis = _orthonormal(torch.randn(removal.basis.shape, generator=rng).to(removal.basis), removal)
    if find is not _by_mean_difference:
        return EditDirections(basis, removal.target, removal.joint)
    assert known is not None
    return EditDirections(basis, _along(known.mean, basis), removal.joint)


def _shuffled(removal: EditDirections, known: FitData | None, find: Method, rng: torch.Generator) -> EditDirections:
    assert known is not None
    return find(known, known.shuffled(rng))


def _of_equal_variance(
    removal: EditDirections, known: FitData | None, find: Method, rng: torch.Generator
) -> EditDirections:
    assert known is not None
    every = torch.eye(removal.basis.shape[-1]).to(known.covariance).expand_as(known.covariance)
    return _matched(removal, known, every, rng)


def _orthogonal(removal: EditDirections, known: FitData | None, find: Method, rng: torch.Generator) -> EditDirections:
    assert known is not None
    rows = removal.basis.double()
    return _matched(removal, known, torch.linalg.svd(rows, full_matrices=True).Vh[:, rows.shape[1] :].mT, rng)


def _matched(
    removal: EditDirections, known: FitData, frame: Float[Tensor, "offset d_model within"], rng: torch.Generator
) -> EditDirections:
    """Directions within a frame. Bisection for a: tr(R S R') grows with it, as far as so many directions reach."""
    offsets, k, _ = removal.basis.shape
    group = k if removal.joint else 1  # directions that share an exponent
    owner = torch.arange(offsets, device=removal.basis.device).repeat_interleave(k // group)
    u, there = removal.basis.double().unflatten(1, (-1, group)).flatten(0, 1), removal.there.reshape(-1, group, 1)
    asked = torch.einsum("okm,omn,okn->o", u, known.covariance[owner], u)
    spectrum, vectors = torch.linalg.eigh(frame.mT @ known.covariance @ frame)
    vectors = frame @ vectors
    spectrum = spectrum.clamp(min=1e-12 * spectrum[:, -1:].clamp(min=1e-30))[owner, None]
    noise = torch.randn(*u.shape[:2], frame.shape[-1], generator=rng, dtype=torch.double).to(u)

    def directions(a: Float[Tensor, " group"]) -> Float[Tensor, "group k d_model"]:
        logs = (a[:, None, None] * spectrum.log()).sort(dim=-1, descending=True)  # the order that QR is exact in
        rows = noise * (logs.values - logs.values[..., :1]).exp()
        return torch.zeros_like(noise).scatter(2, logs.indices.expand_as(noise), torch.linalg.qr(rows.mT).Q.mT) * there

    low = torch.full_like(asked, -STEEPEST)
    high = -low
    for _ in range(50):
        middle = (low + high) / 2
        less = (directions(middle).square() * spectrum).sum((1, 2)) < asked
        low, high = middle.where(less, low), high.where(less, middle)
    basis = (directions(high) @ vectors[owner].mT).view(removal.basis.shape).to(removal.basis)
    moved = _along(known.mean, removal.basis) - removal.target
    return EditDirections(basis, (_along(known.mean, basis) - moved).where(removal.there, 0.0), removal.joint)


def _orthonormal(rows: Float[Tensor, "offset k d_model"], like: EditDirections) -> Float[Tensor, "offset k d_model"]:
    unit = torch.linalg.qr(rows.mT).Q.mT if like.joint else rows / rows.norm(dim=-1, keepdim=True)
    return unit * like.there[..., None]


Control = Callable[[EditDirections, FitData | None, Method, torch.Generator], EditDirections]
CONTROLS: dict[str, Control] = {
    "gaussian": _gaussian,
    "shuffled": _shuffled,
    "variance": _of_equal_variance,
    "orthogonal": _orthogonal,
}


def no_orthogonal_control(removal: EditDirections) -> str:
    """The reason why no control is orthogonal to a removal; "" if there can be one."""
    k, d_model = removal.basis.shape[1:]
    if (left := max(0, d_model - k)) >= (k if removal.joint else 1):
        return ""
    return f"{k} directions leave {left} of {d_model} dimensions, too few for the control 'orthogonal'"


def shared(removal: EditDirections, other: EditDirections, known: FitData | None) -> tuple[float, float]:
    """What another removal takes of the directions of this one, in the mean over offsets, and of its variance, in all.

    The latter is NaN without examples, and above 1 where the other takes more.
    """
    rows, others = _rows_of(removal), _rows_of(other)
    used = rows.any(-1).any(-1)
    overlap = (rows @ others.mT).square().sum((1, 2)) / rows.square().sum((1, 2))
    if known is None:
        return float(overlap[used].mean()), float("nan")
    own, theirs = (torch.einsum("okm,omn,okn->o", r, known.covariance, r) for r in (rows, others))
    return float(overlap[used].mean()), float(theirs[used].sum() / own[used].sum())


def _rows_of(removal: EditDirections) -> Float[Tensor, "offset k d_model"]:
    """An orthonormal basis of what is removed, with zeros for none."""
    _, s, v = torch.linalg.svd(removal.basis.double(), full_matrices=False)
    return v.where((s > SAME * s[:, :1].clamp(min=SAME))[..., None], 0.0)
