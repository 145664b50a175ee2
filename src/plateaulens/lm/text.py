"""`Text`: the task of predicting random windows of one long text; `python_documentation`, such a text."""

import ast
import sysconfig
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import check, generator


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """Predict every next token of windows of a text, drawn uniformly and with replacement.

        >>> Text(tokens=torch.arange(100), context=4).sample(1, seed=0).tokens
        tensor([[44, 45, 46, 47, 48]])

    Attributes:
        tokens: The whole text.
        context: Number of tokens a model is given at once; a window has one more, the last target.

    Raises:
        ValueError: When the text is shorter than a window.
    """

    tokens: Int[Tensor, " text"]
    context: int = 64

    def __post_init__(self) -> None:
        check(self.context >= 1, f"context must be at least 1 token, got {self.context}")
        check(
            len(self.tokens) > self.context,
            f"a window of context={self.context} takes {self.context + 1} tokens, the text has {len(self.tokens)}",
        )

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        """`n` windows, a pure function of its arguments and the same on every device."""
        rng = generator(seed, "cpu")
        starts = torch.randint(len(self.tokens) - self.context, (n, 1), generator=rng, device=rng.device)
        places = starts + torch.arange(self.context + 1, device=rng.device)
        tokens = self.tokens[places.to(self.tokens.device)].cpu()
        out = torch.arange(self.context).expand(n, self.context)
        return Batch(tokens, out, torch.ones(n, self.context, dtype=torch.bool), self).to(device)

    def loss(self, outputs: Any, batch: Batch) -> Float[Tensor, ""]:
        """Mean next-token cross-entropy in nats over all scored targets.

        Args:
            outputs: Logits [batch targets d_vocab], or an output of Hugging Face's with `.logits`.
            batch: The windows.
        """
        logits = getattr(outputs, "logits", outputs)
        targets = batch.targets.masked_fill(~batch.loss_mask, -100)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def python_documentation() -> str:
    """English text that comes with every CPython: `pydoc_data.topics`, then the docstrings of the standard library.

    The library is parsed, never imported; its own tests are left out. Two million characters in a few seconds,
    the same each time for one installation.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda p: p.relative_to(library).parts):
        if {"test", "tests", "idle_test", "site-packages"}.isdisjoint(path.relative_to(library).parts):
            with suppress(SyntaxError, ValueError), warnings.catch_warnings(action="ignore"):
                texts += _docstrings(ast.parse(path.read_bytes()))
    return "\n\n".join(texts).encode(errors="ignore").decode()


def _docstrings(tree: ast.Module) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return [text for text in found if text]
