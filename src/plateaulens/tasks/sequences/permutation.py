"""Applying a permutation that stands in the prompt (arXiv 2506.13688, figs 13 and 14)."""

from dataclasses import dataclass
from math import comb, lgamma, log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import Maps, Task, generator, permutations, require


@dataclass(frozen=True, kw_only=True)
class Permutation(Task):
    """n values from n+1..2n, a permutation of 1..n, and the values in the permuted order: y_i = x[pi(i)].

    >>> print(Permutation(n=4).example(seed=0))
    prompt  5 8 6 5 | 1 3 2 4 |
    answer  5 6 8 5

    Args:
        n: values.
        compose: apply the permutation so many times.

    Raises:
        ValueError: unless n >= 2 and compose >= 1.
    """

    n: int = 16
    compose: int = 1

    def __post_init__(self) -> None:
        require(self.n >= 2, f"Permutation needs n >= 2 values, got n={self.n}")
        require(self.compose >= 1, f"Permutation needs compose >= 1, got compose={self.compose}")

    @property
    def prompt_len(self) -> int:
        return 2 * self.n + 2

    @property
    def n_out(self) -> int:
        return self.n

    @property
    def d_vocab(self) -> int:
        return 2 * self.n + 1

    @property
    def answer_values(self) -> range:
        return range(self.n + 1, 2 * self.n + 1)

    @property
    def depth(self) -> int:
        return self.compose + 1

    @property
    def default_metrics(self) -> tuple[str, ...]:
        layers = [f"attention_progress@{layer}" for layer in range(self.depth)]
        alternative = [f"{name}:alternative" for name in layers if self.compose == 1]
        return (*super().default_metrics, "count_check", *layers, *alternative)

    def sample(self, n: int, *, seed: int | torch.Generator, device: torch.device | str = "cpu") -> Batch:
        rng = generator(seed, device)
        x = torch.randint(self.n + 1, 2 * self.n + 1, (n, self.n), generator=rng, device=rng.device)
        pi = permutations(n, self.n, rng)
        separator = torch.zeros(n, 1, dtype=torch.long, device=x.device)
        prompt = torch.cat([x, separator, pi + 1, separator], 1)
        return self.batch(prompt, x.gather(1, power(pi, self.compose)))

    def permutation(self, batch: Batch) -> Int[Tensor, "batch n"]:
        """The permutations of a batch, counted from 0."""
        return batch.tokens[:, self.n + 1 : 2 * self.n + 1] - 1

    def optimal_attention(self, batch: Batch | None = None) -> Maps:
        """At the answer: look pi up (once for each time it is applied), then the value it names."""
        pi = self._needed(batch)
        hops = [power(pi, i) + self.n + 1 for i in range(self.compose)]
        return tuple(self._at(keys, self.prompt_len - 1) for keys in [*hops, power(pi, self.compose)])

    def alternative_attention(self, batch: Batch | None = None) -> Maps | None:
        """At each number of the permutation: fetch the value it names; at the answer: fetch that. Only compose=1."""
        if self.compose > 1:
            return None
        keys = torch.arange(self.n, device=None if batch is None else batch.tokens.device) + self.n + 1
        return self._at(self._needed(batch), self.n + 1), self._at(keys[None], self.prompt_len - 1)

    def _needed(self, batch: Batch | None) -> Int[Tensor, "batch n"]:
        require(batch is not None, "the attention of Permutation differs from prompt to prompt; pass the batch")
        assert batch is not None
        return self.permutation(batch)

    def _at(self, keys: Int[Tensor, "batch n"], first: int) -> Bool[Tensor, "batch query key"]:
        """The map with key keys[s, r] for sample s at query first + r."""
        omega = torch.zeros(len(keys), self.n_targets, self.n_targets, dtype=torch.bool, device=keys.device)
        omega[:, first : first + self.n].scatter_(2, keys[..., None], True)
        return omega

    def loss_floor(self) -> float:
        """((n-1) ln n + ln n!) / targets: the values are unpredictable, the permutation has no repeats."""
        return ((self.n - 1) * log(self.n) + lgamma(self.n + 1)) / self.n_targets

    def loss_plateau(self) -> float:
        """The floor plus the entropy of the answer when only its multiset is known.

        That is E ln(n! / (m_1! m_2! ...)) over the multiplicities m of n uniform draws from n values: a
        model that knows which values occur and how often, crosses off what it has written, but not their order.
        """
        n = self.n
        share = [comb(n, m) * (1 / n) ** m * (1 - 1 / n) ** (n - m) for m in range(n + 1)]
        entropy = lgamma(n + 1) - n * sum(p * lgamma(m + 1) for m, p in enumerate(share))
        return self.loss_floor() + entropy / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == 0 else str(int(t)) for t in tokens)


def power(pi: Int[Tensor, "batch n"], times: int) -> Int[Tensor, "batch n"]:
    """The permutation applied `times` times."""
    result = torch.arange(pi.shape[1], device=pi.device).expand_as(pi)
    for _ in range(times):
        result = result.gather(1, pi)
    return result
