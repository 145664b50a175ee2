"""The axis vocabulary, and `Batch`: prompts with the positions that answer them.

Axis names used in every annotation of the package, TransformerLens's own where it has one:

    batch pos d_vocab d_model layer head query key d_head out step seed

`out` counts answer tokens; `query` and `key` are positions of an attention map.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences, where their answers are, and the task that made them.

    Attributes:
        tokens: whole sequences, right-padded; for language-model prompts the prompts alone.
        out: positions whose next-token prediction is an answer token; -1 where an example has fewer.
        scored: which next-token targets (`tokens[:, 1:]`) the loss counts.
        task: the task that drew the batch, or None for language-model prompts.
        n_new: for prompts without an answer, how many tokens the model is to generate.
    """

    tokens: Int[Tensor, "batch pos"]
    out: Int[Tensor, "batch out"]
    scored: Bool[Tensor, "batch targets"]
    task: Any = None
    n_new: int = 0

    @classmethod
    def prompts(cls, tokens: Int[Tensor, "batch pos"], n_new: int = 8) -> "Batch":
        """Prompts of equal length without an answer: what the model generates is the answer."""
        if n_new < 1:
            raise ValueError(f"n_new must be at least 1 generated token, got {n_new}")
        n, length = tokens.shape
        out = torch.arange(length - 1, length - 1 + n_new, device=tokens.device).expand(n, n_new)
        scored = torch.zeros(n, length - 1, dtype=torch.bool, device=tokens.device)
        return cls(tokens, out, scored, None, n_new)

    @property
    def inputs(self) -> Int[Tensor, "batch targets"]:
        """What the model is fed with teacher forcing: every token but the last."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Int[Tensor, "batch targets"]:
        """What each input position should predict."""
        return self.tokens[:, 1:]

    @property
    def answers(self) -> Int[Tensor, "batch out"]:
        """The true answer tokens; -1 where an example has fewer."""
        return self.tokens.gather(1, self.out.clamp(min=-1) + 1).masked_fill(self.out < 0, -1)

    @property
    def prompt_len(self) -> int:
        """Prompt tokens, the separator included.

        Raises:
            ValueError: when the rows of the batch have prompts of different lengths.
        """
        first = self.out[:, 0]
        if (first != first[0]).any():
            low, high = int(first.min()) + 1, int(first.max()) + 1
            raise ValueError(f"rows have prompts of {low} to {high} tokens; group them by length first")
        return int(first[0]) + 1

    def answered(self, generated: Int[Tensor, "batch out"]) -> "Batch":
        """The same prompts with `generated` as their answer."""
        return replace(self, tokens=torch.cat([self.tokens[:, : self.prompt_len], generated], 1), n_new=0)

    def to(self, device: torch.device | str) -> "Batch":
        """A copy on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "out", "scored")}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Batch":
        return replace(self, tokens=self.tokens[rows], out=self.out[rows], scored=self.scored[rows])

    def __repr__(self) -> str:
        return f"Batch({len(self)} x {self.tokens.shape[1]} tokens, {self.out.shape[1]} answers, task={self.task!r})"
