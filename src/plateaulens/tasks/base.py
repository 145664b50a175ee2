"""`Task`: what is to be learned, with its ground truth.

A task is a frozen dataclass. It samples batches, says where attention must look, which answers are
the easy ones, and what the loss is before and after the task is understood.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.protocols import Metric

Maps = tuple[Bool[Tensor, "#batch query key"] | None, ...]


def generator(seed: int | torch.Generator, device: torch.device | str) -> torch.Generator:
    """A private generator: sampling never touches the global one."""
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator(device=device).manual_seed(seed)


# What `record` measures of a sequence task unless told otherwise.
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

KINDS = ("binary", "labels", "integer", "real", "classes")
NUMBERS = ("integer", "real")  # what is regressed


@dataclass(frozen=True, eq=False)
class Feature:
    """An intermediate quantity of a task's algorithm: its value in each example, and where a probe looks for it.

    Attributes:
        labels: at each offset; of kind "labels" a row of 0s and 1s that are probed one by one.
        positions: of the residual stream at which each offset is read, example by example; -1 where there is none.
        kind: "binary" (0 or 1), "labels", "integer" (regressed), "real" (regressed: a number, or a vector as a row), or
            "classes" (numbers from 0).
        published: "quiet" or "loud" in the figures of arXiv 2505.03997; "" for what is not in them.
    """

    labels: Real[Tensor, "batch offset *label"]
    positions: Int[Tensor, "batch offset"]
    kind: str = "binary"
    published: str = ""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"a feature is of kind {', '.join(KINDS)}; got {self.kind!r}")
        shape = (*self.positions.shape, *self.labels.shape[2:])
        require(
            self.labels.shape == shape and self.labels.ndim in {"labels": (3,), "real": (2, 3)}.get(self.kind, (2,)),
            f"labels {list(self.labels.shape)} do not belong to positions {list(self.positions.shape)} ({self.kind})",
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base of all token tasks: prompt, separator, answer.

    A subclass gives `prompt_len` (separator included), `n_out`, `d_vocab`, `sample`, and whatever it
    knows of its optimal attention and loss levels.
    """

    batch_type: ClassVar[type[Batch]] = Batch

    @property
    def prompt_len(self) -> int:
        """Prompt tokens, the separator included."""
        raise NotImplementedError

    @property
    def n_out(self) -> int:
        """Answer tokens."""
        raise NotImplementedError

    @property
    def d_vocab(self) -> int:
        """Token values, the separator included."""
        raise NotImplementedError

    @property
    def n_ctx(self) -> int:
        """Tokens of a whole sequence."""
        return self.prompt_len + self.n_out

    @property
    def n_targets(self) -> int:
        """Next-token targets of a whole sequence."""
        return self.n_ctx - 1

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that `record` measures unless told otherwise."""
        return DEFAULT_METRICS

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics that only this task has, by name; one of a general metric's name replaces it."""
        return {}

    @property
    def depth(self) -> int:
        """Layers of the shortest solution known."""
        return 1

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        """`n` fresh sequences, a pure function of its arguments; drawn on `device`."""
        raise NotImplementedError

    def batch(self, prompt: Int[Tensor, "batch prompt"], answer: Int[Tensor, "batch out"]) -> Batch:
        """Prompt (separator included) and answer as one `Batch`; every target is scored."""
        tokens = torch.cat([prompt, answer], 1)
        n, device = len(tokens), tokens.device
        out = torch.arange(self.prompt_len - 1, self.n_targets, device=device).expand(n, self.n_out)
        loss_mask = torch.ones(n, self.n_targets, dtype=torch.bool, device=device)
        return Batch(tokens, out, loss_mask, self)

    def loss(self, outputs: Float[Tensor, "batch targets d_vocab"], batch: Batch) -> Float[Tensor, ""]:
        """Mean next-token cross-entropy in nats over all scored targets (arXiv 2506.13688, training code)."""
        targets = batch.targets.masked_fill(~batch.loss_mask, -100)
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def optimal_attention(self, batch: Batch | None = None) -> Maps | None:
        """Where each layer of the task's shortest solution must look, or None if no such map is known.

        One map a layer, None for a layer of which nothing is known. Maps that differ from sample to
        sample need `batch`.
        """
        return None

    def alternative_attention(self, batch: Batch | None = None) -> Maps | None:
        """The maps of a second route to the solution, if there is one."""
        return None

    @property
    def partial_positions(self) -> tuple[int, ...]:
        """Outputs (0-based) that the partial solution gets right while the loss is on its plateau."""
        return ()

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Outputs (0-based) that belong together, by name; their accuracies are followed one by one."""
        known = self.partial_positions
        rest = tuple(i for i in range(self.n_out) if i not in known)
        return {"partial solution": known, "the rest": rest} if known and rest else {"all": tuple(range(self.n_out))}

    @property
    def collapse_positions(self) -> tuple[int, ...]:
        """Outputs (0-based) whose hidden states are compared; the partial solution's are left out."""
        return tuple(i for i in range(self.n_out) if i not in self.partial_positions)

    @property
    def collapse_groups(self) -> tuple[tuple[int, ...], ...]:
        """The outputs among which pairs are formed: all of `collapse_positions`, unless the answer has equal parts.

        A group of fewer than two has no pair, and its collapse is NaN.
        """
        return (self.collapse_positions,)

    @property
    def answer_values(self) -> range:
        """Tokens that can be an answer."""
        return range(self.d_vocab)

    def loss_floor(self) -> float | None:
        """All-position loss in nats once the task is solved, or None if not known."""
        return None

    def loss_plateau(self) -> float | None:
        """All-position loss in nats when only the partial solution is known, or None if not known."""
        return None

    def features(self, batch: Batch, released: bool = False) -> dict[str, Feature]:
        """Sub-computations for probes by name; none unless the task names some.

        Args:
            batch: whose examples they are of.
            released: with the misalignments of the code released with arXiv 2505.03997, where it has any.
        """
        return {}

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """A token sequence as people write it; the separator as `|`."""
        return " ".join(str(int(t)) for t in tokens)

    def example(self, seed: int = 0) -> str:
        """One prompt and its answer, for people."""
        batch = self.sample(1, seed=seed)
        row, p = batch.tokens[0], self.prompt_len
        return f"prompt  {self.decode(row[:p])}\nanswer  {self.decode(row[p:])}"


