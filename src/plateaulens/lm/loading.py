"""A folder in Hugging Face's layout, opened as a bridge: strictly, and checked on one prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from plateaulens._signals import without_gradients

TOLERANCE = 1e-3  # of the largest logit; bridges are equal to rounding, wrong weights are off by its own size


@without_gradients
def open_model(
    folder: Path,
    what: str,
    tokenizer: Any = None,
    *,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
) -> Any:
    """The checkpoint in `folder` as a TransformerBridge with unprocessed weights.

    Args:
        folder: config.json and weights.
        what: named in errors.
        tokenizer: the bridge's; None for none.
        step: noted in the bridge's config.
        device: where it goes.
        dtype: of its weights.
        device_map: of `from_pretrained`, instead of `device`.

    Raises:
        ValueError: for weights that are damaged, missing or too many, not numbers, or when the bridge computes
            something else than Hugging Face's own model.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    place = {"device_map": device_map} if device_map is not None else {}
    try:
        with without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **place
            )
    except Exception as error:  # whatever damaged files make the loaders raise
        raise ValueError(f"{what} cannot be opened: {str(error).strip().splitlines()[0]}") from error
    plain, info = loaded
    for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := sorted(map(str, info.get(wrong) or ())):
            raise ValueError(f"{what} has {wrong.replace('_', ' ')}: {names[0]} and {len(names) - 1} more")
    if device_map is None:
        plain = plain.to(device)
    plain = plain.eval()
    prompt = torch.arange(1, 9, device=plain.device)[None] % plain.config.vocab_size
    expected = plain(prompt).logits
    if not torch.isfinite(expected).all():
        raise ValueError(f"{what} has weights that are not numbers")
    if tokenizer is None:  # `boot_transformers` would make one up of config.json, or fail to
        bridge = build_bridge_from_module(plain, type(plain).__name__, hf_config=plain.config)
    else:
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=plain, tokenizer=tokenizer, dtype=dtype, device=None if place else device
        )
    bridge.cfg.checkpoint_value = step
    off = float((bridge(prompt) - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if off > TOLERANCE * (1 if dtype == torch.float32 else 10):
        raise ValueError(f"the bridge of {what} is off by {off:.2g} of Hugging Face's logits; report this model")
    return bridge.eval()


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers shows a bar for every checkpoint that it reads and every file that it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
