"""`survey`: measure every step of a suite, and keep each result as soon as there is one.

    done = pl.lm.evaluate(pl.lm.pythia("14m"), "surveys/pythia-14m", steps=[0, 16, 64])
    done.metrics                    # a row per step, means over prompts
    done.values(16)["collapse"]     # one value a prompt

    evaluation.json           what was asked: suite, prompts, decoding, measurements, versions
    prompts.safetensors   the prompts' tokens
    steps/000016.json     everything about step 16, written whole: values a prompt, what was said, which files
    report.html           written by `plateaulens checkpoints report`

A survey that was cut off at any moment goes on where it was when it is called again.
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
from plateaulens.lm.source import LocalSource, few
from plateaulens.lm.suite import Checkpoints
from plateaulens.lm.weight_audit import Audit
from plateaulens.metrics.measuring import measure, named_metric
from plateaulens.protocols import Metric, requires
from plateaulens.tracing.traces import FINAL, Trace

# What is measured of a language model unless told otherwise.
LANGUAGE_METRICS = (
    *("collapse", "repetition", "rep@2", "distinct@2", "entropy", "prediction_entropy"),
    *(f"{metric}@{FINAL}" for metric in ("effective_rank", "anisotropy", "centered_anisotropy", "norm")),
    "collapse@blocks.*.hook_resid_post",
)
PACKAGES = ("plateaulens", "torch", "transformer-lens", "transformers")


class EvaluatedCheckpoints:
    """What was measured of a suite, step by step; `EvaluatedCheckpoints(path)` opens one.

    Raises:
        FileNotFoundError: when `path` is no survey.
        ValueError: when its evaluation.json is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "evaluation.json").is_file():
            raise FileNotFoundError(
                f"{self.path} is not a survey (no evaluation.json); make one: plateaulens checkpoints measure"
            )
        try:
            self.config: dict[str, Any] = dict(json.loads((self.path / "evaluation.json").read_text()))
            if missing := {"suite", "metrics", "n_new", "decoding"} - self.config.keys():
                raise ValueError(f"no {min(missing)}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path / 'evaluation.json'} is damaged ({error})") from error

    @property
    def name(self) -> str:
        """The suite."""
        return str(self.config["suite"])

    @property
    def steps(self) -> list[int]:
        """Steps that were measured, ascending."""
        return sorted(int(p.stem) for p in (self.path / "steps").glob("*.json") if p.stem.isdigit())

    def step(self, step: int) -> dict[str, Any]:
        """Everything that is kept of a step: values, generated, near_ties, seconds.

        Of a suite also what was said in words, its revision, files, a digest of the weights, and the evidence, if any,
        that these are another step's.

        Raises:
            ValueError: for a step that was not measured, or a damaged file.
        """
        path = self.path / "steps" / f"{step:06d}.json"
        if not path.is_file():
            raise ValueError(f"step {step} was not measured in {self.path}; there are {self.steps}")
        try:
            kept = dict(json.loads(path.read_text()))
            if missing := {"values", "generated", "near_ties"} - kept.keys():
                raise ValueError(f"no {min(missing)}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and survey again") from error
        return kept

    def values(self, step: int) -> dict[str, np.ndarray]:
        """Each measurement of a step, a value (or row of values) a prompt; what has none is NaN."""
        return {name: np.array(values, dtype=float) for name, values in self.step(step)["values"].items()}

    @property
    def metrics(self) -> pd.DataFrame:
        """Means over prompts, a row per step; `near_ties` counts the prompts that were run again alone."""
        rows = []
        for step in self.steps:
            kept = self.step(step)
            means = {name: _mean(values) for name, values in kept["values"].items()}
            rows.append({"step": step, **means, "near_ties": kept["near_ties"]})
        return pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame(index=pd.Index([], name="step"))

    @property
    def prompts(self) -> Batch:
        """The prompts, without a task."""
        kept = read_tensors(self.path / "prompts.safetensors")
        decoding = build(Decoding, self.config["decoding"], "decoding")
        return Batch(*(kept[name] for name in TENSOR_FIELDS), None, self.config["n_new"], decoding)

    def __repr__(self) -> str:
        return f"EvaluatedCheckpoints({str(self.path)!r}, {self.name}, {len(self.steps)} steps)"


