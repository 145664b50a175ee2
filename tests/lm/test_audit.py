"""`audit`: which steps have the same weights, and what their digests do not show."""

import json
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plateaulens.lm import weight_audit as auditing
from plateaulens.lm.known_issues import REPORTS, reports_for
from plateaulens.lm.source import File, LocalSource, Source
from plateaulens.lm.weight_audit import audit, warn_once

PYTHIA = (0, *(2**i for i in range(10)), *range(1000, 144_000, 1000))


@dataclass
class Hub:
    """A repository whose listing is made up: revision -> path -> content; it counts calls and downloads nothing."""

    name: str
    branches: dict[str, dict[str, str]]
    calls: int = 0
    max_bytes: int | None = None
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def main(self) -> str | None:
        return "main" if "main" in self.branches else None

    def revisions(self) -> dict[int, str]:
        return {int(name[4:]): name for name in self.branches if name != "main"}

    def files(self, revision: str) -> list[File]:
        self.calls += 1
        return [File(path, 10, f"sha256:{content * 16}") for path, content in self.branches[revision].items()]

    def fetch(self, revision: str, files: list[File]) -> Path:
        raise AssertionError("an audit of the Hub downloads nothing")

    def stop(self) -> None:
        pass


@dataclass
class Suite:
    source: Source
    expected: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.source.name


def hub(branches: dict[str, dict[str, str] | str], name: str = "somebody/model") -> Hub:
    """A word stands for a single weight file; every branch has the same configuration beside it."""
    whole = {r: {"model.safetensors": f} if isinstance(f, str) else f for r, f in branches.items()}
    return Hub(name, {r: {**files, "config.json": "same"} for r, files in whole.items()})


def shards(*contents: str) -> dict[str, str]:
    files = {f"pytorch_model-0000{i}-of-0000{len(contents)}.bin": content for i, content in enumerate(contents, 1)}
    return {"pytorch_model.bin.index.json": "index", **files}


def look(source: Source, expected: tuple[int, ...] | None = None, steps: list[int] | None = None) -> auditing.Audit:
    return audit(Suite(source, expected), steps, progress=False)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "_warned", set())


def test_audit_of_another_object_is_refused():
    with pytest.raises(ValueError, match="audit takes a suite, such as"):
        getattr(audit, "__wrapped__", audit)(object())  # without the runtime check of types


def test_audit_of_a_correct_suite_is_empty():
    source = hub({"step0": "a", "step1": "b", "step2": "c", "main": "c"})
    found = look(source, expected=(0, 1, 2))
    assert (found.duplicates, found.partial, found.missing, found.reports) == ((), (), (), ())
    assert [found.evidence(step) for step in (0, 1, 2)] == [None] * 3
    assert found.table.loc[2, "same_as"] == ("main",)
    assert source.calls == 4  # one per revision
    assert "no two steps" in repr(found)


def test_steps_with_weights_of_main_are_found_except_the_last():
    found = look(hub({"step0": "z", "step1": "b", "step2": "z", "step9": "z", "main": "z"}))
    (group,) = found.duplicates
    assert (group.steps, group.main, group.n_files) == ((0, 2, 9), True, 1)
    assert list(group.files) == ["model.safetensors"]
    assert found.table["same_as"].to_dict() == {0: (2, 9, "main"), 1: (), 2: (0, 9, "main"), 9: (0, 2, "main")}
    line = found.evidence(0)
    assert line is not None and line.startswith("has the weights of main and 2 steps (2, 9, the last) (model.safet")
    assert found.evidence(1) is None and found.evidence(9) is None


def test_without_a_main_no_step_of_a_pair_is_exempt():
    found = look(hub({"step0": "a", "step1": "a", "step2": "c"}))
    (group,) = found.duplicates
    assert (group.steps, group.main) == ((0, 1), False)
    assert all("the weights of step" in str(found.evidence(step)) for step in (0, 1))
    last_too = look(hub({"step0": "z", "step2": "z"}))
    assert "has the weights of step 0 " in str(last_too.evidence(2))