@dataclass(frozen=True, kw_only=True)
class NumberTask(Task):
    """`n` numbers, a separator, and an answer to each: the shape of most tasks of arXiv 2506.13688.

    A subclass gives `values` (the prompt numbers), `separator`, `d_vocab` and `answer`.
    """

    n: int = 16

    def __post_init__(self) -> None:
        require(self.n >= 1, f"{type(self).__name__} needs n >= 1 prompt numbers, got n={self.n}")

    @property
    def values(self) -> range:
        """What a prompt number can be."""
        raise NotImplementedError

    @property
    def separator(self) -> int:
        """The token between prompt and answer."""
        raise NotImplementedError

    @property
    def prompt_len(self) -> int:
        return self.n + 1

    @property
    def n_out(self) -> int:
        return self.n

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch n"]:
        """Prompt numbers: independent and uniform."""
        return torch.randint(self.values.start, self.values.stop, (n, self.n), generator=rng, device=rng.device)

    def answer(self, x: Int[Tensor, "batch n"]) -> Int[Tensor, "batch out"]:
        """The true answers of prompt numbers `x`."""
        raise NotImplementedError

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        x = self.draw(n, generator(seed, device))
        separator = torch.full((n, 1), self.separator, device=x.device)
        return self.batch(torch.cat([x, separator], 1), self.answer(x))

    def loss_floor(self) -> float:
        """(n-1) ln |values| / targets: the random prompt numbers stay unpredictable."""
        return (self.n - 1) * log(len(self.values)) / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == self.separator else str(int(t)) for t in tokens)


@dataclass(frozen=True, kw_only=True)
class ModularTask(NumberTask):
    """Prompt numbers 1..p-1, answers modulo p, and token p as the separator.

    Raises:
        ValueError: unless n >= 1 and p >= 3.
    """

    p: int = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.p >= 3, f"the modulus p must be at least 3 (numbers are 1..p-1), got p={self.p}")

    @property
    def values(self) -> range:
        return range(1, self.p)

    @property
    def separator(self) -> int:
        return self.p

    @property
    def d_vocab(self) -> int:
        return self.p + 1

    def sum_entropy(self, k: int) -> float:
        """Entropy in nats of the sum of k uniform numbers from 1..p-1, modulo p, by exact convolution."""
        counts = [1] + [0] * (self.p - 1)
        for _ in range(k):
            counts = [sum(counts) - c for c in counts]  # every residue but the same one: x is never 0 mod p
        total = sum(counts)
        return -sum(c / total * log(c / total) for c in counts if c)


def permutations(n: int, size: int, rng: torch.Generator) -> Int[Tensor, "batch size"]:
    """`n` random permutations of 0..size-1."""
    return torch.rand(n, size, generator=rng, device=rng.device).argsort(1)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds (parameters of tasks)."""
    if not condition:
        raise ValueError(message)


def output_map(rows: list[tuple[int, ...]], first: int, size: int, **kwargs: Any) -> Bool[Tensor, "1 query key"]:
    """A map over all positions with keys `rows[r]` for output r, whose query position is `first + r`."""
    omega = torch.zeros(1, size, size, dtype=torch.bool, **kwargs)
    for r, keys in enumerate(rows):
        omega[0, first + r, list(keys)] = True
    return omega
