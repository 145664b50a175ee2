"""`evaluate`: metrics of every step of a suite, each result kept as soon as it is measured.

    results = pl.lm.evaluate(pl.lm.pythia("14m"), "results/pythia-14m", steps=[0, 16, 64])
    results.metrics                    # a row per step, means over prompts
    results.values(16)["collapse"]     # one value per prompt

    evaluation.json       suite, prompts, decoding, metrics, versions
    prompts.safetensors   tokens of the prompts
    steps/000016.json     results of step 16, written atomically: values per prompt, generated text, weight files
    report.html           written by `plateaulens checkpoints report`

An evaluation that was interrupted at any moment continues when it is called again.
"""

import gc
import json
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from plateaulens._io import read_tensors, to_json_value, versions, write_json, write_tensors
from plateaulens._registry import build
from plateaulens.batch import TENSOR_FIELDS, Batch, Decoding
from plateaulens.lm.hub import HubSource
from plateaulens.lm.plain_model import is_readable
from plateaulens.lm.source import LocalSource, list_steps
from plateaulens.lm.suite import Checkpoints
from plateaulens.lm.weight_audit import Audit
from plateaulens.metrics.measuring import measure, named_metric
from plateaulens.protocols import CheckpointSeries, HookedModel, Metric, requires
from plateaulens.tracing.traces import FINAL, WITHOUT_HOOKS, Trace

# Metrics of a language model unless others are given.
LANGUAGE_METRICS = (
    *("collapse", "repetition", "rep@2", "distinct@2", "entropy", "prediction_entropy"),
    *(f"{metric}@{FINAL}" for metric in ("effective_rank", "anisotropy", "centered_anisotropy", "norm")),
    "collapse@blocks.*.hook_resid_post",
)
HEADLINE_METRICS = ("collapse", "repetition")  # the two of arXiv 2506.13688
PACKAGES = ("plateaulens", "torch", "transformer-lens", "transformers")
OWN_FILES = ("evaluation.json", "prompts.safetensors", "steps")  # a folder with only these, and no step, is replaced


