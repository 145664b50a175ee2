"""Applying a permutation given in the prompt (arXiv 2506.13688, figs 13 and 14)."""

from dataclasses import dataclass
from math import comb, lgamma, log

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from plateaulens.batch import Batch
from plateaulens.tasks.base import AttentionMaps, Task, check, generator, permutations


@dataclass(frozen=True, kw_only=True)
class Permutation(Task):
    """The prompt is n values from n+1..2n and a permutation pi of 1..n; the answer is y_i = x[pi(i)].

    >>> print(Permutation(n=4).example(seed=0))
    prompt  5 8 6 5 | 1 3 2 4 |
    answer  5 6 8 5

    Args:
        n: Number of values, and length of the permutation.
        compose: Number of times that the permutation is applied.

    Raises:
        ValueError: unless n >= 2 and compose >= 1.
    """

    n: int = 16
    compose: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 2, f"Permutation needs n >= 2 values, got n={self.n}")
        check(self.compose >= 1, f"Permutation needs compose >= 1, got compose={self.compose}")

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
        """The permutation of each example, as indices from 0."""
        return batch.tokens[:, self.n + 1 : 2 * self.n + 1] - 1

    def optimal_attention(self, batch: Batch | None = None) -> AttentionMaps:
        """At each answer position: one layer looks up pi for each application, the last the value at that index."""
        pi = self._permutation_of(batch)
        hops = [power(pi, i) + self.n + 1 for i in range(self.compose)]
        return tuple(self._map(keys, self.prompt_len - 1) for keys in [*hops, power(pi, self.compose)])

    def alternative_attention(self, batch: Batch | None = None) -> AttentionMaps | None:
        """A second route, for compose=1: fetch the value at each permutation position, then copy it to the answer."""
        if self.compose > 1:
            return None
        keys = torch.arange(self.n, device=None if batch is None else batch.tokens.device) + self.n + 1
        return self._map(self._permutation_of(batch), self.n + 1), self._map(keys[None], self.prompt_len - 1)

    def _permutation_of(self, batch: Batch | None) -> Int[Tensor, "batch n"]:
        check(batch is not None, "the attention maps of Permutation depend on the prompts; pass batch=")
        assert batch is not None
        return self.permutation(batch)

    def _map(self, keys: Int[Tensor, "batch n"], first: int) -> Bool[Tensor, "batch query key"]:
        """The attention map with key keys[s, r] for sample s at query first + r."""
        omega = torch.zeros(len(keys), self.n_targets, self.n_targets, dtype=torch.bool, device=keys.device)
        omega[:, first : first + self.n].scatter_(2, keys[..., None], True)
        return omega

    def loss_floor(self) -> float:
        """Entropy of the values after the first and of the permutation, ((n-1) ln n + ln n!) / targets, in nats."""
        return ((self.n - 1) * log(self.n) + lgamma(self.n + 1)) / self.n_targets

    def loss_plateau(self) -> float:
        """Loss floor plus the entropy of the answer when only its multiset is known, in nats.

        The entropy is E ln(n! / (m_1! m_2! ...)) over the multiplicities m of n uniform draws from n values: the
        model knows which values occur and how often, but not their order.
        """
        n = self.n
        share = [comb(n, m) * (1 / n) ** m * (1 - 1 / n) ** (n - m) for m in range(n + 1)]
        entropy = lgamma(n + 1) - n * sum(p * lgamma(m + 1) for m, p in enumerate(share))
        return self.loss_floor() + entropy / self.n_targets

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        return " ".join("|" if t == 0 else str(int(t)) for t in tokens)


def power(pi: Int[Tensor, "batch n"], times: int) -> Int[Tensor, "batch n"]:
    """The permutation composed with itself `times` times."""
    result = torch.arange(pi.shape[1], device=pi.device).expand_as(pi)
    for _ in range(times):
        result = result.gather(1, pi)
    return result
