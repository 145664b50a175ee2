"""The axis vocabulary, and `Batch`: prompts with the positions that answer them.

Axis names used in every annotation of the package, TransformerLens's own where it has one:

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
    """How the answer of a prompt without one is generated; greedy unless it says `sample`.

    Attributes:
        sample: draw from the softmax instead of taking the likeliest token.
        seed: of the draws; what a prompt draws depends on it and on the prompt's tokens alone.
        temperature: what the logits are divided by before drawing.
        top_k: draw among the likeliest so many tokens (Hugging Face's default is 50); None among all.
        forbidden: tokens that are never generated, such as the end of the text where a length is asked for.

    Raises:
        ValueError: for a value out of range.
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
TENSOR_FIELDS = ("tokens", "answer_positions", "loss_mask")  # the tensors of a Batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences, where their answers are, and the task that made them.

    Attributes:
        tokens: whole sequences, right-padded; for language-model prompts the prompts alone.
        answer_positions: positions whose next-token prediction is an answer token; -1 where an example has fewer.
        loss_mask: which next-token targets (`tokens[:, 1:]`) the loss counts.
        task: the task that drew the batch, or None for language-model prompts.
        n_new: for prompts without an answer, how many tokens the model is to generate.
        decoding: how it generates them.
    """

    tokens: Int[Tensor, "batch pos"]
    answer_positions: Int[Tensor, "batch out"]
    loss_mask: Bool[Tensor, "batch targets"]
    task: Any = None
    n_new: int = 0
    decoding: Decoding = GREEDY

    @classmethod
    def prompts(
        cls, tokens: Int[Tensor, "batch pos"] | Sequence[Sequence[int]], n_new: int = 8, decoding: Decoding = GREEDY
    ) -> "Batch":
        """Prompts without an answer, of any lengths: what the model generates is the answer.

        Raises:
            ValueError: for no prompt, an empty one, or nothing to generate.
        """
        if n_new < 1:
            raise ValueError(f"n_new must be at least 1 generated token, got {n_new}")
        rows = [torch.as_tensor(row, dtype=torch.long) for row in tokens]
        if not rows or min(map(len, rows)) == 0:
            raise ValueError("prompts need at least one token each" if rows else "got no prompt")
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ends = torch.tensor([len(row) - 1 for row in rows], device=padded.device)
        out = ends[:, None] + torch.arange(n_new, device=padded.device)
        return cls(padded, out, torch.zeros_like(padded[:, 1:], dtype=torch.bool), None, n_new, decoding)

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
        return self.tokens.gather(1, self.answer_positions.clamp(min=-1) + 1).masked_fill(self.answer_positions < 0, -1)

    @property
    def prompt_len(self) -> int:
        """Prompt tokens, the separator included.

        Raises:
            ValueError: when the rows of the batch have prompts of different lengths.
        """
        first = self.answer_positions[:, 0]
        if (first != first[0]).any():
            low, high = int(first.min()) + 1, int(first.max()) + 1
            raise ValueError(f"rows have prompts of {low} to {high} tokens; split them with batch.split_by_length()")
        return int(first[0]) + 1

    @property
    def shared_prompt(self) -> Int[Tensor, "batch prompt"]:
        """What of the prompts all have: up to the end of the shortest."""
        return self.tokens[:, : int(self.answer_positions[:, 0].min()) + 1]

    @property
    def is_decoded(self) -> bool:
        """Whether answers are generated token by token."""
        return True

    def split_by_length(self) -> list["Batch"]:
        """The prompts in batches of equal length, shortest first, each in its order here."""
        ends = self.answer_positions[:, 0]
        groups = [(int(end) + 1, self[ends == end]) for end in ends.unique()]
        if not self.n_new:
            return [group for _, group in groups]
        return [replace(g, tokens=g.tokens[:, :n], loss_mask=g.loss_mask[:, : n - 1]) for n, g in groups]

    def answered(self, generated: Int[Tensor, "batch out"]) -> "Batch":
        """The same prompts (of `Batch.prompts`) with `generated` as their answer."""
        longer = torch.nn.functional.pad(self.tokens, (0, self.n_new))
        return replace(self, tokens=longer.scatter(1, self.answer_positions + 1, generated), n_new=0)

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
