"""`StringTask`: the format of arXiv 2505.03997, `INPUT=OUTPUT<EOS>`, a character a token, padded with EOS.

Inputs and outputs may differ in length between examples, and so do the positions of the answers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import Feature, FeatureKind, Published, Task, generator


@dataclass(frozen=True, kw_only=True)
class StringTask(Task):
    """Base of the tasks of arXiv 2505.03997. A subclass defines `symbols`, `n_ctx`, `n_answer` and `sample`.

    The loss and decoding cover everything from `=` to the first EOS, as in the paper. Where inputs differ in length,
    the position of `=` cannot be predicted, but it is scored only where it is: a model that always predicts it loses
    nothing.

    Attributes:
        answer_only: Exclude `=` from the loss and from decoding, which then begin at the answer's first token.
    """

    answer_only: bool = False

    @property
    def symbols(self) -> str:
        """The characters of inputs and outputs, in the order of their token ids; then come `=` and EOS."""
        raise NotImplementedError

    @property
    def n_answer(self) -> int:
        """Tokens of the longest output, without `=` and EOS."""
        raise NotImplementedError

    @property
    def n_ctx(self) -> int:
        raise NotImplementedError

    @property
    def d_vocab(self) -> int:
        return len(self.symbols) + 2

    @property
    def equals(self) -> int:
        """The token between input and output."""
        return len(self.symbols)

    @property
    def eos(self) -> int:
        """The token that ends a sequence and pads it."""
        return len(self.symbols) + 1

    @property
    def n_out(self) -> int:
        return self.n_answer + 2 - self.answer_only

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return (*super().default_metrics, "exact_match")

    def published_chance(self) -> float | None:
        """Loss of the dashed "random" line of the paper's figures (released code), `=` included; None if unknown."""
        return None

    def assemble(self, inputs: Int[Tensor, "batch input"], answers: Int[Tensor, "batch answer"]) -> Batch:
        """A `Batch` of inputs and outputs, each padded on the right with -1."""
        n, device = len(inputs), inputs.device
        input_size, answer_size = ((x >= 0).sum(1, keepdim=True) for x in (inputs, answers))
        tokens = torch.full((n, self.n_ctx), self.eos, device=device)
        tokens[:, : inputs.shape[1]] = inputs.masked_fill(inputs < 0, self.eos)
        tokens.scatter_(1, input_size, self.equals)
        offsets = torch.arange(answers.shape[1], device=device).minimum(answer_size)  # beyond the answer: the first EOS
        tokens.scatter_(1, input_size + 1 + offsets, answers.masked_fill(answers < 0, self.eos))
        count, first = answer_size + self.n_out - self.n_answer, input_size - int(not self.answer_only)
        order = torch.arange(self.n_out, device=device)
        answer_positions = (first + order).masked_fill(order >= count, -1)
        position = torch.arange(self.n_targets, device=device)
        return Batch(tokens, answer_positions, (position >= first) & (position < first + count), self)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        names = [*self.symbols, "=", "<EOS>"]
        return "".join(names[int(t)] for t in tokens)

    def example(self, seed: int = 0) -> str:
        text = self.decode(self.sample(1, seed=seed).tokens[0])
        prompt, answer = text.split("<EOS>")[0].split("=")
        return f"prompt  {prompt}\nanswer  ={answer}<EOS>"


@dataclass(frozen=True, kw_only=True)
class FixedLengthTask(StringTask):
    """Base of tasks whose inputs have one length. A subclass defines `draw` and `answer` instead of `sample`."""

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        """`n` random inputs."""
        raise NotImplementedError

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        """Outputs of `inputs`; -1 where an example has fewer tokens."""
        raise NotImplementedError

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        inputs = self.draw(n, generator(seed, device))
        return self.assemble(inputs, self.answer(inputs))

    def loss_floor(self) -> float:
        """Zero: everything in the loss follows from the input."""
        return 0.0


def evenly_placed(
    labels: Int[Tensor, "batch offset"],
    first: int,
    step: int = 1,
    kind: FeatureKind = "binary",
    published: Published = "",
) -> Feature:
    """A feature whose offset r is read at position first + r * step of every example."""
    positions = first + step * torch.arange(labels.shape[1], device=labels.device)
    return Feature(labels, positions.expand_as(labels), kind, published)
