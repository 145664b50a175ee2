"""What of step s, put into the model of step t, gives what? Activations or weights, over a whole (s, t) grid.

    grid = patch_across_steps(run, run.eval_batch()[:64])                   # the attention of s in the model of t
    float(grid.tf_accuracy.sel(source=400, target=100))               # does the plateau lack only its attention?
    patch_across_steps(run, run.eval_batch()[:64], parts="mlp", metrics=["accuracy"])    # weights instead
    plots.step_grid(grid)

Sources are stacked along the batch, so that one pass of a target serves many of them. Answers under a
patch behind the last layer's keys and values cost half of that: the prompt is run once a target, and
then only the rows that answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from plateaulens._signals import without_gradients
from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.batch import TENSOR_FIELDS, Batch
from plateaulens.hooks import (
    PATTERN_HOOKS,
    active_interventions,
    check_writable,
    device_of,
    has_user_hooks,
    match_hooks,
    n_layers,
)
from plateaulens.interventions import Patch, intervene
from plateaulens.metrics.measuring import mean_over_prompts, required_by, resolve
from plateaulens.models.parameter_groups import graft, parameters_of
from plateaulens.protocols import Metric
from plateaulens.tracing.traces import Trace, trace

SOURCE_BYTES = 2**30  # bytes of source activations or weights that are kept at once
STACKED = 2**27  # bytes of activations that stacked sources may take in one pass, estimated
QUICK = {"answer_outputs", "answer_entropy", "generated"}  # what the answer rows alone can give
# Sites of `Transformer` which the keys and values of the same layer do not depend on.
BEHIND = (
    *("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out"),
    *("hook_resid_mid", "ln2.*", "mlp.*", "hook_mlp_out", "hook_resid_post"),
)

Activations = dict[str, Tensor]
Means = dict[str, Tensor]  # measurement -> [source ...], the mean over prompts for each stacked source


def patch_across_steps(
    run: Any,
    batch: Batch,
    what: str | Sequence[str] | None = None,
    metrics: Sequence[Metric | str] = ("tf_accuracy",),
    *,
    parts: str | Sequence[str] | None = None,
    sources: Sequence[int] | None = None,
    targets: Sequence[int] | None = None,
    donor: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Put activations (or weights) of every source step into the model of every target step, and measure.

    A cell is what `measure` gives inside `intervene(target, Patch(site, activations of the source))`, or
    of `graft(target, source, parts)`. The activations are those of the source on the same prompts,
    teacher-forced; a target which decodes under them need not answer as the source does, nor on the
    diagonal as it does untouched.

    Memory: up to 1 GiB (and one source more) of source activations or weights, and for each pass 128 MiB of
    activations or those of one source if they alone take more; a long list of steps takes no more.

    Args:
        run: a Run, or anything with `.steps` and `.model(step)`: the targets.
        batch: the prompts; 64 give a readable grid.
        what: a hook name or glob, or several: whose activations are put in. By default the attention
            patterns of all layers.
        metrics: measurements, as in `measure`.
        parts: put weights in instead: names of `plateaulens.models.parameter_groups.PARTS`, or globs over
            parameter names.
        sources: steps of the donor; all of its checkpoints by default.
        targets: steps of the run; all of its checkpoints by default.
        donor: whose the sources are; the run itself by default.
        progress: show a progress bar.

    Returns:
        A variable [source target] for each measurement, over the step numbers. Coordinates
        `NAME_unpatched` [target] and `NAME_source` [source] are its values in the untouched models. Measurements
        with several values a prompt have a third axis.

    Raises:
        ValueError: without checkpoints, for a step without one, an unknown or unwritable site, an unknown
            part, both `what` and `parts`, nothing to measure, or a donor of other shapes.
    """
    from tqdm.auto import tqdm

    if what is not None and parts is not None:
        raise ValueError("give what= (activations) or parts= (weights), not both")
    what = PATTERN_HOOKS if what is None else what
    globs = [] if parts is not None else [what] if isinstance(what, str) else list(what)
    donor = run if donor is None else donor
    sources, targets = _steps(donor, sources, "source"), _steps(run, targets, "target")
    model = run.model(targets[0])
    functions = resolve(model, metrics, batch.task)
    if not functions or (parts is None and not globs):
        raise ValueError("nothing to do: name at least one measurement in metrics= and one site in what=")
    sites = match_hooks(model, globs)
    for site in sites:
        check_writable(model, site)
    if parts is not None:
        parameters_of(model, parts)
    plain = trace(model, batch, required_by(functions, sites))
    most = _sources_a_pass(model, plain) if len(batch) > 1 and all(f(plain).ndim for f in functions) else 1
    untouched = {targets[0]: _means(plain, functions)}
    alone: dict[int, Means] = untouched if donor is run else {}
    shapes = {site: plain.cache[site].shape for site in sites}
    del plain  # it may hold every activation
    cells: dict[tuple[int, int], Means] = {}

    def read(step: int) -> Any:
        """What is kept of a source: its activations, or with `parts` the model itself."""
        source = donor.model(step)
        if parts is None and donor is not run and match_hooks(source, globs) != sites:
            raise ValueError(f"{what!r} names other sites in the donor than in the run; name each site in full")
        seen = trace(source, batch, sites if step in alone else required_by(functions, sites))
        if step not in alone:
            alone[step] = _means(seen, functions)
        for site, shape in shapes.items():
            if (theirs := seen.cache[site].shape) != shape:
                raise ValueError(f"{site} is {[*theirs]} in the donor and {[*shape]} in the run; they must be the same")
        return source if parts is not None else {site: seen.cache[site] for site in sites}

    with tqdm(total=len(sources) * len(targets), unit="pair", disable=not progress) as bar:
        for group in _groups(sources, read):
            for target in targets:
                model = run.model(target)
                if target not in untouched:
                    untouched[target] = _means(trace(model, batch, required_by(functions)), functions)
                if parts is not None:
                    found = _grafted(model, batch, group, parts, functions)
                else:
                    found = _patched(model, batch, group, functions, most)
                for step, means in found:
                    cells[step, target] = means
                    bar.update()
    attrs = {"what": f"weights of {_said(parts)}" if parts is not None else _said(what), "prompts": len(batch)}
    if donor is not run:
        attrs["donor"] = repr(donor)
    return _dataset(cells, untouched, alone, sources, targets, attrs)