def test_last_step_with_weights_of_an_earlier_step_is_evidence():
    found = look(hub({"step0": "m", "step5": "z", "step9": "z", "main": "m"}))  # as reported of pythia-2.8b
    assert [(g.steps, g.main) for g in found.duplicates] == [((0,), True), ((5, 9), False)]
    assert "of step 5 (" in str(found.evidence(9)) and "of step 9, the last (model" in str(found.evidence(5))


def test_shards_are_compared_one_by_one():
    """Pythia-12b as reported: two steps have the first shard of the last one, and their own others."""
    branches = {
        "step1": shards("p", "q", "r"),
        "step50": shards("z", "b", "c"),
        "step58": shards("z", "d", "e"),
        "step143": shards("z", "y", "x"),
        "main": shards("z", "y", "x"),
    }
    for beside_main in ({}, {"model.safetensors": "converted"}):
        found = look(hub({**branches, "main": {**branches["main"], **beside_main}}))
        assert found.duplicates == ()
        (group,) = found.partial
        assert (group.steps, group.main, group.n_files) == ((50, 58, 143), True, 3)
        assert list(group.files) == ["pytorch_model-00001-of-00003.bin"]
        assert "1 of 3 weight files" in str(found.evidence(50))
        assert found.evidence(1) is None and found.evidence(143) is None


def test_an_index_that_all_steps_share_is_no_shared_weight():
    found = look(hub({"step0": shards("a", "b"), "step1": shards("c", "d")}))
    assert (found.duplicates, found.partial) == ((), ())
    assert found.table["files"].to_list() == [2, 2] and found.table["bytes"].to_list() == [20, 20]


def test_shards_of_different_names_are_not_duplicates():
    assert look(hub({"step0": shards("a", "b"), "step1": shards("b", "a")})).partial == ()


def test_differing_weights_in_another_format_are_mentioned():
    two = {"step0": ("z", "a"), "step1": ("z", "b"), "step2": ("c", "d")}
    branches = {step: {"model.safetensors": s, "pytorch_model.bin": b} for step, (s, b) in two.items()}
    assert look(hub(branches)).duplicates[0].differ == ("pytorch_model.bin",)
    assert "pytorch_model.bin, which is not read, differs" in str(look(hub(branches)).evidence(0))
    branches["step1"]["pytorch_model.bin"] = branches["step2"]["pytorch_model.bin"] = "a"
    same = look(hub(branches))
    assert [(g.steps, g.differ) for g in same.duplicates] == [((0, 1), ())]
    assert same.partial == () and same.evidence(2) is None  # what is not read makes no duplicate


def test_missing_steps_and_branches_without_weights():
    found = look(hub({"step0": "a", "step4": {}, "step8": {"model.safetensors.index.json": "i"}}), expected=(0, 2, 4))
    assert found.missing == (2, 4, 8)
    assert found.duplicates == ()  # nothing equals nothing, and that is no finding
    assert found.evidence(4) == "has no weights"
    assert found.table.loc[4, ["files", "digest"]].to_list() == [0, ""]
    assert "missing: 2, 4, 8" in repr(found)


def test_some_steps_cost_some_calls():
    source = hub({"step0": "a", "step1": "a", "step2": "c", "main": "c"})
    found = look(source, expected=(0, 1, 2, 3), steps=[0, 3])
    assert (found.duplicates, found.missing, source.calls) == ((), (3,), 2)
    with pytest.raises(ValueError, match="somebody/model has no step 7; it has 0, 1, 2"):
        look(source, steps=[7])


def test_the_table_and_json_are_whole():
    found = look(hub({"step0": "z", "step1": "b", "step9": "z", "main": "z"}, "EleutherAI/pythia-12b"), (0, 1, 5, 9))
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["table"][0]["same_as"] == [9, "main"] and values["missing"] == [5]
    assert values["duplicates"][0]["steps"] == [0, 9]
    assert "https://github.com/EleutherAI/pythia/issues/206" in json.dumps(values["reports"])
    assert "<pre>" in found._repr_html_()