class EvaluatedCheckpoints:
    """The results of an evaluation, step by step.

    Args:
        path: Folder of the evaluation.

    Raises:
        FileNotFoundError: When `path` is not the folder of an evaluation.
        ValueError: When its evaluation.json is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "evaluation.json").is_file():
            raise FileNotFoundError(
                f"{self.path} is not an evaluation (no evaluation.json); make one by plateaulens checkpoints evaluate"
            )
        try:
            self.config: dict[str, Any] = dict(json.loads((self.path / "evaluation.json").read_text()))
            if missing := {"suite", "metrics", "n_new", "decoding"} - self.config.keys():
                raise ValueError(f"no {min(missing)}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path / 'evaluation.json'} is damaged ({error})") from error

    @property
    def name(self) -> str:
        """Name of the suite."""
        return str(self.config["suite"])

    @property
    def steps(self) -> list[int]:
        """Evaluated steps, ascending."""
        return sorted(int(p.stem) for p in (self.path / "steps").glob("*.json") if p.stem.isdigit())

    def step(self, step: int) -> dict[str, Any]:
        """The record of a step: values, generated tokens, near_ties, seconds.

        Of `Checkpoints` also `generated_text`, revision, files, a digest of the weights, and the
        evidence, if any, that these are another step's.

        Raises:
            ValueError: For a step that was not evaluated, or a damaged file.
        """
        path = self.path / "steps" / f"{step:06d}.json"
        if not path.is_file():
            raise ValueError(f"step {step} was not evaluated in {self.path}; evaluated steps are {self.steps}")
        try:
            record = dict(json.loads(path.read_text()))
            if missing := {"values", "generated", "near_ties"} - record.keys():
                raise ValueError(f"no {min(missing)}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and evaluate again") from error
        return record

    def values(self, step: int) -> dict[str, np.ndarray]:
        """Each metric of a step: a value, or a row of values, per prompt; NaN where a prompt has none."""
        return {name: np.array(values, dtype=float) for name, values in self.step(step)["values"].items()}

    @property
    def metrics(self) -> pd.DataFrame:
        """Means over prompts, a row per step; `near_ties` counts the prompts that were run again by themselves."""
        rows = []
        for step in self.steps:
            record = self.step(step)
            means = {name: _mean(values) for name, values in record["values"].items()}
            rows.append({"step": step, **means, "near_ties": record["near_ties"]})
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame(index=pd.Index([], name="step"))

    @property
    def prompts(self) -> Batch:
        """The prompts, without a task."""
        tensors = read_tensors(self.path / "prompts.safetensors")
        decoding = build(Decoding, self.config["decoding"], "decoding")
        return Batch(**tensors, n_new=self.config["n_new"], decoding=decoding)

    def __repr__(self) -> str:
        return f"EvaluatedCheckpoints({str(self.path)!r}, {self.name}, {len(self.steps)} steps)"


def evaluate(
    suite: CheckpointSeries,
    path: str | Path,
    prompts: Batch | None = None,
    metrics: Sequence[Metric | str] | str | None = None,
    steps: Iterable[int] | None = None,
    *,
    progress: bool = True,
) -> EvaluatedCheckpoints:
    """Measure the steps of `suite` on `prompts`; steps that the folder already has are not measured again.

    A bridge is opened only where a metric needs a hook that Hugging Face's own model does not have.

    Args:
        suite: `Checkpoints`, a `Run`, or any other series of checkpoints.
        path: A new folder, or that of an evaluation of the same suite, prompts and metrics.
        prompts: Prompts or a task's batch; by default `suite.prompts()`, 100 questions answered with 8 tokens each.
        metrics: Metrics as in `measure`; by default `lm.DEFAULT_METRICS`.
        steps: Steps to measure; all by default.
        progress: Whether to show what will be fetched, and a progress bar.

    Returns:
        The results, those of earlier calls included.

    Raises:
        ValueError: For a step without a checkpoint, an unknown metric, or a folder that has another evaluation.
        ConnectionError: When the Hub cannot be reached; results so far are kept.
    """
    from tqdm.auto import tqdm

    if prompts is None:
        if not isinstance(suite, Checkpoints):
            raise ValueError(f"{suite!r} has no prompts of its own; pass prompts=, for a run run.eval_batch()")
        prompts = suite.prompts()
    metrics = [metrics] if isinstance(metrics, str) else list(LANGUAGE_METRICS if metrics is None else metrics)
    _check_metrics(metrics, prompts)
    chosen = _existing_steps(suite, suite.steps if steps is None else steps)
    results = _open_folder(Path(path), suite, prompts, metrics)
    audit = _audit(suite, results, chosen, progress)
    if audit is not None:
        chosen = _with_weights(suite, audit, chosen, skip=steps is None)
    pending = [step for step in chosen if step not in set(results.steps)]
    if pending and progress and isinstance(suite, Checkpoints):
        tqdm.write(fetch_summary(suite, pending))
    models = closing(_models(suite, pending, plain_models=not _needs_bridge(metrics, prompts)))
    with models as walk, tqdm(total=len(pending), unit="step", disable=not progress) as bar:
        for step, model in walk:
            start = time.monotonic()
            record = {"step": step, **_measure(model, prompts, metrics)}
            del model
            record |= {**_provenance(suite, step, audit, record), "seconds": round(time.monotonic() - start, 3)}
            write_json(results.path / "steps" / f"{step:06d}.json", record)
            bar.update()
            bar.set_postfix({"step": step, **_headline(record)})
    return results


def fetch_summary(suite: Checkpoints, steps: Sequence[int]) -> str:
    """One line on how many bytes will be fetched, and how many may be on disk at once."""
    from tqdm import tqdm

    sizes = [suite.size(step) for step in steps]
    each, total, cap = (tqdm.format_sizeof(n, "B") for n in (max(sizes), sum(sizes), suite.max_bytes or 2 * max(sizes)))
    line = f"{suite.name}: {len(steps)} steps ({list_steps(steps)}) of up to {each}, {total} in all"
    return line if isinstance(suite.source, LocalSource) else f"{line} to fetch; on disk at most {cap}"


def _check_metrics(metrics: Sequence[Metric | str], prompts: Batch) -> None:
    """Refuse unknown metrics before anything is written."""
    for metric in metrics:
        named_metric(metric, prompts.task)
        if getattr(metric, "__name__", "") == "<lambda>":
            raise ValueError("an evaluation is identified by the names of its metrics, and a lambda has none; use def")


def _needs_bridge(metrics: Sequence[Metric | str], prompts: Batch) -> bool:
    """Whether a metric reads anything that a `PlainModel` does not have."""
    for metric in metrics:
        where = metric.partition("@")[2] if isinstance(metric, str) else ""
        if where == "*":  # every residual site, of which a bridge has more
            return True
        names = getattr(named_metric(metric, prompts.task), "requires", None)
        if names is None or not all(name in WITHOUT_HOOKS or is_readable(name) for name in names):
            return True
    return False


def _models(
    suite: CheckpointSeries, steps: list[int], *, plain_models: bool
) -> Generator[tuple[int, HookedModel], None, None]:
    """(step, model) of each step in turn."""
    if isinstance(suite, Checkpoints):
        with closing(suite.walk(steps, plain=plain_models)) as models:
            yield from models
        return
    for step in steps:
        yield step, suite.model(step)
        gc.collect()


@requires("generated")
def _generated(t: Trace) -> Tensor:
    return t.generated


@requires("generated")
def _near_ties(t: Trace) -> Tensor:
    return torch.zeros(len(t.batch)) if t.near_ties is None else t.near_ties.any(1).float()


def _measure(model: HookedModel, prompts: Batch, metrics: Sequence[Metric | str]) -> dict[str, Any]:
    """Values, generated tokens and number of near ties."""
    tensors = measure(model, prompts, [*metrics, _generated, _near_ties], reduce=None)
    generated, near_ties = tensors.pop("_generated"), tensors.pop("_near_ties")
    values = {name: to_json_value(tensor) for name, tensor in tensors.items()}
    return {"values": values, "generated": generated.tolist(), "near_ties": int(near_ties.sum())}


def _provenance(suite: CheckpointSeries, step: int, audit: Audit | None, record: dict[str, Any]) -> dict[str, Any]:
    """Revision and files of a step, its generated tokens as text, and the audit's digest and evidence."""
    more: dict[str, Any] = {}
    if isinstance(suite, Checkpoints):
        more |= {"revision": suite.revision(step), "files": {f.path: f.digest for f in suite.files(step)}}
        more["generated_text"] = _as_texts(suite, record["generated"])
    if audit is not None:
        more |= {"weights": audit.table.digest[step], "evidence": audit.evidence(step)}
    return more