# One target, many sources.


def _grafted(
    model: Any, batch: Batch, group: dict[int, Any], parts: str | Sequence[str], functions: list[Metric]
) -> Iterator[tuple[int, Means]]:
    """Weights: one copy of the target at a time."""
    for step, source in group.items():
        yield step, _means(trace(graft(model, source, parts), batch, required_by(functions)), functions)


def _patched(
    model: Any, batch: Batch, group: dict[int, Activations], functions: list[Metric], most: int
) -> Iterator[tuple[int, Means]]:
    """Activations: up to `most` sources a pass, stacked along the batch; by `_AnswerRows` where that serves."""
    sites = list(next(iter(group.values())))
    if any(len(x) != len(batch) for held in group.values() for x in held.values()):
        most = 1  # a site that prompts share cannot hold several sources
    batch = batch.to(device_of(model))
    suits = _AnswerRows.suits(model, batch, sites)
    quick = [f for f in functions if suits and set(getattr(f, "requires", ("everything",))) <= QUICK]
    rest = [f for f in functions if f not in quick]
    rows = _AnswerRows(model, batch) if quick else None
    for steps in (list(group)[i : i + most] for i in range(0, len(group), most)):
        columns = {name: getattr(batch, name).repeat(len(steps), 1) for name in TENSOR_FIELDS}
        stacked = replace(batch, **columns)
        means: Means = {}
        with intervene(model, *(Patch(site, torch.cat([group[step][site] for step in steps])) for site in sites)):
            if rows is not None:
                means |= _means(rows.trace(stacked, required_by(quick)), quick, len(steps))
            if rest:
                means |= _means(trace(model, stacked, required_by(rest)), rest, len(steps))
        for i, step in enumerate(steps):
            yield step, {f.__name__: means[f.__name__][i : i + 1] for f in functions}


