"""Patching across training steps: activations or weights of step s in the model of step t, for all pairs (s, t).

    grid = patch_across_steps(run, run.eval_batch()[:64])       # attention patterns, teacher-forced accuracy
    grid.tf_accuracy.sel(source=400, target=100).item()         # the model of step 100 with the attention of 400
    patch_across_steps(run, run.eval_batch()[:64], parts="mlp", metrics=["accuracy"])             # weights instead
    plots.step_grid(grid)

Several sources are stacked along the batch and run in one pass of the target; where it is exact, only the answer rows
are run (`SharedPromptPass`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from plateaulens.analysis.checkpoint_steps import chosen_steps
from plateaulens.analysis.shared_prompt import ANSWER_VALUES, SharedPromptPass
from plateaulens.batch import TENSOR_FIELDS, Batch
from plateaulens.hooks import PATTERN_HOOKS, check_writable, device_of, match_hooks
from plateaulens.interventions import Patch, intervene
from plateaulens.metrics.measuring import mean_over_prompts, required_by, resolve
from plateaulens.models.parameter_groups import graft, parameters_of
from plateaulens.models.transformer import Transformer
from plateaulens.protocols import CheckpointSeries, HookedModel, Metric
from plateaulens.tracing.traces import Trace, trace

SOURCE_BYTES = 2**30  # of source activations or weights that are kept at once
PASS_BYTES = 2**27  # of activations, estimated, in one pass over stacked sources

Source = dict[str, Tensor] | HookedModel  # what is kept of a source step: activations by hook name, or the model
Means = dict[str, Tensor]  # metric -> [source ...], the mean over prompts for each stacked source


def patch_across_steps(
    run: CheckpointSeries,
    batch: Batch,
    sites: str | Sequence[str] | None = None,
    metrics: Sequence[Metric | str] = ("tf_accuracy",),
    *,
    parts: str | Sequence[str] | None = None,
    sources: Sequence[int] | None = None,
    targets: Sequence[int] | None = None,
    donor: CheckpointSeries | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Put activations (or weights) of every source step into the model of every target step, and measure.

    A cell holds what `measure` gives inside `intervene(target, Patch(site, activations of the source))`, or what it
    gives for `graft(target, source, parts)`. The activations are those of the source on the same prompts,
    teacher-forced. A target that decodes under them may therefore answer differently from the source and, on the
    diagonal, from its untouched self.

    Memory: up to 1 GiB (and one source more) of source activations or weights, and for each pass 128 MiB of
    activations, or those of one source if they alone take more. It does not grow with the number of steps.

    Args:
        run: A Run or a suite of checkpoints, whose models are the targets.
        batch: The prompts; 64 are enough for a readable grid.
        sites: Hook names or globs of the activations to put in. By default the attention patterns of all layers.
        metrics: Names or functions of metrics, as in `measure`.
        parts: Weights to put in, in place of activations: names of `plateaulens.models.parameter_groups.PARTS`, or
            globs over parameter names.
        sources: Steps of the donor; by default all of its checkpoints.
        targets: Steps of the run; by default all of its checkpoints.
        donor: The run or suite whose models are the sources; by default `run` itself.
        progress: Whether to show a progress bar.

    Returns:
        A variable [source target] for each metric, over the step numbers; metrics with several values a prompt have a
        third axis. Coordinates `NAME_unpatched` [target] and `NAME_source` [source] are its values in the untouched
        models.

    Raises:
        ValueError: If there are no checkpoints, a step has none, a site or part is unknown or not writable, both
            `sites` and `parts` are given, there is nothing to measure, or the donor has other shapes.
    """
    if sites is not None and parts is not None:
        raise ValueError("give sites= (activations) or parts= (weights), not both")
    donor = run if donor is None else donor
    source_steps, target_steps = _checked_steps(donor, sources, "source"), _checked_steps(run, targets, "target")
    pairs = _Pairs(run, donor, batch, PATTERN_HOOKS if sites is None else sites, metrics, parts, target_steps[0])
    cells: dict[tuple[int, int], Means] = {}
    with tqdm(total=len(source_steps) * len(target_steps), unit="pair", disable=not progress) as bar:
        for group in _groups(source_steps, pairs.read_source):
            for target in target_steps:
                for source, means in pairs.measure(target, group):
                    cells[source, target] = means
                    bar.update()
    what = _joined(PATTERN_HOOKS if sites is None else sites) if parts is None else f"weights of {_joined(parts)}"
    attrs = {"what": what, "prompts": len(batch)}
    if donor is not run:
        attrs["donor"] = repr(donor)
    return _dataset(cells, pairs.target_means, pairs.source_means, source_steps, target_steps, attrs)


