"""`PlainModel`: a Hugging Face language model that generates and is read without TransformerLens's hooks.

    model = PlainModel(AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-14m"))
    pl.measure(model, prompts, ["collapse", "repetition", "norm@blocks.*.hook_resid_post"])

Its residual stream can be read before and after each block and before the unembedding. Every other hook, and every
intervention, needs a bridge (`Checkpoints.model`), which fits a hook between any two operations and is slower for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plateaulens.tracing.decoding import logits_of
from plateaulens.tracing.traces import FINAL

ReadFunction = Callable[[Tensor, None], None]


@dataclass(frozen=True, eq=False)
class ReadPoint:
    """A site of a `PlainModel`: the input or the output of one of Hugging Face's modules.

    Attributes:
        module: the module.
        is_input: whether its first input is read, or its output.
        fwd_hooks: the functions that are attached.
    """

    module: nn.Module
    is_input: bool
    fwd_hooks: list[ReadFunction] = field(default_factory=list)

    def attach(self, read: ReadFunction) -> RemovableHandle:
        """Call `read` with the tensor at every forward pass."""
        if self.is_input:
            return self.module.register_forward_pre_hook(
                lambda module, args, kwargs: self._pass_on(read, args[0] if args else next(iter(kwargs.values()))),
                with_kwargs=True,
            )
        return self.module.register_forward_hook(
            lambda module, args, output: self._pass_on(read, output if isinstance(output, Tensor) else output[0])
        )

    def _pass_on(self, read: ReadFunction, tensor: Tensor) -> None:
        if read(tensor, None) is not None:  # type: ignore[func-returns-value]  # what an editing hook would do
            raise ValueError(
                "a PlainModel can be read, not edited; edit the bridge that Checkpoints.model(step) returns"
            )


class PlainModel(nn.Module):
    """A Hugging Face causal language model with the interface of a hooked model.

    Args:
        original_model: the Hugging Face model; it is used as it is, not copied.
        step: the training step that it is of, if known.

    Attributes:
        original_model: the Hugging Face model.
        cfg: sizes under TransformerLens's names: n_layers, d_model, d_vocab.
        hook_dict: the sites that can be read, by TransformerLens's names: `blocks.LAYER.hook_resid_pre`,
            `blocks.LAYER.hook_resid_post` and `unembed.hook_in`.

    Raises:
        ValueError: when the model's blocks or its unembedding cannot be found.
    """

    read_only = True  # `intervene` refuses it

    def __init__(self, original_model: nn.Module, step: int | None = None) -> None:
        super().__init__()
        config = original_model.config.get_text_config()  # type: ignore[operator,union-attr]  # Hugging Face's
        unembedding = original_model.get_output_embeddings()  # type: ignore[operator]  # Hugging Face's
        blocks = _blocks(original_model, config.num_hidden_layers)
        if blocks is None or unembedding is None:
            missing = "blocks" if blocks is None else "unembedding"
            raise ValueError(f"cannot find the {missing} of {type(original_model).__name__}; use a TransformerBridge")
        self.original_model = original_model
        self.cfg = SimpleNamespace(
            n_layers=len(blocks),
            d_model=config.hidden_size,
            d_vocab=config.vocab_size,
            checkpoint_value=step,
            is_stateful=getattr(original_model, "_is_stateful", False),  # such models have no key-value cache
        )
        self.hook_dict = {FINAL: ReadPoint(unembedding, is_input=True)}
        for layer, block in enumerate(blocks):
            self.hook_dict[f"blocks.{layer}.hook_resid_pre"] = ReadPoint(block, is_input=True)
            self.hook_dict[f"blocks.{layer}.hook_resid_post"] = ReadPoint(block, is_input=False)

    @contextmanager
    def hooks(
        self, fwd_hooks: Sequence[tuple[str, ReadFunction]] = (), bwd_hooks: Sequence[Any] = ()
    ) -> Iterator["PlainModel"]:
        """A context in which each function of `fwd_hooks` is called with the tensor [batch pos d_model] at its site.

        Raises:
            ValueError: for hooks on gradients; in a forward pass, when a function returns an edited tensor.
        """
        if bwd_hooks:
            raise ValueError("a PlainModel has no hooks on gradients; use the bridge of Checkpoints.model(step)")
        handles: list[RemovableHandle] = []
        points = [(self.hook_dict[name], read) for name, read in fwd_hooks]
        try:
            for point, read in points:
                point.fwd_hooks.append(read)
                handles.append(point.attach(read))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for point, read in points[: len(handles)]:
                point.fwd_hooks.remove(read)

    def forward(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of `tokens`; options are those of the Hugging Face model's `forward`."""
        return logits_of(self.original_model(tokens, **options))


def is_readable(site: str) -> bool:
    """Whether a hook name, or a glob of names, stands only for sites that a `PlainModel` has."""
    return site == FINAL or site.endswith((".hook_resid_pre", ".hook_resid_post"))


def _blocks(model: nn.Module, n_layers: int) -> nn.ModuleList | None:
    """The outermost list of as many modules as the model has layers."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers)
    return next(lists, None)