def _headline(record: dict[str, Any]) -> dict[str, str]:
    """Means to show in the progress bar."""
    values = record["values"]
    return {name: f"{_mean(values[name]):.3f}" for name in HEADLINE_METRICS if name in values}


def _existing_steps(suite: CheckpointSeries, steps: Iterable[int]) -> list[int]:
    """The steps without repetition; refused if one has no checkpoint."""
    chosen = list(dict.fromkeys(steps))
    if absent := [step for step in chosen if step not in set(suite.steps)]:
        raise ValueError(f"{suite!r} has no checkpoint of step {absent[0]}; it has {list_steps(suite.steps)}")
    return chosen


def _audit(
    suite: CheckpointSeries, results: EvaluatedCheckpoints, steps: Sequence[int], progress: bool
) -> Audit | None:
    """Audit the steps where that costs no download; refuse if evaluated ones have other weights than they had."""
    if not isinstance(suite, Checkpoints) or not isinstance(suite.source, HubSource | LocalSource):
        return None
    if isinstance(suite.source, HubSource) and not progress:
        suite.source.client.progress = False  # no bars of downloads either
    audit = suite.audit_steps(steps, progress=progress)
    for step in set(steps) & set(results.steps):
        record, evidence = results.step(step), audit.evidence(step)
        if record.get("weights") != audit.table.digest[step]:
            raise ValueError(
                f"{results.path} has step {step} of other weights than {suite.name} has now; choose another folder, or "
                f"remove steps/{step:06d}.json there to measure it again"
            )
        if record["evidence"] != evidence:  # a step of the same weights was not audited before
            write_json(results.path / "steps" / f"{step:06d}.json", record | {"evidence": evidence})
    return audit


