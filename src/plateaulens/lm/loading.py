"""Models from a folder in Hugging Face's layout, with every weight checked, plain or as a bridge."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.lm.plain_model import PlainModel

TOLERANCE = 1e-3  # of the largest logit: a bridge is equal up to rounding, wrong weights differ by as much as a logit


@without_gradients
def open_plain_model(
    folder: Path,
    description: str,
    *,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
) -> PlainModel:
    """The checkpoint in `folder` as Hugging Face's own model.

    Args:
        folder: Folder with config.json and weights.
        description: Name of the checkpoint in error messages.
        step: Training step, kept in the model's config.
        device: Where the model goes.
        dtype: Type of its weights.
        device_map: `from_pretrained`'s, instead of `device`.

    Raises:
        ValueError: When weights are damaged, missing, not expected by the model, or not finite.
    """
    from transformers import AutoModelForCausalLM

    place = {"device_map": device_map} if device_map is not None else {}
    try:
        with without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **place
            )
    except Exception as error:  # whatever damaged files make the loaders raise
        raise ValueError(f"{description} cannot be opened: {str(error).strip().splitlines()[0]}") from error
    model, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := sorted(map(str, info.get(problem) or ())):
            raise ValueError(f"{description} has {problem.replace('_', ' ')}: {names[0]} and {len(names) - 1} more")
    if device_map is None:
        model = model.to(device)
    plain = PlainModel(model.eval(), step)
    if not torch.isfinite(plain(_probe_prompt(model))).all():
        raise ValueError(f"{description} has weights that are not finite numbers")
    return plain


@without_gradients
def to_bridge(plain: PlainModel, folder: Path, description: str, tokenizer: Any = None) -> Any:
    """A TransformerBridge around the Hugging Face model of `plain`, with unprocessed weights.

    Args:
        plain: Model that was opened from `folder`.
        folder: Folder of the checkpoint.
        description: Name of the checkpoint in error messages.
        tokenizer: Tokenizer of the bridge, or None.

    Raises:
        ValueError: When the logits of the bridge are not those of the Hugging Face model.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model: Any = plain.original_model
    prompt, dtype = _probe_prompt(model), next(model.parameters()).dtype
    expected: Float[Tensor, "1 pos d_vocab"] = plain(prompt)  # before the bridge puts its hooks into the model
    if tokenizer is None:  # `boot_transformers` would make an empty one of config.json, or fail to
        bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    else:
        device = None if getattr(model, "hf_device_map", None) else str(prompt.device)
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=tokenizer, dtype=dtype, device=device
        )
    bridge.cfg.checkpoint_value = plain.cfg.checkpoint_value
    difference = float((bridge(prompt) - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if difference > TOLERANCE * (1 if dtype == torch.float32 else 10):
        raise ValueError(
            f"the bridge of {description} differs from Hugging Face's model by {difference:.2g} of the largest logit; "
            "please report this model"
        )
    return bridge.eval()


def _probe_prompt(model: Any) -> Int[Tensor, "1 pos"]:
    """Eight tokens on which a model is tried."""
    return torch.arange(1, 9, device=next(model.parameters()).device)[None] % model.config.vocab_size


@contextmanager
def without_bars() -> Iterator[None]:
    """A context without the progress bars that transformers shows for every checkpoint it reads and file it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
