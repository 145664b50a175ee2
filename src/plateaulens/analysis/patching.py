"""Patching: which places, and which paths between heads, carry what two runs differ in.

    grid = activation_patching(model, clean, corrupted, "z")          # (layer, head)
    into = path_patching(model, clean, corrupted, [(1, "q", 0)])      # (layer, head) of the senders
    pl.plots.patching(normalized(grid))

A clean and a corrupted run differ in their prompts. What is moved from the clean run into the corrupted
one, and brings the clean answer with it, carried the difference. Swap the two to ask what breaks a run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

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
from plateaulens.tracing.traces import Trace, trace

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Any]
# TransformerLens's short names -> the axes of their activations after the batch, without the vectors'.
AXES = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("pos",)),
    **dict.fromkeys(("z", "q", "k", "v"), ("pos", "head")),
    "pattern": ("head", "query"),
}


def activation_patching(
    model: Any,
    clean: Batch,
    corrupted: Batch,
    site: str = "resid_pre",
    metric: Metric | None = None,
    by: str | Sequence[str] | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """Put the clean run's activation into the corrupted run, place by place, and evaluate `metric` each time.

        activation_patching(model, clean, corrupted, "z", by=("pos", "head"))     # (layer, pos, head)

    The interventions of arXiv 2202.05262 (causal tracing) with TransformerLens's conventions: the numbers are
    those of `transformer_lens.patching.get_act_patch_*`, on every kind of model whose edits act. One pass a place.

    Args:
        model: any hooked model.
        clean: where activations come from. Answers are teacher-forced; prompts are run as they are.
        corrupted: what is patched; as many examples and tokens.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v or pattern. (On OLMo-2, whose norm
            of queries and keys spans the heads, q or k of one head moves the others' a little.)
        metric: from logits to one number; the mean log-probability of the clean batch's true answers by default,
            in nats.
        by: which axes of the site to sweep beside the layer: any of "pos" and "head", of patterns "head" and
            "query"; what is left out is patched as a whole, so that `by=()` patches layers. "pos" by default,
            and "head" where there are heads.
        progress: whether to show a progress bar.

    Returns:
        The metric at every place, with the axes' names, and as attributes its value on the whole `clean` and the
        whole `corrupted` run; `normalized` makes these 1 and 0.

    Raises:
        ValueError: for an unknown site or axis, a site whose edit cannot act on this model, batches of different
            shape, prompts without an answer and without a metric, or a metric that is not one number.
    """
    axes = look_up("site", site, AXES)
    chosen = (by,) if isinstance(by, str) else ("head" if "head" in axes else "pos",) if by is None else tuple(by)
    for axis in chosen:
        look_up(f"axis of {site}", axis, dict.fromkeys(axes))
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"each axis is swept once, got by={chosen}")
    names = _names(model, site)
    pair = _Pair(model, clean, corrupted, metric, names)
    length = dict(zip(axes, pair.clean.cache[names[0]].shape[1:]))
    places = {"layer": range(len(names)), **{axis: range(length[axis]) for axis in chosen}}

    def value(layer: int, *at: int) -> float:
        where = {"heads" if axis == "head" else "positions": [i] for axis, i in zip(chosen, at)}
        return pair.score(pair.run(Patch(names[layer], pair.clean.cache[names[layer]], **where)))

    return pair.grid(value, places, f"patching {site}", progress, site=site)


def path_patching(
    model: Any,
    clean: Batch,
    corrupted: Batch,
    receivers: Sequence[Any] | str,
    metric: Metric | None = None,
    through_mlps: bool = True,
    progress: bool = True,
) -> xr.DataArray:
    """What each head sends to `receivers` by itself, by no other head: the metric for every sender.

    The algorithm of arXiv 2211.00593 (path patching). For each sender the corrupted prompts run twice: once with
    the sender's output z from the clean run and every other head's frozen at its corrupted value, noting what
    arrives at the receivers; then with only the receivers' inputs replaced by that. The paper's direction, from
    the corrupted run into the clean one, is had by swapping the two batches.

    Args:
        model: any hooked model.
        clean: where the senders' outputs come from. Answers are teacher-forced; prompts are run as they are.
        corrupted: what is patched; as many examples and tokens.
        receivers: (layer, "q" | "k" | "v", head) of each, or "logits" alone: the last residual stream. Keys and
            values that several heads share are counted as the model stores them.
        metric: as for `activation_patching`.
        through_mlps: whether MLPs pass on what a sender wrote, as in the paper; else they are frozen too.
        progress: whether to show a progress bar.

    Returns:
        The metric by layer and head of the sender, with attributes as of `activation_patching`. A sender that is
        not below a receiver has the corrupted value.

    Raises:
        ValueError: for receivers that are not there, and as `activation_patching` does.
    """
    arrivals, labels = _arrivals(model, receivers)
    zs, mlps = _names(model, "z"), [] if through_mlps else _names(model, "mlp_out")
    pair = _Pair(model, clean, corrupted, metric, [*zs, *mlps, *arrivals])
    for site, heads in arrivals.items():
        count = pair.clean.cache[site].shape[2]
        if not all(0 <= head < count for head in heads):
            raise ValueError(f"{site} has heads 0..{count - 1}, got {heads}")
    frozen = [Patch(name, pair.corrupted.cache[name]) for name in (*zs, *mlps)]
    last = max((int(site.split(".")[1]) for site in arrivals), default=len(zs))

    def value(layer: int, head: int) -> float:
        if layer >= last:
            return pair.values["corrupted"]
        sender = Patch(zs[layer], pair.clean.cache[zs[layer]], heads=[head])
        sent = pair.run(*frozen, sender, requires=arrivals)
        # What arrives at the logits is already the answer.
        received = [Patch(site, sent.cache[site], heads=heads) for site, heads in arrivals.items()]
        return pair.score(pair.run(*received) if received else sent)

    places = {"layer": range(len(zs)), "head": range(pair.clean.cache[zs[0]].shape[2])}
    return pair.grid(value, places, f"paths to {labels}", progress, receivers=labels, through_mlps=through_mlps)


def normalized(grid: xr.DataArray) -> xr.DataArray:
    """(value - corrupted) / (clean - corrupted): 0 where a patch does nothing, 1 where it restores the clean run.

    Raises:
        ValueError: when the metric is the same on both runs.
    """
    clean, corrupted = grid.attrs["clean"], grid.attrs["corrupted"]
    if clean == corrupted:
        raise ValueError(f"{grid.name} is {clean:.4g} on both runs, so nothing is lost that a patch could restore")
    share = grid.copy(data=(grid.values - corrupted) / (clean - corrupted))
    return share.rename(f"normalized {grid.name}").assign_attrs(clean=1.0, corrupted=0.0)


class _Pair:
    """The clean and the corrupted run, the corrupted one with changes, and what the metric says of each."""

    def __init__(self, model: Any, clean: Batch, corrupted: Batch, metric: Metric | None, requires: list[str]) -> None:
        one, self.batch = (_as_given(batch) for batch in (clean, corrupted))
        if one.inputs.shape != self.batch.inputs.shape:
            shapes = " and ".join(str(list(batch.inputs.shape)) for batch in (one, self.batch))
            raise ValueError(f"clean and corrupted prompts must match token by token, got inputs of {shapes}")
        if metric is None and clean.n_new:
            raise ValueError("these prompts have no true answers to score; pass metric=, a function of the logits")
        self.model, self.metric = model, metric or _answer_log_prob(clean.to(device_of(model)))
        self.clean, self.corrupted = (trace(model, batch, ["outputs", *requires]) for batch in (one, self.batch))
        self.values = {"clean": self.score(self.clean), "corrupted": self.score(self.corrupted)}

    def run(self, *changes: Intervention, requires: Iterable[str] = ()) -> Trace:
        with intervene(self.model, *changes):
            return trace(self.model, self.batch, ["outputs", *requires])

    def score(self, t: Trace) -> float:
        value = torch.as_tensor(self.metric(t.outputs))
        if value.ndim:
            raise ValueError(f"a metric gives one number, got shape {list(value.shape)}; take the mean over prompts")
        return float(value)

    def grid(
        self, value: Callable[..., float], places: dict[str, range], what: str, progress: bool, **attrs: Any
    ) -> xr.DataArray:
        cells = list(product(*places.values()))
        values = [value(*cell) for cell in tqdm(cells, desc=what, unit="place", disable=not progress)]
        name = getattr(self.metric, "__name__", "<lambda>")
        return xr.DataArray(
            np.array(values).reshape([len(place) for place in places.values()]),
            coords={axis: list(place) for axis, place in places.items()},
            dims=list(places),
            name="metric" if name == "<lambda>" else name,
            attrs=self.values | attrs,
        )


def _names(model: Any, site: str) -> list[str]:
    """The hooks of a site, layer by layer; refused unless an edit there acts."""
    from transformer_lens.utilities import get_act_name

    names = [get_act_name(site, layer) for layer in range(n_layers(model))]
    for name in names:
        check_writable(model, name)
    return names


def _as_given(batch: Batch) -> Batch:
    """Language-model prompts as they are, where a trace would let the model answer them first."""
    return replace(batch, tokens=F.pad(batch.tokens, (0, 1)), n_new=0) if batch.n_new else batch


def _answer_log_prob(clean: Batch) -> Metric:
    def answer_log_prob(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        examples = torch.arange(len(clean), device=logits.device)[:, None]
        rows = logits[examples, clean.answer_positions.clamp(min=0)]
        return -cross_entropy(rows, clean.answers, clean.answer_positions >= 0).mean()

    return answer_log_prob


def _arrivals(model: Any, receivers: Sequence[Any] | str) -> tuple[dict[str, list[int]], str]:
    """Hook -> heads that receive there, none for the logits; and what to call them all."""
    wanted = [receivers] if isinstance(receivers, str) else list(receivers)
    if wanted == ["logits"]:
        return {}, "logits"
    arrivals: dict[str, list[int]] = {}
    labels = []
    for receiver in wanted:
        if not isinstance(receiver, tuple | list) or len(receiver) != 3:
            raise ValueError(f'receivers are (layer, "q" | "k" | "v", head) each, or "logits" alone; got {receiver!r}')
        layer, part, head = receiver
        look_up("input of a head", part, dict.fromkeys("qkv"))
        # A norm over all heads' queries (OLMo-2) would let one head's move the others': take them after it.
        normed = f"blocks.{layer}.attn.hook_{part}_normed" in hook_names(model)
        site = f"blocks.{layer}.attn.hook_{'rot_' if normed else ''}{part}"
        check_writable(model, site)
        arrivals.setdefault(site, []).append(head)
        labels.append(f"L{layer}H{head}.{part}")
    if not arrivals:
        raise ValueError('path_patching needs at least one receiver, or "logits"')
    return arrivals, ", ".join(labels)
