"""Activation and path patching: the activations, and the paths between heads, that cause the difference of two runs.

    grid = activation_patching(model, clean, corrupted, "z")          # (layer, head)
    paths = path_patching(model, clean, corrupted, [(1, "q", 0)])     # (layer, head) of the senders
    pl.plots.patching(normalized(grid))

The clean and the corrupted run differ in their prompts. Activations of the clean run are put into the corrupted run;
those that restore the clean answer carry the difference. Swap the two batches to see which of them break the clean run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from plateaulens._registry import look_up
from plateaulens.batch import Batch
from plateaulens.hooks import check_writable, device_of, hook_names, n_layers
from plateaulens.interventions import Intervention, Patch, intervene
from plateaulens.metrics.functional.outputs import cross_entropy
from plateaulens.protocols import HookedModel
from plateaulens.tracing.traces import Trace, trace

LogitMetric = Callable[[Float[Tensor, "batch pos d_vocab"]], Any]  # returns one number
Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
Axis = Literal["pos", "head", "query"]
Receiver = tuple[int, Literal["q", "k", "v"], int]  # layer, input, head
# TransformerLens's short names -> the axes of their activations after the batch, without that of the vectors.
SITE_AXES: dict[str, tuple[Axis, ...]] = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("pos",)),
    **dict.fromkeys(("z", "q", "k", "v"), ("pos", "head")),
    "pattern": ("head", "query"),
}


def activation_patching(
    model: HookedModel,
    clean: Batch,
    corrupted: Batch,
    site: Site = "resid_pre",
    metric: LogitMetric | None = None,
    axes: Axis | Sequence[Axis] | None = None,
    *,
    progress: bool = True,
) -> xr.DataArray:
    """Put activations of the clean run into the corrupted run, one at a time, and evaluate `metric` each time.

        activation_patching(model, clean, corrupted, "z", axes=("pos", "head"))     # (layer, pos, head)

    The interventions of arXiv 2202.05262 (causal tracing) with TransformerLens's conventions. The numbers equal those
    of `transformer_lens.patching.get_act_patch_*`, on every kind of model whose activations can be edited. One forward
    pass per activation.

    Args:
        model: Any hooked model.
        clean: Prompts whose activations are put in. Answers are teacher-forced; prompts without one are run as is.
        corrupted: Prompts whose run is patched; as many examples and tokens.
        site: TransformerLens's short name of the activation. (On OLMo-2, whose norm of queries and keys spans the
            heads, patching q or k of one head moves those of the others a little.)
        metric: A function from logits to one number. By default the mean log-probability of the clean batch's true
            answers, in nats.
        axes: Axes of the site along which activations are patched separately, besides the layer: "pos" and "head",
            for patterns "head" and "query". Along other axes they are patched as a whole, so `axes=()` patches layers.
            By default "head" where there are heads, else "pos".
        progress: Whether to show a progress bar.

    Returns:
        The metric for each patch [layer *axes], with named axes. Attributes `clean` and `corrupted` hold the metric of
        the two unpatched runs; `normalized` makes these 1 and 0.

    Raises:
        ValueError: For an unknown site or axis, a site that cannot be edited on this model, batches of different
            shape, prompts without an answer and without a metric, or a metric that is not one number.
    """
    known_axes = look_up("site", site, SITE_AXES)
    if axes is None:
        axes = "head" if "head" in known_axes else "pos"
    chosen = (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in chosen:
        look_up(f"axis of {site}", axis, dict.fromkeys(known_axes))
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"each axis can be given once, got axes={chosen}")
    names = _hooks_of_site(model, site)
    pair = _CleanAndCorrupted(model, clean, corrupted, metric, names)
    lengths = dict(zip(known_axes, pair.clean.cache[names[0]].shape[1:]))
    places: dict[str, range] = {"layer": range(len(names))}
    places |= {axis: range(lengths[axis]) for axis in chosen}

    def patched_value(layer: int, *indices: int) -> float:
        where: dict[str, Any] = {}
        for axis, i in zip(chosen, indices):
            where["heads" if axis == "head" else "positions"] = [i]
        return pair.score(pair.run(Patch(names[layer], pair.clean.cache[names[layer]], **where)))

    return pair.grid(patched_value, places, f"patching {site}", progress=progress, site=site)


def path_patching(
    model: HookedModel,
    clean: Batch,
    corrupted: Batch,
    receivers: Sequence[Receiver] | Literal["logits"],
    metric: LogitMetric | None = None,
    *,
    through_mlps: bool = True,
    progress: bool = True,
) -> xr.DataArray:
    """Effect of each head on `receivers` along direct paths, not through other heads: the metric for every sender.

    The algorithm of arXiv 2211.00593 (path patching). For each sender the corrupted prompts are run twice: once with
    the sender's output z from the clean run and that of every other head frozen at its corrupted value, recording the
    inputs of the receivers; then with only these inputs replaced. The paper patches from the corrupted run into the
    clean one; swap the two batches for that.

    Args:
        model: Any hooked model.
        clean: Prompts whose sender outputs are put in. Answers are teacher-forced; prompts without one are run as is.
        corrupted: Prompts whose run is patched; as many examples and tokens.
        receivers: (layer, "q" | "k" | "v", head) of each, or "logits" alone. Keys and values that several heads share
            are counted as the model stores them.
        metric: As for `activation_patching`.
        through_mlps: Whether MLPs pass on what a sender wrote, as in the paper; else they are frozen too.
        progress: Whether to show a progress bar.

    Returns:
        The metric [layer head] for each sender, with attributes as for `activation_patching`. A sender that is not
        below a receiver has the corrupted value.

    Raises:
        ValueError: For receivers that the model does not have, and as `activation_patching` does.
    """
    received_at, label = _receiver_hooks(model, receivers)
    zs, mlps = _hooks_of_site(model, "z"), [] if through_mlps else _hooks_of_site(model, "mlp_out")
    pair = _CleanAndCorrupted(model, clean, corrupted, metric, [*zs, *mlps, *received_at])
    for name, heads in received_at.items():
        n_heads = pair.clean.cache[name].shape[2]
        if not all(0 <= head < n_heads for head in heads):
            raise ValueError(f"{name} has heads 0..{n_heads - 1}, got {heads}")
    frozen = [Patch(name, pair.corrupted.cache[name]) for name in (*zs, *mlps)]
    last_receiver = max((int(name.split(".")[1]) for name in received_at), default=len(zs))

    def sent_value(layer: int, head: int) -> float:
        if layer >= last_receiver:
            return pair.values["corrupted"]
        sender = Patch(zs[layer], pair.clean.cache[zs[layer]], heads=[head])
        sent = pair.run(*frozen, sender, requires=received_at)
        # The logits of the first pass are already what the logits receive.
        received = [Patch(name, sent.cache[name], heads=heads) for name, heads in received_at.items()]
        return pair.score(pair.run(*received) if received else sent)

    senders = {"layer": range(len(zs)), "head": range(pair.clean.cache[zs[0]].shape[2])}
    attrs = {"receivers": label, "through_mlps": through_mlps}
    return pair.grid(sent_value, senders, f"paths to {label}", progress=progress, **attrs)


def normalized(grid: xr.DataArray) -> xr.DataArray:
    """(value - corrupted) / (clean - corrupted): 0 where a patch does nothing, 1 where it restores the clean run.

    Raises:
        ValueError: If the metric is the same on both runs.
    """
    clean, corrupted = grid.attrs["clean"], grid.attrs["corrupted"]
    if clean == corrupted:
        raise ValueError(
            f"{grid.name} is {clean:.4g} on both runs, so there is no difference that a patch could restore"
        )
    scaled = grid.copy(data=(grid.values - corrupted) / (clean - corrupted))
    return scaled.rename(f"normalized {grid.name}").assign_attrs(clean=1.0, corrupted=0.0)


class _CleanAndCorrupted:
    """Traces of the clean and the corrupted run, passes of the corrupted run with interventions, and their metric."""

    def __init__(
        self, model: HookedModel, clean: Batch, corrupted: Batch, metric: LogitMetric | None, requires: list[str]
    ) -> None:
        clean_batch, self.batch = (_without_generation(batch) for batch in (clean, corrupted))
        if clean_batch.inputs.shape != self.batch.inputs.shape:
            shapes = " and ".join(str(list(batch.inputs.shape)) for batch in (clean_batch, self.batch))
            raise ValueError(f"clean and corrupted prompts must match token by token, got inputs of {shapes}")
        if metric is None and clean.n_new:
            raise ValueError("these prompts have no true answers to score; pass metric=, a function of the logits")
        self.model, self.metric = model, metric or _answer_log_prob(clean.to(device_of(model)))
        traces = (trace(model, batch, ["outputs", *requires]) for batch in (clean_batch, self.batch))
        self.clean, self.corrupted = traces
        self.values = {"clean": self.score(self.clean), "corrupted": self.score(self.corrupted)}

    def run(self, *interventions: Intervention, requires: Iterable[str] = ()) -> Trace:
        with intervene(self.model, *interventions):
            return trace(self.model, self.batch, ["outputs", *requires])

    def score(self, t: Trace) -> float:
        value = torch.as_tensor(self.metric(t.outputs))
        if value.ndim:
            raise ValueError(
                f"metric= has to return one number, got shape {list(value.shape)}; take the mean over prompts"
            )
        return float(value)

    def grid(
        self, value: Callable[..., float], places: dict[str, range], label: str, *, progress: bool, **attrs: Any
    ) -> xr.DataArray:
        cells = list(product(*places.values()))
        values = [value(*cell) for cell in tqdm(cells, desc=label, unit="place", disable=not progress)]
        name = getattr(self.metric, "__name__", "<lambda>")
        return xr.DataArray(
            np.array(values).reshape([len(place) for place in places.values()]),
            coords={axis: list(place) for axis, place in places.items()},
            dims=list(places),
            name="metric" if name == "<lambda>" else name,
            attrs=self.values | attrs,
        )


def _hooks_of_site(model: HookedModel, site: str) -> list[str]:
    """The hook names of a site, layer by layer.

    Raises:
        ValueError: If an edit at one of them does not act.
    """
    from transformer_lens.utilities import get_act_name  # pyright: ignore[reportPrivateImportUsage]

    names = [get_act_name(site, layer) for layer in range(n_layers(model))]
    for name in names:
        check_writable(model, name)
    return names


def _without_generation(batch: Batch) -> Batch:
    """Prompts of language models such that a trace does not let the model generate an answer first."""
    return replace(batch, tokens=F.pad(batch.tokens, (0, 1)), n_new=0) if batch.n_new else batch


def _answer_log_prob(clean: Batch) -> LogitMetric:
    def answer_log_prob(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        examples = torch.arange(len(clean), device=logits.device)[:, None]
        rows = logits[examples, clean.answer_positions.clamp(min=0)]
        return -cross_entropy(rows, clean.answers, clean.answer_positions >= 0).mean()

    return answer_log_prob


def _receiver_hooks(model: HookedModel, receivers: Sequence[Any] | str) -> tuple[dict[str, list[int]], str]:
    """Hook name -> heads that receive there (empty for the logits), and a label of all receivers."""
    receiver_list = [receivers] if isinstance(receivers, str) else list(receivers)
    if receiver_list == ["logits"]:
        return {}, "logits"
    heads_at: dict[str, list[int]] = {}
    labels = []
    for receiver in receiver_list:
        if not isinstance(receiver, tuple | list) or len(receiver) != 3:
            raise ValueError(f'receivers are (layer, "q" | "k" | "v", head) each, or "logits" alone; got {receiver!r}')
        layer, part, head = receiver
        look_up("input of a head", part, dict.fromkeys("qkv"))
        # A norm over all heads' queries (OLMo-2) would let one head move the others': take them after it.
        is_normed = f"blocks.{layer}.attn.hook_{part}_normed" in hook_names(model)
        name = f"blocks.{layer}.attn.hook_{'rot_' if is_normed else ''}{part}"
        check_writable(model, name)
        heads_at.setdefault(name, []).append(head)
        labels.append(f"L{layer}H{head}.{part}")
    if not heads_at:
        raise ValueError('path_patching needs at least one receiver, or "logits"')
    return heads_at, ", ".join(labels)