def evaluate(
    suite: Any,
    path: str | Path,
    prompts: Batch | None = None,
    metrics: Sequence[Metric | str] | str | None = None,
    steps: Iterable[int] | None = None,
    *,
    progress: bool = True,
) -> EvaluatedCheckpoints:
    """Measure the steps of `suite` on `prompts`; those that the folder has already are not measured again.

    Args:
        suite: `Checkpoints`, a Run, or anything with `.steps` and `.model(step)`.
        path: a new folder, or that of a survey of the same suite, prompts and measurements.
        prompts: by default `suite.prompts()`, 100 questions of which each is answered with 8 tokens.
        metrics: measurements as in `measure`; by default `LANGUAGE_METRICS`.
        steps: which; all by default.
        progress: show what will be fetched, and a progress bar.

    Raises:
        ValueError: for a step without a checkpoint, an unknown measurement, or a folder that holds another survey.
        ConnectionError: when the Hub cannot be reached; what was measured is kept.
    """
    from tqdm.auto import tqdm

    prompts = suite.prompts() if prompts is None else prompts
    metrics = [metrics] if isinstance(metrics, str) else list(LANGUAGE_METRICS if metrics is None else metrics)
    for measurement in metrics:
        named_metric(
            measurement, getattr(prompts, "task", None)
        )  # an unknown one is found out before anything is written
        if getattr(measurement, "__name__", "") == "<lambda>":
            raise ValueError("a survey is known by the names of its measurements, and a lambda has none; use def")
    chosen = list(dict.fromkeys(suite.steps if steps is None else steps))
    if unknown := [s for s in chosen if s not in set(suite.steps)]:
        raise ValueError(f"{suite!r} has no checkpoint of step {unknown[0]}; it has {few(suite.steps)}")
    found = _open(Path(path), suite, prompts, metrics)
    looked = _look(suite, found, chosen, progress)
    if looked is not None and (missing := [step for step in chosen if step in looked.missing]):
        if steps is not None:
            raise ValueError(f"step {missing[0]} of {suite.name} has no weights; leave it out")
        tqdm.write(f"{suite.name}: without weights, and left out: {few(missing)}", file=sys.stderr)
        chosen = [step for step in chosen if step not in missing]
    left = [step for step in chosen if step not in set(found.steps)]
    if left and progress and isinstance(suite, Checkpoints):
        tqdm.write(said_before(suite, left))
    with closing(_walk(suite, left)) as models, tqdm(total=len(left), unit="step", disable=not progress) as bar:
        for step, model in models:
            start = time.monotonic()
            kept = _measured(model, prompts, metrics)
            if isinstance(suite, Checkpoints):
                kept |= {"revision": suite.revision(step), "files": {f.path: f.digest for f in suite.files(step)}}
                kept["said"] = _words(suite, kept["generated"])
            if looked is not None:
                kept |= {"weights": looked.table.digest[step], "evidence": looked.evidence(step)}
            del model
            write_json(
                found.path / "steps" / f"{step:06d}.json",
                {"step": step, **kept, "seconds": round(time.monotonic() - start, 3)},
            )
            bar.update()
            shown = {name: f"{_mean(kept['values'][name]):.3f}" for name in SHOWN if name in kept["values"]}
            bar.set_postfix({"step": step, **shown})
    return found


SHOWN = ("collapse", "repetition")  # the two of arXiv 2506.13688
FRESH = ("evaluation.json", "prompts.safetensors", "steps")  # with no step in it, there is nothing to lose


def said_before(suite: Checkpoints, steps: Sequence[int]) -> str:
    """What will be fetched and how much of it lies on disk at once, in one line."""
    from tqdm import tqdm

    sizes = [suite.size(step) for step in steps]
    each, total, cap = (tqdm.format_sizeof(n, "B") for n in (max(sizes), sum(sizes), suite.max_bytes or 2 * max(sizes)))
    line = f"{suite.name}: {len(steps)} steps ({few(steps)}) of up to {each}, {total} in all"
    return line if isinstance(suite.source, LocalSource) else f"{line} to fetch; on disk at most {cap}"


@requires("generated")
def _generated(t: Trace) -> Tensor:
    return t.generated


@requires("generated")
def _near_ties(t: Trace) -> Tensor:
    return torch.zeros(len(t.batch)) if t.near_ties is None else t.near_ties.any(1).float()