class _Pairs:
    """Measurements of pairs of steps, and of the untouched models along the way.

    Attributes:
        target_means: means of the untouched targets by step, filled as they are measured.
        source_means: those of the untouched sources; the same dict where the sources are the run's own.
    """

    def __init__(
        self,
        run: CheckpointSeries,
        donor: CheckpointSeries,
        batch: Batch,
        sites: str | Sequence[str],
        metrics: Sequence[Metric | str],
        parts: str | Sequence[str] | None,
        first_target: int,
    ) -> None:
        self.run, self.donor, self.batch, self.parts = run, donor, batch, parts
        self.globs = [] if parts is not None else [sites] if isinstance(sites, str) else list(sites)
        model = run.model(first_target)
        self.metrics = resolve(model, metrics, batch.task)
        if not self.metrics or (parts is None and not self.globs):
            raise ValueError("nothing to do: name at least one metric in metrics= and one site in sites=")
        self.sites = match_hooks(model, self.globs)
        for site in self.sites:
            check_writable(model, site)
        if parts is not None:
            parameters_of(model, parts)
        untouched = trace(model, batch, required_by(self.metrics, self.sites))
        self.target_means = {first_target: _means(untouched, self.metrics)}
        self.source_means: dict[int, Means] = self.target_means if donor is run else {}
        self.shapes = {site: untouched.cache[site].shape for site in self.sites}
        # Sources can be stacked if metrics have a value for each prompt, and no site has one value for all prompts.
        can_stack = len(batch) > 1 and all(metric(untouched).ndim for metric in self.metrics)
        can_stack = can_stack and all(shape[0] == len(batch) for shape in self.shapes.values())
        self.sources_per_pass = _sources_per_pass(model, untouched) if can_stack else 1

    def read_source(self, step: int) -> Source:
        """The activations of a source; with `parts` the model itself."""
        source = self.donor.model(step)
        if self.parts is None and self.donor is not self.run and match_hooks(source, self.globs) != self.sites:
            raise ValueError(
                f"{_joined(self.globs)} matches other sites in the donor than in the run; name each site in full"
            )
        is_measured = step in self.source_means
        traced = trace(source, self.batch, self.sites if is_measured else required_by(self.metrics, self.sites))
        if not is_measured:
            self.source_means[step] = _means(traced, self.metrics)
        for site, shape in self.shapes.items():
            if (donor_shape := traced.cache[site].shape) != shape:
                raise ValueError(
                    f"{site} is {[*donor_shape]} in the donor and {[*shape]} in the run; they must be the same"
                )
        return source if self.parts is not None else {site: traced.cache[site] for site in self.sites}

    def measure(self, target: int, group: dict[int, Source]) -> Iterator[tuple[int, Means]]:
        """Step and means of each source of `group`, in the model of step `target`."""
        model = self.run.model(target)
        if target not in self.target_means:
            self.target_means[target] = _means(trace(model, self.batch, required_by(self.metrics)), self.metrics)
        if self.parts is None:
            yield from self._patched(model, group)
            return
        for step, source in group.items():  # one copy of the target at a time
            grafted = graft(model, cast(HookedModel, source), self.parts)
            yield step, _means(trace(grafted, self.batch, required_by(self.metrics)), self.metrics)

    def _patched(self, model: HookedModel, group: dict[int, Any]) -> Iterator[tuple[int, Means]]:
        batch, steps = self.batch.to(device_of(model)), list(group)
        is_exact = SharedPromptPass.is_exact(model, batch, self.sites)
        of_answers = [f for f in self.metrics if is_exact and set(getattr(f, "requires", ("all",))) <= ANSWER_VALUES]
        others = [f for f in self.metrics if f not in of_answers]
        answers = SharedPromptPass(cast(Transformer, model), batch) if of_answers else None
        for stack in (steps[i : i + self.sources_per_pass] for i in range(0, len(steps), self.sources_per_pass)):
            tensors = {name: getattr(batch, name).repeat(len(stack), 1) for name in TENSOR_FIELDS}
            stacked = replace(batch, **tensors)
            means: Means = {}
            patches = [Patch(site, torch.cat([group[step][site] for step in stack])) for site in self.sites]
            with intervene(model, *patches):
                if answers is not None:
                    answer_trace = answers.trace(stacked, required_by(of_answers) or ())
                    means |= _means(answer_trace, of_answers, len(stack))
                if others:
                    means |= _means(trace(model, stacked, required_by(others)), others, len(stack))
            for i, step in enumerate(stack):
                yield step, {f.__name__: means[f.__name__][i : i + 1] for f in self.metrics}


