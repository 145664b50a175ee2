"""Under `probes`: splits, labels as numbers, activations where a feature is read, fits of all sites and offsets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.hooks import device_of
from plateaulens.metrics.functional.precision import at_least_float32
from plateaulens.probing.hidden import MLPProbe, hidden_layer
from plateaulens.probing.solvers import LinearProbe, least_squares, logistic, multinomial
from plateaulens.tasks.base import NUMBERS, Feature
from plateaulens.tracing.traces import trace

PASS = 1024  # sequences that a model runs on at once, or fewer:
LOGITS = 2**26  # that come out of a pass, read or not


@dataclass(frozen=True)
class ProbeSplit:
    """Sequences to train on, to choose C by and to test on; the Cs; a seed; units of a hidden layer, if any; b."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]
    C: tuple[float, ...]
    seed: int
    hidden: int | None = None
    bias: bool = True

    @classmethod
    def of(
        cls,
        n: int,
        fractions: tuple[float, float, float],
        C: float | Sequence[float],
        seed: int,
        hidden: int | None = None,
        bias: bool = True,
        of_what: Int[Tensor, " n"] | None = None,
    ) -> "ProbeSplit":
        """A random split; of sequences that are `of_what` the same none is trained on and another tested on."""
        if hidden is not None and hidden < 1:
            raise ValueError(
                f"hidden= is how many units a probe has, at least 1 or None for a linear one; got {hidden}"
            )
        if hidden is not None and not bias:
            raise ValueError("a hidden layer keeps its biases; leave out hidden= or bias=False")
        grid = tuple(sorted([C] if isinstance(C, int | float) else C))
        what = torch.arange(n) if of_what is None else of_what
        kinds = int(what.max()) + 1
        place = torch.randperm(kinds, generator=torch.Generator().manual_seed(seed)).argsort()[what]
        order, ends = place.argsort(stable=True), (fractions[0], fractions[0] + fractions[1])
        train, validation, test = order.tensor_split([int((place < round(kinds * end)).sum()) for end in ends])
        if len(grid) == 1:
            train, validation = torch.cat([train, validation]), order[:0]
        wrong = min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or min(len(train), len(test)) == 0
        if wrong or not grid or min(grid) <= 0:
            raise ValueError(
                f"{n} sequences ({kinds} that differ) split into {fractions} with C={C}: fractions add up to 1, none "
                "is negative or leaves a part empty, C is above 0"
            )
        if len(grid) > 1 and len(validation) == 0:
            raise ValueError(f"to choose among C={C} some sequences must be for validation, got fractions={fractions}")
        return cls(train, validation, test, grid, seed, hidden, bias)


