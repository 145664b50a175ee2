"""`Batch`: token sequences with the positions of their answers; and the axis names of the package.

Axis names in the annotations of the whole package (TransformerLens's own where it has one):

    batch pos d_vocab d_model layer head query key d_head out step seed

`out` counts answer tokens; `query` and `key` are positions of an attention map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a language model generates the answers of prompts: greedily, or with `sample=True` by random draws.

    Attributes:
        sample: Whether to draw from the softmax instead of taking the likeliest token.
        seed: Seed of the draws, which depend on it and on the prompt's tokens alone.
        temperature: The logits are divided by this before drawing.
        top_k: Number of likeliest tokens to draw from (50 is Hugging Face's default); None for all tokens.
        forbidden: Tokens that are never generated, such as the end-of-text token.

    Raises:
        ValueError: If a value is out of range.
    """

    sample: bool = False
    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = 50
    forbidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.seed < 0 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(f"temperature must be above 0, top_k at least 1 and seed not negative; got {self}")


GREEDY = Decoding()
TENSOR_FIELDS = ("tokens", "answer_positions", "loss_mask")  # the fields of a Batch that are tensors


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences, the positions of their answers, and the task that sampled them.

    Attributes:
        tokens: Whole sequences, right-padded; for language-model prompts the prompts alone.
        answer_positions: Positions whose next-token prediction is an answer token; -1 where an example has fewer.
        loss_mask: Which next-token targets (`tokens[:, 1:]`) the loss counts.
        task: The task that sampled the batch, or None for language-model prompts.
        n_new: Number of tokens that the model generates as the answer of prompts without one; else 0.
        decoding: How it generates them.
    """

    tokens: Int[Tensor, "batch pos"]
    answer_positions: Int[Tensor, "batch out"]
    loss_mask: Bool[Tensor, "batch targets"]
    task: Any = None  # a `Task`, or the user's own object with a `loss`
    n_new: int = 0
    decoding: Decoding = GREEDY

    @classmethod
    def prompts(
        cls, tokens: Int[Tensor, "batch pos"] | Sequence[Sequence[int]], n_new: int = 8, decoding: Decoding = GREEDY
    ) -> "Batch":
        """Prompts of any lengths, whose answer is what the model generates.

        Args:
            tokens: Token ids of each prompt.
            n_new: Number of tokens to generate.
            decoding: How they are generated.

        Raises:
            ValueError: If there is no prompt or an empty one, or if `n_new` is below 1.
        """
        if n_new < 1:
            raise ValueError(f"n_new must be at least 1 generated token, got {n_new}")
        rows = [torch.as_tensor(row, dtype=torch.long) for row in tokens]
        if not rows or min(map(len, rows)) == 0:
            raise ValueError("a prompt is empty; each needs at least one token" if rows else "got no prompt")
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ends = torch.tensor([len(row) - 1 for row in rows], device=padded.device)
        out = ends[:, None] + torch.arange(n_new, device=padded.device)
        return cls(padded, out, torch.zeros_like(padded[:, 1:], dtype=torch.bool), None, n_new, decoding)

    @property
    def inputs(self) -> Int[Tensor, "batch targets"]:
        """Input of the model under teacher forcing: all tokens but the last."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Int[Tensor, "batch targets"]:
        """The token that each input position should predict."""
        return self.tokens[:, 1:]

    @property
    def answers(self) -> Int[Tensor, "batch out"]:
        """The true answer tokens; -1 where an example has fewer."""
        return self.tokens.gather(1, self.answer_positions.clamp(min=-1) + 1).masked_fill(self.answer_positions < 0, -1)

    @property
    def prompt_len(self) -> int:
        """Number of prompt tokens, the separator included.

        Raises:
            ValueError: If the prompts differ in length.
        """
        first = self.answer_positions[:, 0]
        if (first != first[0]).any():
            low, high = int(first.min()) + 1, int(first.max()) + 1
            raise ValueError(f"the prompts have {low} to {high} tokens; split them with batch.split_by_length()")
        return int(first[0]) + 1

    @property
    def shared_prompt(self) -> Int[Tensor, "batch prompt"]:
        """The prompts up to the end of the shortest one."""
        return self.tokens[:, : int(self.answer_positions[:, 0].min()) + 1]

    @property
    def is_decoded(self) -> bool:
        """Whether answers are generated token by token; False for tasks that are answered in one pass."""
        return True

    def split_by_length(self) -> list["Batch"]:
        """Batches of prompts of equal length, shortest first, with the examples of each in their present order."""
        ends = self.answer_positions[:, 0]
        by_length = {int(end) + 1: self[ends == end] for end in ends.unique()}
        if not self.n_new:
            return list(by_length.values())
        return [replace(b, tokens=b.tokens[:, :n], loss_mask=b.loss_mask[:, : n - 1]) for n, b in by_length.items()]

    def answered(self, generated: Int[Tensor, "batch out"]) -> "Batch":
        """The prompts of `Batch.prompts` with `generated` as their answer."""
        padded = torch.nn.functional.pad(self.tokens, (0, self.n_new))
        return replace(self, tokens=padded.scatter(1, self.answer_positions + 1, generated), n_new=0)

    def to(self, device: torch.device | str) -> "Batch":
        """A copy on `device`."""
        moved = {name: getattr(self, name).to(device) for name in TENSOR_FIELDS}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return replace(
            self, tokens=self.tokens[rows], answer_positions=self.answer_positions[rows], loss_mask=self.loss_mask[rows]
        )

    def __repr__(self) -> str:
        answers = self.answer_positions.shape[1]
        return f"Batch({len(self)} x {self.tokens.shape[1]} tokens, {answers} answers, task={self.task!r})"
