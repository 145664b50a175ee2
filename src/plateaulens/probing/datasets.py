"""What probes are fitted to: a split of the sequences, the labels of a feature, and the states at its positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.metrics.functional.precision import at_least_float32
from plateaulens.protocols import HookedModel
from plateaulens.tasks.base import Feature
from plateaulens.tracing.traces import trace

MAX_SEQUENCES = 1024  # sequences in one pass of a model
MAX_LOGITS = 2**26  # logits that one pass may compute, which limits the number of sequences further
PAPER_C = 100.0  # scikit-learn's C in arXiv 2505.03997


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How probes are fitted and tested; `probe` describes each field.

    Raises:
        ValueError: if C is not positive, a fraction is negative, the fractions do not add up to 1, `hidden` is below 1,
            or `hidden` is combined with bias=False.
    """

    hidden: int | None = None
    bias: bool = True
    C: float | Sequence[float] = (1.0, PAPER_C)
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3)
    pooled: bool = False
    shuffled: bool = True
    seed: int = 0
    n_jobs: int = 2

    def __post_init__(self) -> None:
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(
                f"hidden= is the number of hidden units, at least 1, or None for linear probes; got {self.hidden}"
            )
        if self.hidden is not None and not self.bias:
            raise ValueError("a hidden layer keeps its biases; leave out hidden= or bias=False")
        if not self.penalties or not self.penalties[0] > 0:
            raise ValueError(f"C= must be above 0, and at least one value; got {self.C}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions= must add up to 1, and none is negative; got {self.fractions}")

    @property
    def penalties(self) -> tuple[float, ...]:
        """The values of C to choose from, ascending: the strongest penalty first."""
        return tuple(sorted([self.C] if isinstance(self.C, int | float) else self.C))


