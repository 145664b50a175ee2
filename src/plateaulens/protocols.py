"""The interfaces that models, series of checkpoints and metrics share, as Protocols.

Any object with these attributes is accepted; nothing has to be subclassed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from plateaulens.tracing import Trace


@runtime_checkable
class HookedModel(Protocol):
    """A model with TransformerLens's hook points.

    `Transformer`, TransformerLens 3.9's `HookedTransformer` and the bridges of TransformerLens 4 are such models.
    """

    @property
    def cfg(self) -> Any:
        """Sizes and choices, under TransformerLens's field names."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Hook points by name."""
        ...

    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> AbstractContextManager[Any]:
        """A context manager that attaches forward hooks, pairs of name and function, and removes them."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits [batch pos d_vocab] of tokens [batch pos]."""
        ...


@runtime_checkable
class CheckpointSeries(Protocol):
    """Models at ascending training steps: a `Run`, a suite of `Checkpoints`, or an object of your own."""

    @property
    def steps(self) -> Sequence[int]:
        """Steps with a checkpoint, ascending."""
        ...

    def model(self, step: int, device: torch.device | str | None = None) -> HookedModel:
        """The model at `step`."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A function of a `Trace` that returns a value, or a row of values, for each example."""

    __name__: str

    def __call__(self, trace: "Trace", /) -> Tensor:
        """The values [batch ...], or one number for the whole batch."""
        ...


MetricFunction = TypeVar("MetricFunction", bound=Callable[..., Tensor])


def requires(*names: str) -> Callable[[MetricFunction], MetricFunction]:
    """Decorator that states what a metric reads from a trace, so that `measure` computes nothing else.

    Args:
        names: Hook names or globs, and any of "outputs", "answer_outputs", "answer_entropy" and "generated", which
            need no hook.
    """

    def mark(function: MetricFunction) -> MetricFunction:
        function.requires = names  # type: ignore[attr-defined]
        return function

    return mark