# Local folders: the tensors decide.


def tensors(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(4, 3, generator=draw),
        "bias": torch.randn(3, generator=draw).bfloat16(),
        "scale": torch.tensor(float(seed)),
    }


def write(folder: Path, step: int, weights: dict[str, torch.Tensor], *, form: str = "safetensors") -> None:
    to = folder / f"step{step}"
    to.mkdir(parents=True)
    if form == "safetensors":
        save_file(weights, to / "model.safetensors", metadata={"step": str(step)})  # so the bytes always differ
    elif form == "bin":
        torch.save(dict(reversed(weights.items())), to / "pytorch_model.bin")
    else:
        (to / "model.safetensors.index.json").write_text("{}")
        for i, name in enumerate(sorted(weights), 1):
            save_file({name: weights[name]}, to / f"model-0000{i}-of-00003.safetensors")


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_equal_tensors_are_equal_in_any_layout_of_files(tmp_path: Path, form: str):
    write(tmp_path / "suite", 0, tensors(0))
    write(tmp_path / "suite", 1, dict(reversed(tensors(0).items())), form=form)
    write(tmp_path / "suite", 2, tensors(2))
    found = look(LocalSource(tmp_path / "suite"))
    (group,) = found.duplicates
    assert (group.steps, group.n_files, len(group.files)) == ((0, 1), 1, 1)
    assert found.evidence(2) is None and found.table.loc[0, "digest"] == found.table.loc[1, "digest"]


def test_equal_tensors_in_different_files_are_not_called_equal_by_hash(tmp_path: Path):
    """The same two folders, seen as a Hub lists them: other bytes, so nothing is claimed."""
    for step in (0, 1):
        write(tmp_path, step, tensors(0))
    paths = [tmp_path / f"step{step}" / "model.safetensors" for step in (0, 1)]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    as_hub = hub({f"step{i}": path.read_bytes().hex()[:200] for i, path in enumerate(paths)})
    assert look(as_hub).duplicates == ()
    assert look(LocalSource(tmp_path)).duplicates[0].steps == (0, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"embed": w["embed"] + 1e-6},
        lambda w: w | {"embed": w["embed"].reshape(3, 4)},
        lambda w: w | {"bias": w["bias"].view(torch.int16)},
        lambda w: {("other" if name == "bias" else name): value for name, value in w.items()},
        lambda w: {name: value for name, value in w.items() if name != "scale"},
    ],
    ids=["value", "shape", "type", "name", "fewer"],
)
def test_any_difference_in_the_tensors_counts(tmp_path: Path, change):
    write(tmp_path, 0, tensors(0))
    write(tmp_path, 1, change(tensors(0)))
    assert look(LocalSource(tmp_path)).duplicates == ()


def test_a_local_shard_in_common_is_found(tmp_path: Path):
    write(tmp_path, 0, tensors(0), form="shards")
    write(tmp_path, 1, tensors(1) | {"embed": tensors(0)["embed"]}, form="shards")
    (group,) = look(LocalSource(tmp_path)).partial
    assert (group.steps, list(group.files), group.n_files) == ((0, 1), ["model-00002-of-00003.safetensors"], 3)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    write(tmp_path, 0, tensors(0))
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"{re.escape(name)} cannot be read .*steps="):
        look(LocalSource(tmp_path))


# Warnings.