@dataclass(frozen=True)
class ProbeSplit:
    """Indices of the sequences to train on, to choose C by and to test on."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    @classmethod
    def of(cls, groups: Int[Tensor, " batch"], config: ProbeConfig) -> "ProbeSplit":
        """A random split in which all sequences of one group are in one part.

        With a single value of C there is nothing to choose, and the validation sequences are trained on.

        Args:
            groups: number of the group of each sequence, from 0; see `group_copies`.
            config: fractions, seed and values of C.

        Raises:
            ValueError: if a part that is needed is empty.
        """
        n_groups, fractions = int(groups.max()) + 1, config.fractions
        random = torch.Generator().manual_seed(config.seed)
        rank = torch.randperm(n_groups, generator=random).argsort()[groups]
        ends = [round(n_groups * end) for end in (fractions[0], fractions[0] + fractions[1])]
        order = rank.argsort(stable=True)
        train, validation, test = order.tensor_split([int((rank < end).sum()) for end in ends])
        choose = len(config.penalties) > 1
        if not choose:
            train, validation = torch.cat([train, validation]), order[:0]
        if min(len(train), len(test)) == 0:
            raise ValueError(
                f"{len(groups)} sequences ({n_groups} different ones) split into {fractions} leave no sequence to "
                "train or to test on; sample more sequences or change fractions="
            )
        if choose and len(validation) == 0:
            raise ValueError(
                f"choosing among C={config.C} needs validation sequences; {fractions} of {len(groups)} leave none"
            )
        return cls(train, validation, test)


def group_copies(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """A number for each sequence, equal for equal sequences, in the order of first appearance."""
    group = tokens.cpu().unique(dim=0, return_inverse=True)[1]
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")
    return first.argsort().argsort()[group]


@dataclass(frozen=True, eq=False)
class ProbeDataset:
    """A feature of a batch, with labels as numbers, and the split of its sequences.

    Attributes:
        name: name of the feature.
        kind: see `Feature`.
        positions: position of each offset in each sequence, -1 where a sequence lacks it.
        labels: values to predict; classes are one-hot.
        split: the sequences to train on, to choose C by and to test on.
    """

    name: str
    kind: str
    positions: Int[Tensor, "batch offset"]
    labels: Float[Tensor, "offset batch label"]
    split: ProbeSplit

    @classmethod
    def of(cls, batch: Batch, feature: str | Feature, split: ProbeSplit) -> "ProbeDataset":
        """The dataset of a feature, which is a name of the batch's task or the feature itself."""
        name = feature if isinstance(feature, str) else "feature"
        if batch.n_new or (isinstance(feature, str) and batch.task is None):
            raise ValueError("prompts without a true answer have no features; probe a batch of a task")
        if isinstance(feature, str):
            feature = _named_feature(batch, feature)
        if feature.positions.shape[0] != len(batch):
            raise ValueError(f"the feature has {len(feature.positions)} sequences, and the batch has {len(batch)}")
        if (last := int(feature.positions.max())) >= (length := batch.inputs.shape[1]):
            raise ValueError(f"{name} is read at position {last}, and the model runs on {length} positions")
        labels = feature.labels.transpose(0, 1)
        labels = F.one_hot(labels) if feature.kind == "classes" else labels.reshape(*labels.shape[:2], -1)
        return cls(name, feature.kind, feature.positions.cpu(), labels.float().cpu(), split)

    @property
    def exists(self) -> Bool[Tensor, "offset batch"]:
        """Whether a sequence has the offset."""
        return self.positions.T >= 0

    def shuffled(self, seed: int) -> "ProbeDataset":
        """The dataset with labels shuffled at each offset, among the sequences that have it."""
        random = torch.Generator().manual_seed(seed)
        missing = (~self.exists).float()
        order = missing.argsort(dim=1, stable=True)
        shuffled_order = (missing + torch.rand(missing.shape, generator=random)).argsort(dim=1)
        labels = torch.empty_like(self.labels)
        offsets = torch.arange(len(labels))[:, None]
        labels[offsets, order] = self.labels[offsets, shuffled_order]
        return replace(self, labels=labels)

    def pooled(self) -> "ProbeDataset":
        """The dataset with one offset, whose sequences are those of the first offset, then of the second, and so on."""
        offsets, n = self.labels.shape[:2]
        shift = n * torch.arange(offsets)[:, None]
        parts = (self.split.train, self.split.validation, self.split.test)
        split = ProbeSplit(*((shift + part).flatten() for part in parts))
        return replace(
            self, positions=self.positions.T.reshape(-1, 1), labels=self.labels.flatten(0, 1)[None], split=split
        )


def states_at(
    model: HookedModel, batch: Batch, datasets: Sequence[ProbeDataset], sites: Sequence[str]
) -> list[Float[Tensor, "site offset batch d_model"]]:
    """Activations at the positions of each dataset, on the CPU; arbitrary values where a sequence lacks an offset."""
    states: list[list[Tensor]] = [[] for _ in datasets]
    size = max(1, min(MAX_SEQUENCES, MAX_LOGITS // (batch.inputs.shape[1] * int(model.cfg.d_vocab))))
    for i in range(0, len(batch), size):
        part = batch[slice(i, i + size)]
        cache = trace(model, part, list(sites)).cache
        rows = torch.arange(len(part))
        if wrong := [site for site in sites if cache[site].shape[:2] != part.inputs.shape]:
            raise ValueError(f"a probe reads one state a position, and {', '.join(wrong)} has no such axes")
        for parts, dataset in zip(states, datasets, strict=True):
            positions = dataset.positions[i : i + size].T.clamp(min=0)
            parts.append(torch.stack([cache[site].flatten(2)[rows, positions].cpu() for site in sites]))
    return [at_least_float32(torch.cat(parts, 2)) for parts in states]


def _named_feature(batch: Batch, name: str) -> Feature:
    """The feature of the batch's task that has this name."""
    features: dict[str, Feature] = batch.task.features(batch)
    return look_up(f"feature of {batch.task!r}", name, features)