def _measured(model: Any, prompts: Batch, metrics: Sequence[Metric | str]) -> dict[str, Any]:
    found = measure(model, prompts, [*metrics, _generated, _near_ties], reduce=None)
    said, near = found.pop("_generated"), found.pop("_near_ties")
    values = {name: to_json_value(tensor) for name, tensor in found.items()}
    return {"values": values, "generated": said.tolist(), "near_ties": int(near.sum())}


def _walk(suite: Any, steps: list[int]) -> Generator[tuple[int, Any], None, None]:
    """The models, fetched as they are needed."""
    if isinstance(suite, Checkpoints):
        with closing(suite.walk(steps)) as models:
            yield from models
        return
    for step in steps:
        yield step, suite.model(step)
        gc.collect()


def _look(suite: Any, found: EvaluatedCheckpoints, steps: Sequence[int], progress: bool) -> Audit | None:
    """Audit the steps, where that costs no download; those that were measured must have the weights they had."""
    if not isinstance(suite, Checkpoints) or not isinstance(suite.source, HubSource | LocalSource):
        return None
    if isinstance(suite.source, HubSource) and not progress:
        suite.source.client.progress = False  # nor of downloads
    audit = suite.look(steps, progress)
    for step in set(steps) & set(found.steps):
        kept, line = found.step(step), audit.evidence(step)
        if kept.get("weights") != audit.table.digest[step]:
            raise ValueError(
                f"{found.path} holds step {step} of other weights than {suite.name} has now; take another folder, or "
                f"remove steps/{step:06d}.json there to measure it again"
            )
        if kept["evidence"] != line:  # its twin was not looked at before
            write_json(found.path / "steps" / f"{step:06d}.json", kept | {"evidence": line})
    return audit


def _open(path: Path, suite: Any, prompts: Batch, metrics: Sequence[Metric | str]) -> EvaluatedCheckpoints:
    """The survey of a folder, new or the one that is there, if it is the same."""
    about = getattr(suite, "config", None)  # of a Run
    config = {
        "format": 2,
        "suite": getattr(suite, "name", None) or str(getattr(suite, "path", type(suite).__name__)),
        "metrics": [m if isinstance(m, str) else m.__name__ for m in metrics],
        "n_new": prompts.n_new,
        "decoding": asdict(prompts.decoding),
        "dtype": str(getattr(suite, "dtype", torch.float32)),
        "pattern": getattr(suite.source, "pattern", None) if isinstance(suite, Checkpoints) else None,
        "trained": about.get("created") if isinstance(about, dict) else None,
    }
    columns = {name: getattr(prompts, name).cpu() for name in TENSOR_FIELDS}
    if (path / "evaluation.json").is_file() and (found := EvaluatedCheckpoints(path)).steps:
        for name, value in json.loads(json.dumps(config)).items():
            if found.config.get(name) != value:
                raise ValueError(
                    f"{path} holds a survey with {name} {found.config.get(name)!r}, not {value!r}; take another folder"
                )
        kept = read_tensors(path / "prompts.safetensors")
        if any(not torch.equal(kept[name], tensor) for name, tensor in columns.items()):
            raise ValueError(f"{path} holds a survey of other prompts; take another folder")
        return found
    if path.exists() and (not path.is_dir() or any(p.name not in FRESH for p in path.iterdir())):
        raise FileExistsError(f"{path} is not empty and holds no survey; take another folder")
    write_tensors(path / "prompts.safetensors", columns)
    more = {
        "prompts": len(prompts),
        "texts": _texts(suite, prompts),
        "device": str(getattr(suite, "device", "cpu")),
        "versions": versions(*PACKAGES),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(path / "evaluation.json", {**config, **more})  # last: a folder with a evaluation.json lacks nothing
    return EvaluatedCheckpoints(path)


def _words(suite: Checkpoints, rows: list[list[int]]) -> list[str]:
    return list(suite.tokenizer.batch_decode(rows)) if suite.has_tokenizer else []


def _texts(suite: Any, prompts: Batch) -> list[str]:
    if not isinstance(suite, Checkpoints):
        return []
    rows = zip(prompts.tokens.tolist(), prompts.answer_positions[:, 0].tolist(), strict=True)
    return _words(suite, [row[: end + 1] for row, end in rows])


def _mean(values: Any) -> Any:
    """Over prompts; a row of values a prompt keeps its columns, a mean over those that exist."""
    array = np.array(values, dtype=float)
    if array.ndim > 1:
        return np.nanmean(array, 0).tolist()
    return float(array.mean())