class _AnswerRows:
    """The answer rows of a `Transformer`, for many patches behind the last layer's keys and values at once.

    The prompt is run once, and its keys and values are copied for each source. With teacher forcing, one copy
    of the answer rows goes as far as the last layer's queries, keys and values; then each source has its own.
    """

    @staticmethod
    def suits(model: Any, batch: Batch, sites: list[str]) -> bool:
        """Whether every site lies behind, and nobody else's hooks or interventions are on the model."""
        if (
            not hasattr(model, "kv_cache")
            or model.kv_cache(1) is None
            or active_interventions(model)
            or has_user_hooks(model)
        ):
            return False
        last = f"blocks.{n_layers(model) - 1}."
        behind = (*(last + name for name in BEHIND), "ln_final.*", "unembed.*")
        starts = batch.answer_positions[:, 0]
        batch_by_length = bool((starts == starts[0]).all() and (batch.answer_positions >= 0).all())
        prompts = not batch.n_new and int(starts[0]) > 0 and batch_by_length
        return prompts and all(any(fnmatchcase(site, glob) for glob in behind) for site in sites)

    @without_gradients
    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch, self.first = model, batch, batch.prompt_len - 1
        self.prompt = model.kv_cache(len(batch))
        model(batch.inputs[:, : self.first], return_type=None, past_kv_cache=self.prompt)

    @without_gradients
    def trace(self, stacked: Batch, requires: Sequence[str] | None) -> Trace:
        """What `reads` names of `QUICK`, for copies of the batch, under the patches that are on."""
        count = len(stacked) // len(self.batch)
        forced = {"answer_outputs", "answer_entropy"} & set(requires or ())
        answers = self._teacher_forced(stacked, count) if forced else None
        generated = self._decoded(stacked, count) if requires and "generated" in requires else None
        depth, d_vocab = n_layers(self.model), int(self.model.cfg.d_vocab)
        return Trace(stacked, {}, None, generated, depth, d_vocab, _answer_outputs=answers)

    def _teacher_forced(self, stacked: Batch, count: int) -> Float[Tensor, "batch out d_vocab"]:
        n, depth, last = len(self.batch), n_layers(self.model), self.model.blocks[-1]
        copy, copies = self._cache(1, range(depth)), self._cache(count, [depth - 1])
        handles = [last.register_forward_pre_hook(lambda block, args: (args[0].repeat(count, 1, 1), copies))]
        for batch_by_length in (last.attn.q, last.attn.k, last.attn.v):  # alike for every source: once is enough
            handles.append(batch_by_length.register_forward_pre_hook(lambda linear, args: (args[0][:n],)))
            handles.append(
                batch_by_length.register_forward_hook(lambda linear, args, output: output.repeat(count, 1, 1))
            )
        try:
            logits = self.model(self.batch.inputs[:, self.first :], past_kv_cache=copy)
        finally:
            for handle in handles:
                handle.remove()
        return logits.gather(
            1, (stacked.answer_positions - self.first).clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
        )

    def _decoded(self, stacked: Batch, count: int) -> Int[Tensor, "batch out"]:
        """As `greedy_decode`, from the prompt's last token on."""
        cache, tokens = self._cache(count, range(n_layers(self.model))), [stacked.tokens[:, self.first, None]]
        for _ in range(stacked.answer_positions.shape[1]):
            tokens.append(self.model(tokens[-1], past_kv_cache=cache)[:, -1].argmax(-1, keepdim=True))
        return torch.cat(tokens[1:], 1)

    def _cache(self, count: int, layers: Sequence[int]) -> Any:
        """The prompt's keys and values in these layers, `count` times."""
        cfg, n = self.model.cfg, len(self.batch)
        cache, none = self.model.kv_cache(count * n), self.model.W_E.new_empty(n, 0, cfg.n_heads, cfg.d_head)
        for layer in layers:
            k, v = self.prompt.append(layer, none, none)  # appending nothing reads
            cache.append(layer, k.repeat(count, 1, 1, 1), v.repeat(count, 1, 1, 1))
        return cache


# Steps, sizes, means.


def _steps(run: Any, steps: Sequence[int] | None, role: str) -> list[int]:
    known = chosen_steps(run)
    chosen = known if steps is None else list(dict.fromkeys(int(step) for step in steps))
    if not chosen:
        raise ValueError(f"{role}s= is empty; leave it out for all of {known}")
    for step in chosen:
        if step not in known:
            near = min(known, key=lambda s: abs(s - step))
            raise ValueError(f"{role} step {step} has no checkpoint in {run!r}; nearest: {near}, all: {known}")
    return chosen


def _groups(steps: list[int], read: Callable[[int], Any]) -> Iterator[dict[int, Any]]:
    """Sources in groups of about `HELD` bytes."""
    group: dict[int, Any] = {}
    size = 0
    for step in steps:
        group[step] = read(step)
        tensors = group[step].values() if isinstance(group[step], dict) else group[step].parameters()
        size += sum(x.nbytes for x in tensors)
        if size >= SOURCE_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _sources_a_pass(model: Any, plain: Trace) -> int:
    """How many stacked sources take about `STACKED` bytes: what their traces keep, and one layer's activations."""
    cfg, (n, rows) = model.cfg, plain.batch.inputs.shape
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    values = n * rows * (8 * cfg.d_model + 2 * d_mlp + cfg.n_heads * rows + cfg.d_vocab)
    kept = sum(x.nbytes for x in plain.cache.values())
    return max(1, STACKED // (kept + values * next(model.parameters()).element_size()))


def _means(t: Trace, functions: Sequence[Metric], count: int = 1) -> Means:
    """Means over the prompts of each of `count` stacked sources, as `measure` takes them."""
    found: Means = {}
    short = ~t.valid.all(1)
    for f in functions:
        value = f(t).float()
        pairs = zip(value.chunk(count), short.chunk(count)) if value.ndim else ()
        found[f.__name__] = torch.stack([mean_over_prompts(*pair) for pair in pairs] or [value]).cpu()
    return found


def _said(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def _dataset(
    cells: dict[tuple[int, int], Means],
    untouched: dict[int, Means],
    alone: dict[int, Means],
    sources: list[int],
    targets: list[int],
    attrs: dict[str, Any],
) -> xr.Dataset:
    names = list(untouched[targets[0]])

    def array(means: Iterable[Means], name: str) -> Float[np.ndarray, "step ..."]:
        return torch.cat([m[name] for m in means]).numpy()

    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {"source": sources, "target": targets}
    for name in names:
        grid = np.stack([array((cells[s, t] for t in targets), name) for s in sources])
        entries = [f"{name}_entry"] * (grid.ndim - 2)
        variables[name] = (["source", "target", *entries], grid)
        coords[f"{name}_unpatched"] = (["target", *entries], array((untouched[t] for t in targets), name))
        coords[f"{name}_source"] = (["source", *entries], array((alone[s] for s in sources), name))
    return xr.Dataset(variables, coords, attrs)