def _with_weights(suite: Any, audit: Audit, steps: list[int], *, skip: bool) -> list[int]:
    """The steps that have weights; the others are left out with a note, or refused unless `skip`."""
    from tqdm.auto import tqdm

    missing = [step for step in steps if step in audit.missing]
    if missing and not skip:
        raise ValueError(f"step {missing[0]} of {suite.name} has no weights; leave it out")
    if missing:
        tqdm.write(f"{suite.name}: left out, as they have no weights: {list_steps(missing)}", file=sys.stderr)
    return [step for step in steps if step not in missing]


def _open_folder(
    path: Path, suite: CheckpointSeries, prompts: Batch, metrics: Sequence[Metric | str]
) -> EvaluatedCheckpoints:
    """The evaluation in a folder: new, or the existing one if it is of the same suite, prompts and metrics."""
    config = _config(suite, prompts, metrics)
    tensors = {name: getattr(prompts, name).cpu() for name in TENSOR_FIELDS}
    if (path / "evaluation.json").is_file() and (results := EvaluatedCheckpoints(path)).steps:
        for name, value in json.loads(json.dumps(config)).items():
            if results.config.get(name) != value:
                raise ValueError(
                    f"{path} has an evaluation with {name} {results.config.get(name)!r}, not {value!r}; choose another "
                    "folder"
                )
        saved = read_tensors(path / "prompts.safetensors")
        if any(not torch.equal(saved[name], tensor) for name, tensor in tensors.items()):
            raise ValueError(f"{path} has an evaluation of other prompts; choose another folder")
        return results
    if path.exists() and (not path.is_dir() or any(p.name not in OWN_FILES for p in path.iterdir())):
        raise FileExistsError(f"{path} is not empty and has no evaluation; choose another folder")
    write_tensors(path / "prompts.safetensors", tensors)
    about = {
        "prompts": len(prompts),
        "texts": _prompt_texts(suite, prompts),
        "device": str(getattr(suite, "device", "cpu")),
        "versions": versions(*PACKAGES),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path / "evaluation.json", {**config, **about})  # last: a folder that has it is complete
    return EvaluatedCheckpoints(path)


def _config(suite: CheckpointSeries, prompts: Batch, metrics: Sequence[Metric | str]) -> dict[str, Any]:
    """What identifies an evaluation: the folder of one is refused to another."""
    run_config = getattr(suite, "config", None)
    return {
        "format": 3,
        "suite": getattr(suite, "name", None) or str(getattr(suite, "path", type(suite).__name__)),
        "metrics": [m if isinstance(m, str) else m.__name__ for m in metrics],
        "n_new": prompts.n_new,
        "decoding": asdict(prompts.decoding),
        "dtype": str(getattr(suite, "dtype", torch.float32)),
        "pattern": getattr(suite.source, "pattern", None) if isinstance(suite, Checkpoints) else None,
        "trained": run_config.get("created") if isinstance(run_config, dict) else None,
    }


def _as_texts(suite: Checkpoints, rows: list[list[int]]) -> list[str]:
    return list(suite.tokenizer.batch_decode(rows)) if suite.has_tokenizer else []


def _prompt_texts(suite: CheckpointSeries, prompts: Batch) -> list[str]:
    if not isinstance(suite, Checkpoints):
        return []
    rows = zip(prompts.tokens.tolist(), prompts.answer_positions[:, 0].tolist(), strict=True)
    return _as_texts(suite, [row[: end + 1] for row, end in rows])


def _mean(values: Any) -> Any:
    """The mean over prompts, or of rows of values the mean of each column over the prompts that have it."""
    array = np.array(values, dtype=float)
    if array.ndim > 1:
        return np.nanmean(array, 0).tolist()
    return float(array.mean())