def said(*steps: int, name: str, found: auditing.Audit | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            warn_once(name, step, found)
    assert all(w.category is UserWarning for w in caught)
    return [str(w.message) for w in caught]


def test_group_of_duplicates_is_warned_of_once():
    found = look(hub({"step0": "z", "step1": "b", "step2": "z", "step9": "z", "main": "z"}))
    (line,) = said(0, 1, 2, 9, 0, name=found.name, found=found)
    assert line == f"somebody/model, step 0: {found.evidence(0)}"
    assert said(0, name="somebody/else", found=None) == []


def test_warning_of_a_report_has_its_source_and_how_to_check_it():
    (line,) = said(50_000, 58_000, 51_000, name="EleutherAI/pythia-12b")
    start = (
        "EleutherAI/pythia-12b, step 50000: reported in https://github.com/EleutherAI/pythia/issues/206 (2026-08-14): "
    )
    assert line.startswith(start) and line.endswith("; run `plateaulens checkpoints audit EleutherAI/pythia-12b`")
    assert "\n" not in line
    assert said(50_000, name="EleutherAI/pythia-12b-deduped") == []


def test_further_reports_are_named_by_address_and_warned_of_once():
    first, second = said(0, 1, 2, 6000, 7000, 54_000, 66_000, name="EleutherAI/pythia-2.8b")
    assert first.index("reported in https://github.com/EleutherAI/pythia/issues/205") < first.index("; also https://")
    assert all(f"issues/{number} (" in first for number in (195, 1373, 83, 198)) and len(first) < 700
    assert second.startswith("EleutherAI/pythia-2.8b, step 54000: reported in") and "10 step branches" in second


def test_evidence_comes_before_reports_and_its_absence_is_stated():
    name = "allenai/OLMo-2-1124-7B"
    branches = {f"step{step}": "x" for step in (101_000, 175_000, 300_000)} | {"step928646": "z", "main": "z"}
    found = look(hub(branches, name))
    (line,) = said(101_000, 175_000, name=name, found=found)
    assert (
        line.index("has the weights of 2 steps (175000, 300000) (model")
        < line.index("reported in https://")
        < line.index("915")
    )
    assert "plateaulens checkpoints audit" not in line
    auditing._warned.clear()
    mended = look(hub({revision: revision for revision in branches}, name))
    (line,) = said(101_000, name=name, found=mended)
    assert line.endswith("among 4 audited steps no other has a weight file of this one")


def test_what_is_missing_or_mended_does_not_warn():
    assert said(40_000, name="EleutherAI/pythia-410m-seed9") == []
    assert said(32_000, name="EleutherAI/pythia-12b-deduped") == []
    assert [r.kind for r in reports_for("EleutherAI/pythia-410m-seed9", 40_000)] == ["missing"]


# Reports.


def test_every_report_has_an_address_a_date_and_a_name():
    for report in REPORTS:
        assert re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+/issues/\d+", report.url)
        assert re.fullmatch(r"202[3-6]-[01]\d-[0-3]\d", report.date)
        assert report.what and "\n" not in report.what
        assert not re.fullmatch(report.repositories, "somebody/model") and "/" in report.repositories


def test_issue_205_has_its_76_and_10_steps():
    """Of 154 announced, 68 remain: those of the non-round steps from 66000 to 142000."""
    first, second = (r.steps for r in reports_for("EleutherAI/pythia-2.8b") if r.url.endswith("pythia/issues/205"))
    assert (len(first), len(second), len({*first, *second})) == (76, 10, 86)
    assert {*first, *second} <= set(PYTHIA) and len(PYTHIA) == 154
    rest = sorted(set(PYTHIA) - {*first, *second})
    assert (len(rest), rest[0], rest[-1]) == (68, 66_000, 142_000)


def test_a_report_is_about_the_repositories_it_names_only():
    urls = {
        name: {r.url.rsplit("/", 1)[1] for r in reports_for(f"EleutherAI/{name}")}
        for name in ("pythia-2.8b-deduped", "pythia-70m")
    }
    assert urls == {"pythia-2.8b-deduped": {"1373"}, "pythia-70m": {"83", "198", "1373"}}
    assert reports_for("EleutherAI/pythia-160m-weight-seed1", 0) == []
    assert [r.kind for r in reports_for("eleutherai/PYTHIA-160m-weight-seed1", 1)] == ["wrong weights"]
    assert reports_for("somebody/pythia-2.8b") == reports_for("") == []
