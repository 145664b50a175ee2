"""`Task`: a distribution of prompts with true answers, and what is known about its solution.

A task is a frozen dataclass. It samples batches and defines their loss, and may state the optimal attention maps, the
partial solution, and the loss on the plateau and after learning.

    batch = MovingWindowSum(n=16, k=2, p=17).sample(256, seed=0)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.protocols import Metric

AttentionMaps = tuple[Bool[Tensor, "#batch query key"] | None, ...]  # one a layer; None where it is not known


def generator(seed: int | torch.Generator, device: torch.device | str) -> torch.Generator:
    """A generator with this seed, or the given generator; the global one is never used."""
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator(device=device).manual_seed(seed)


# Metrics that `record` computes for a sequence task by default.
DEFAULT_METRICS = (
    "loss",
    "answer_loss",
    "accuracy",
    "position_accuracy",
    "repetition",
    "collapse",
    "attention_progress",
    "entropy",
)

FeatureKind = Literal["binary", "labels", "integer", "real", "classes"]
Published = Literal["quiet", "loud", ""]
REGRESSED_KINDS = ("integer", "real")  # probed by regression, the others by classification


@dataclass(frozen=True, eq=False)
class Feature:
    """An intermediate quantity of a task's algorithm: its value in each example and the positions to probe.

    Attributes:
        labels: The value at each offset.
        positions: Positions of the residual stream at which a probe reads each offset; -1 where there is none.
        kind: "binary" (0 or 1), "labels" (a row of 0s and 1s that are probed one by one), "integer" (regressed),
            "real" (regressed: a number, or a vector), or "classes" (numbers from 0).
        published: "quiet" or "loud" as in the figures of arXiv 2505.03997; "" if it is not in them.

    Raises:
        ValueError: If the kind is unknown, or the labels do not have the shape of the positions and the kind.
    """

    labels: Real[Tensor, "batch offset *label"]
    positions: Int[Tensor, "batch offset"]
    kind: FeatureKind = "binary"
    published: Published = ""

    def __post_init__(self) -> None:
        kinds = get_args(FeatureKind)
        check(self.kind in kinds, f"a feature is of kind {', '.join(kinds)}; got {self.kind!r}")
        shape = (*self.positions.shape, *self.labels.shape[2:])
        check(
            self.labels.shape == shape and self.labels.ndim in {"labels": (3,), "real": (2, 3)}.get(self.kind, (2,)),
            f"labels {list(self.labels.shape)} of kind {self.kind!r} do not fit positions {list(self.positions.shape)}",
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base of all tasks: sequences of a prompt, a separator and an answer.

    A subclass defines `prompt_len`, `n_out`, `d_vocab` and `sample`, and what is known of its solution: attention maps,
    partial solution, loss levels, features.
    """

    batch_type: ClassVar[type[Batch]] = Batch

    @property
    def prompt_len(self) -> int:
        """Number of prompt tokens, the separator included."""
        raise NotImplementedError

    @property
    def n_out(self) -> int:
        """Number of answer tokens."""
        raise NotImplementedError

    @property
    def d_vocab(self) -> int:
        """Number of token values, the separator included."""
        raise NotImplementedError

    @property
    def n_ctx(self) -> int:
        """Number of tokens of a whole sequence."""
        return self.prompt_len + self.n_out

    @property
    def n_targets(self) -> int:
        """Number of next-token targets of a whole sequence."""
        return self.n_ctx - 1

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that `record` computes by default."""
        return DEFAULT_METRICS

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics of this task alone, by name; one with the name of a general metric replaces it."""
        return {}

    @property
    def depth(self) -> int:
        """Number of layers of the shallowest known solution."""
        return 1

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        """Draw `n` sequences; the result depends on the arguments alone.

        Args:
            n: Number of sequences.
            seed: Seed, or a generator (whose device is then used).
            device: Device of the sequences, on which they are drawn.
        """
        raise NotImplementedError

    def batch(self, prompt: Int[Tensor, "batch prompt"], answer: Int[Tensor, "batch out"]) -> Batch:
        """A `Batch` of prompts (separator included) and answers, in which the loss counts every target."""
        tokens = torch.cat([prompt, answer], 1)
        n, device = len(tokens), tokens.device
        out = torch.arange(self.prompt_len - 1, self.n_targets, device=device).expand(n, self.n_out)
        loss_mask = torch.ones(n, self.n_targets, dtype=torch.bool, device=device)
        return Batch(tokens, out, loss_mask, self)

    def loss(self, outputs: Float[Tensor, "batch targets d_vocab"], batch: Batch) -> Float[Tensor, ""]:
        """Mean next-token cross-entropy in nats over the targets of the loss mask (arXiv 2506.13688, training code)."""
        targets = batch.targets.masked_fill(~batch.loss_mask, -100)
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def optimal_attention(self, batch: Batch | None = None) -> AttentionMaps | None:
        """The keys to which each query must attend in the task's known solution, or None if no solution is known.

        Args:
            batch: A batch of this task, for maps that differ between examples.

        Returns:
            A map for each layer; None for a layer whose map is not known.
        """
        return None

    def alternative_attention(self, batch: Batch | None = None) -> AttentionMaps | None:
        """The maps of a second solution, or None if there is none."""
        return None

    @property
    def partial_positions(self) -> tuple[int, ...]:
        """Outputs (from 0) that the partial solution predicts correctly while the loss is on its plateau."""
        return ()

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Outputs (from 0) of each part of the answer, by name, for `part_accuracy`."""
        known = self.partial_positions
        rest = tuple(i for i in range(self.n_out) if i not in known)
        return {"partial solution": known, "the rest": rest} if known and rest else {"all": tuple(range(self.n_out))}

    @property
    def collapse_positions(self) -> tuple[int, ...]:
        """Outputs (from 0) on which collapse is measured; those of the partial solution are left out."""
        return tuple(i for i in range(self.n_out) if i not in self.partial_positions)

    @property
    def collapse_groups(self) -> tuple[tuple[int, ...], ...]:
        """Groups of outputs within which pairs are formed: one group, unless the answer has equal parts.

        The collapse of a group of fewer than two outputs is NaN.
        """
        return (self.collapse_positions,)

    @property
    def answer_values(self) -> range:
        """Tokens that can occur in an answer."""
        return range(self.d_vocab)

    def loss_floor(self) -> float | None:
        """Loss over all positions in nats once the task is solved, or None if it is not known."""
        return None

    def loss_plateau(self) -> float | None:
        """Loss over all positions in nats of the partial solution, or None if it is not known."""
        return None

    def features(self, batch: Batch, *, released: bool = False) -> dict[str, Feature]:
        """Intermediate quantities of the task's algorithm for probes, by name.

        Args:
            batch: A batch of this task.
            released: Reproduce the misaligned positions of the code released with arXiv 2505.03997.
        """
        return {}

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """A token sequence as readable text, with `|` for the separator."""
        return " ".join(str(int(t)) for t in tokens)

    def example(self, seed: int = 0) -> str:
        """One prompt and its answer as readable text."""
        batch = self.sample(1, seed=seed)
        row, p = batch.tokens[0], self.prompt_len
        return f"prompt  {self.decode(row[:p])}\nanswer  {self.decode(row[p:])}"


def permutations(n: int, size: int, rng: torch.Generator) -> Int[Tensor, "batch size"]:
    """`n` uniform random permutations of 0..size-1."""
    return torch.rand(n, size, generator=rng, device=rng.device).argsort(1)


def check(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def output_map(rows: list[tuple[int, ...]], first: int, size: int) -> Bool[Tensor, "1 query key"]:
    """An attention map over `size` positions with keys `rows[r]` for output r, whose query position is `first + r`."""
    optimal = torch.zeros(1, size, size, dtype=torch.bool)
    for r, keys in enumerate(rows):
        optimal[0, first + r, list(keys)] = True
    return optimal