def _checked_steps(run: CheckpointSeries, steps: Sequence[int] | None, role: str) -> list[int]:
    known = chosen_steps(run)
    chosen = known if steps is None else list(dict.fromkeys(int(step) for step in steps))
    if not chosen:
        raise ValueError(f"{role}s= is empty; leave it out for all of {known}")
    for step in chosen:
        if step not in known:
            nearest = min(known, key=lambda s: abs(s - step))
            raise ValueError(f"{role} step {step} has no checkpoint in {run!r}; nearest: {nearest}, all: {known}")
    return chosen


def _groups(steps: list[int], read: Callable[[int], Source]) -> Iterator[dict[int, Source]]:
    """Sources in groups of about `SOURCE_BYTES`."""
    group: dict[int, Source] = {}
    size = 0
    for step in steps:
        source = group[step] = read(step)
        size += sum(x.nbytes for x in (source.values() if isinstance(source, dict) else source.parameters()))
        if size >= SOURCE_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _sources_per_pass(model: HookedModel, untouched: Trace) -> int:
    """How many stacked sources take about `PASS_BYTES`: what their traces keep, and the activations of one layer."""
    cfg, (n, rows) = model.cfg, untouched.batch.inputs.shape
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    n_values = n * rows * (8 * cfg.d_model + 2 * d_mlp + cfg.n_heads * rows + cfg.d_vocab)
    kept_bytes = sum(x.nbytes for x in untouched.cache.values())
    return max(1, PASS_BYTES // (kept_bytes + n_values * next(model.parameters()).element_size()))


def _means(t: Trace, metrics: Sequence[Metric], n_sources: int = 1) -> Means:
    """Means over the prompts of each of `n_sources` stacked sources, as `measure` takes them."""
    means: Means = {}
    is_short = ~t.valid.all(1)
    for metric in metrics:
        value = metric(t).float()
        pairs = zip(value.chunk(n_sources), is_short.chunk(n_sources)) if value.ndim else ()
        means[metric.__name__] = torch.stack([mean_over_prompts(*pair) for pair in pairs] or [value]).cpu()
    return means


def _joined(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def _dataset(
    cells: dict[tuple[int, int], Means],
    target_means: dict[int, Means],
    source_means: dict[int, Means],
    sources: list[int],
    targets: list[int],
    attrs: dict[str, Any],
) -> xr.Dataset:
    def array(means: Iterable[Means], name: str) -> Float[np.ndarray, "step ..."]:
        return torch.cat([m[name] for m in means]).numpy()

    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {"source": sources, "target": targets}
    for name in target_means[targets[0]]:
        grid = np.stack([array((cells[s, t] for t in targets), name) for s in sources])
        entries = [f"{name}_entry"] * (grid.ndim - 2)
        variables[name] = (["source", "target", *entries], grid)
        coords[f"{name}_unpatched"] = (["target", *entries], array((target_means[t] for t in targets), name))
        coords[f"{name}_source"] = (["source", *entries], array((source_means[s] for s in sources), name))
    return xr.Dataset(variables, coords, attrs)