def copies(tokens: Int[Tensor, "n pos"]) -> Int[Tensor, " n"]:
    """The number of each sequence, in the order of first appearance; its copies have the same."""
    which = tokens.cpu().unique(dim=0, return_inverse=True)[1]
    first = torch.full_like(which, len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
    return first.argsort().argsort()[which]


@dataclass(frozen=True, eq=False)
class ProbeDataset:
    """A feature, its labels as numbers: classes are 0 but for one 1."""

    name: str
    kind: str
    positions: Int[Tensor, "batch offset"]
    labels: Float[Tensor, "offset batch label"]
    parts: ProbeSplit

    @classmethod
    def of(cls, batch: Batch, feature: str | Feature, parts: ProbeSplit) -> "ProbeDataset":
        """Of a batch."""
        if batch.n_new or (batch.task is None and isinstance(feature, str)):
            raise ValueError("prompts without a true answer have no features; probe a task's batch")
        if isinstance(feature, str):
            name, found = feature, look_up(f"feature of {batch.task!r}", feature, batch.task.features(batch))
        else:
            name, found = "feature", feature
        if found.positions.shape[0] != len(batch):
            raise ValueError(f"the feature is of {len(found.positions)} sequences, the batch has {len(batch)}")
        if (last := int(found.positions.max())) >= (length := batch.inputs.shape[1]):
            raise ValueError(f"{name} is read at position {last}, and the model runs on {length}")
        labels = found.labels.transpose(0, 1)
        labels = F.one_hot(labels) if found.kind == "classes" else labels.reshape(*labels.shape[:2], -1)
        return cls(name, found.kind, found.positions, labels.float(), parts).to("cpu")

    def to(self, device: torch.device | str) -> "ProbeDataset":
        """The same on another device; splits and shuffles are the same on all."""
        return replace(self, positions=self.positions.to(device), labels=self.labels.to(device))

    @property
    def there(self) -> Bool[Tensor, "offset batch"]:
        return self.positions.T >= 0

    def shuffled(self) -> "ProbeDataset":
        """Labels shuffled at each offset, among the sequences that have it."""
        rng = torch.Generator().manual_seed(self.parts.seed + 1)
        missing = (~self.there).float()
        order = missing.argsort(dim=1, stable=True)
        random = (missing + torch.rand(missing.shape, generator=rng)).argsort(dim=1)
        labels = torch.empty_like(self.labels)
        offsets = torch.arange(len(labels))[:, None]
        labels[offsets, order] = self.labels[offsets, random]
        return replace(self, labels=labels)


def states_at(
    model: Any, batch: Batch, questions: Sequence[ProbeDataset], sites: Sequence[str]
) -> list[Float[Tensor, "site offset batch d_model"]]:
    """Activations at each question's positions, where they are to be fitted; anything where it has none."""
    device = device_of(model)
    device = torch.device("cpu") if device.type == "mps" else device  # has no float64
    found: list[list[Tensor]] = [[] for _ in questions]
    size = max(1, min(PASS, LOGITS // (batch.inputs.shape[1] * int(model.cfg.d_vocab))))
    for i in range(0, len(batch), size):
        some = batch[slice(i, i + size)]
        cache = trace(model, some, list(sites)).cache
        rows = torch.arange(len(some))
        if wrong := [site for site in sites if cache[site].shape[:2] != some.inputs.shape]:
            raise ValueError(f"a probe reads one state a position, and {', '.join(wrong)} has no such axes")
        for own, question in zip(found, questions, strict=True):
            places = question.positions[i : i + size].T.clamp(min=0)
            own.append(torch.stack([cache[site].flatten(2)[rows, places].to(device) for site in sites]))
    return [at_least_float32(torch.cat(own, 2)) for own in found]  # in 16 bits nothing is fitted


# Fits, of which every site and offset is a problem.


def best_fit(
    question: ProbeDataset, x: Float[Tensor, "problem batch d_model"], start: LinearProbe | MLPProbe | None
) -> tuple[LinearProbe | MLPProbe, dict[str, Tensor], Float[Tensor, "problem test"]]:
    """The fits of the C that validation likes best, each problem's own; what they score; each test sequence's loss."""
    repeats, parts = len(x) // len(question.labels), question.parts
    y, there = question.labels.repeat(repeats, 1, 1), question.there.repeat(repeats, 1)
    x_train, y_train, fits_in = x[:, parts.train], y[:, parts.train], there[:, parts.train]
    exclusive = (y_train.shape[-1] > 1) & ((y_train.sum(-1) == 1) & (y_train.amax(-1) == 1) | ~fits_in).all(1)
    exclusive = exclusive & (question.kind not in NUMBERS) | (question.kind == "classes")

    def losses(fit: LinearProbe | MLPProbe, part: Int[Tensor, " part"]) -> Float[Tensor, "problem part"]:
        return _losses(fit(x[:, part]), y[:, part], exclusive, question.kind).where(there[:, part], torch.nan)

    fits: list[Any] = []
    for C in parts.C:
        start = _fitted(x_train, y_train, fits_in, exclusive, question, C, start)
        fits.append(start)
    which = torch.zeros(len(x), dtype=torch.long, device=x.device)
    if len(fits) > 1:
        which = torch.stack([losses(fit, parts.validation).nanmean(1).nan_to_num(torch.inf) for fit in fits]).argmin(0)
    best = type(fits[0]).chosen(fits, which)
    chosen = torch.tensor(parts.C, device=x.device)[which]
    own, z, y_test, tested = (losses(best, parts.test), best(x[:, parts.test]), y[:, parts.test], there[:, parts.test])
    scores = {"loss": own.nanmean(1), "train_loss": losses(best, parts.train).nanmean(1)}
    scores |= _scores(z, y_test, tested, exclusive, question.kind)
    return best, {**scores, "C": chosen.where(scores["loss"].isfinite(), torch.nan)}, own


def _fitted(
    x: Float[Tensor, "problem n d_model"],
    y: Float[Tensor, "problem n label"],
    there: Bool[Tensor, "problem n"],
    exclusive: Bool[Tensor, " problem"],
    question: ProbeDataset,
    C: float,
    start: Any,
) -> Any:
    """A Fit, from a start; or a Hidden, whose optima are local, so that it always starts anew."""
    l2, mask, hidden = 1 / (C * there.sum(1).clamp(min=1)), None if there.all() else there, question.parts.hidden
    if question.kind in NUMBERS and hidden is None:
        fit, some = least_squares(x, y, l2, mask, question.parts.bias), y.where(there[..., None], torch.nan)
        varies = ((some - some.nanmean(1, keepdim=True)).abs().nan_to_num().amax(1) > 0) & (there.sum(1) > 1)[:, None]
        return _where(varies.any(1), fit, LinearProbe(*(torch.full_like(t, torch.nan) for t in fit.parts)))
    if exclusive.any() and not exclusive.all():
        sides = [side.nonzero()[:, 0] for side in (exclusive, ~exclusive)]
        fits = [
            _fitted(x[i], y[i], there[i], exclusive[i], question, C, None if start is None else start[i]) for i in sides
        ]
        return type(fits[0]).joined(fits)[torch.cat(sides).argsort()]
    together = bool(exclusive.any())
    if hidden is not None:

        def loss(z: Tensor, y: Tensor) -> Tensor:
            each = _losses(z, y, torch.full((len(z),), together, device=z.device), question.kind)
            return each / 2 if question.kind in NUMBERS else each

        return hidden_layer(x, y, loss, l2, hidden, mask, together, question.parts.seed)
    if together:
        return multinomial(x, y.argmax(-1), y.shape[-1], l2, mask, start)
    return logistic(x, y, l2, mask, start)


def _where(some: Bool[Tensor, " problem"], a: LinearProbe, b: LinearProbe) -> LinearProbe:
    return LinearProbe(*(s.where(some.view(-1, *[1] * (s.ndim - 1)), t) for s, t in zip(a.parts, b.parts, strict=True)))


def _losses(
    z: Float[Tensor, "problem n label"],
    y: Float[Tensor, "problem n label"],
    exclusive: Bool[Tensor, " problem"],
    kind: str,
) -> Float[Tensor, "problem n"]:
    """Of each example, over the labels that vary."""
    if kind in NUMBERS:
        return (z - y).square().mean(-1)
    each = (F.softplus(z) - y * z).nanmean(-1)
    return (-(z.log_softmax(-1) * y).sum(-1)).where(exclusive[:, None], each) if exclusive.any() else each


def _scores(
    z: Float[Tensor, "problem n label"],
    y: Float[Tensor, "problem n label"],
    there: Bool[Tensor, "problem n"],
    exclusive: Bool[Tensor, " problem"],
    kind: str,
) -> dict[str, Float[Tensor, " problem"]]:
    """What a test says beside the loss."""
    if kind in NUMBERS:
        truth = y.where(there[..., None], torch.nan)
        rest, whole = (z - truth).square().nanmean(1), (truth - truth.nanmean(1, keepdim=True)).square().nanmean(1)
        found = {"r2": (1 - rest / whole).where(whole > 0, torch.nan).nanmean(1)}
        if kind == "real":
            vector = y.shape[-1] > 1  # the cosine of numbers is a sign
            cosine = F.cosine_similarity(z, truth, dim=-1) if vector else torch.full_like(z[..., 0], torch.nan)
            found |= {"cosine": cosine.nanmean(1), "absolute_cosine": cosine.abs().nanmean(1)}
        return found
    right = ((z > 0) == (y > 0)).float().where(z.isfinite(), torch.nan).nanmean(-1)
    together = (z.argmax(-1) == y.argmax(-1)).float().where(z.isfinite().all(-1), torch.nan)
    right = together.where(exclusive[:, None], right).where(there, torch.nan)
    ranked = z.log_softmax(-1).where(exclusive[:, None, None], z)  # logits of a softmax have no zero of their own
    return {"accuracy": right.nanmean(1), "auroc": auroc(ranked, y > 0, there).nanmean(1)}


def auroc(
    scores: Float[Tensor, "problem n label"],
    positive: Bool[Tensor, "problem n label"],
    there: Bool[Tensor, "problem n"],
) -> Float[Tensor, "problem label"]:
    """The share of pairs (positive, negative) in the right order, ties counting half; NaN where one kind lacks."""
    z = scores.where(there[..., None], torch.inf).mT.contiguous()
    ordered = z.sort(-1).values
    ranks = (torch.searchsorted(ordered, z) + torch.searchsorted(ordered, z, right=True) + 1) / 2
    yes, no = (positive & there[..., None]).mT, (~positive & there[..., None]).mT
    n, m = yes.sum(-1), no.sum(-1)
    share = ((ranks * yes).sum(-1, dtype=torch.double) - n * (n + 1) / 2) / (n * m)
    return share.to(scores).where((n > 0) & (m > 0) & ~scores.isnan().any(1), torch.nan)
