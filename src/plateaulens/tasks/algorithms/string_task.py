"""`StringTask`: the format of arXiv 2505.03997, `INPUT=OUTPUT<EOS>`, a character a token, padded with EOS.

Inputs and outputs may differ in length from example to example, so the positions of an answer do too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import Feature, Task, generator


@dataclass(frozen=True, kw_only=True)
class StringTask(Task):
    """Base of the tasks of arXiv 2505.03997. A subclass gives `symbols`, `n_ctx`, `n_answer` and `sample`.

    The paper scores and decodes everything from `=` to the first EOS. Where inputs differ in length nobody can
    know when `=` comes, but it is scored only where it does: a model that always expects it loses nothing.

    Attributes:
        answer_only: score and decode from the answer's first token on, `=` being given.
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
        """The loss at the dashed "random" line of the paper's figures (released code), which score `=` too."""
        return None

    def assemble(self, inputs: Int[Tensor, "batch input"], answers: Int[Tensor, "batch answer"]) -> Batch:
        """Inputs and outputs, each padded on the right with -1, as a `Batch`."""
        n, device = len(inputs), inputs.device
        before, size = ((x >= 0).sum(1, keepdim=True) for x in (inputs, answers))
        tokens = torch.full((n, self.n_ctx), self.eos, device=device)
        tokens[:, : inputs.shape[1]] = inputs.masked_fill(inputs < 0, self.eos)
        tokens.scatter_(1, before, self.equals)
        places = before + 1 + torch.arange(answers.shape[1], device=device).minimum(size)  # beyond it: the first EOS
        tokens.scatter_(1, places, answers.masked_fill(answers < 0, self.eos))
        count, first = size + self.n_out - self.n_answer, before - int(not self.answer_only)
        order = torch.arange(self.n_out, device=device)
        out = (first + order).masked_fill(order >= count, -1)
        here = torch.arange(self.n_targets, device=device)
        return Batch(tokens, out, (here >= first) & (here < first + count), self)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        names = [*self.symbols, "=", "<EOS>"]
        return "".join(names[int(t)] for t in tokens)

    def example(self, seed: int = 0) -> str:
        text = self.decode(self.sample(1, seed=seed).tokens[0])
        prompt, answer = text.split("<EOS>")[0].split("=")
        return f"prompt  {prompt}\nanswer  ={answer}<EOS>"


@dataclass(frozen=True, kw_only=True)
class FixedInput(StringTask):
    """Base of those whose inputs are all of one length. A subclass gives `draw` and `answer` instead of `sample`."""

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, "batch input"]:
        """`n` random inputs."""
        raise NotImplementedError

    def answer(self, inputs: Int[Tensor, "batch input"]) -> Int[Tensor, "batch answer"]:
        """Their outputs; -1 where an example has fewer tokens."""
        raise NotImplementedError

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        inputs = self.draw(n, generator(seed, device))
        return self.assemble(inputs, self.answer(inputs))

    def loss_floor(self) -> float:
        """0: everything scored follows from the input."""
        return 0.0


def in_step(labels: Int[Tensor, "batch offset"], first: int, step: int = 1, **kwargs: str) -> Feature:
    """The feature whose offset r is read at position first + r * step of every example."""
    positions = first + step * torch.arange(labels.shape[1], device=labels.device)
    return Feature(labels, positions.expand_as(labels), **kwargs)
