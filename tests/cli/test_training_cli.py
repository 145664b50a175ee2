from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from plateaulens.cli import main
from plateaulens.tasks import TASKS

TINY = "--small --steps 12 --every 4 --save-every 6 --d-model 16 --n 4 --eval-size 16".split()


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    result = call("train", "mws", *TINY, "--out", str(folder))
    assert result.exit_code == 0, result.output
    assert str(folder / "report.html") in result.output
    return folder


def test_train_report_resume(run: Path):
    before = (run / "metrics.jsonl").read_bytes()
    assert len(before.splitlines()) == 4
    (run / "report.html").unlink()
    assert call("report", str(run)).exit_code == 0
    assert "analytic plateau" in (run / "report.html").read_text()
    assert call("resume", str(run)).exit_code == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_tasks_lists_every_task():
    result = call("tasks")
    assert result.exit_code == 0
    assert all(f"{name}: " in result.output for name in TASKS) and result.output.count("answer  ") == len(TASKS)


@pytest.mark.parametrize("command", ["train", "resume", "report", "tasks"])
def test_help_has_an_example(command: str):
    result = call(command, "--help")
    assert result.exit_code == 0 and "Example: plateaulens " + command in " ".join(result.output.split())


BAD = {
    "unknown task": (["train", "mvs"], "did you mean 'mws'"),
    "unknown command": (["trian", "mws"], "did you mean 'train'"),
    "zero steps": (["train", "mws", "--steps", "0"], "steps must be at least 1"),
    "foreign parameter": (["train", "copy", "--k", "3"], "'k'"),
    "impossible window": (["train", "mws", "--n", "3", "--k", "4"], "use a smaller k"),
    "unknown attention": (["train", "mws", "--attention", "liner"], "did you mean 'linear'"),
    "unknown optimizer": (["train", "mws", "--optimizer", "adm"], "did you mean"),
    "wrong device": (["train", "mws", "--device", "gpu7"], "device 'gpu7'"),
    "wrong device to reproduce": (["reproduce", "copy", "--device", "gpu7"], "device 'gpu7'"),
    "late, but what": (["train", "mws", "--from-step", "25"], "give scale"),
    "later than the end": (["train", "mws", "--scale-attention", "2", "--from-step", "400"], "steps-1=399"),
    "no largest entry": (["train", "matrix", "--limit", "inf"], "finite"),
    "a part that is not there": (["train", "mws", "--freeze", "atn"], "did you mean 'attn'"),
    "from, but which parts": (["train", "mws", "--from", "."], "name these parts: frozen"),
    "from what is no run": (["train", "mws", "--freeze", "attn", "--from", "."], "is not a run"),
    "momentum of adam": (["train", "mws", "--momentum", "0.9"], "momentum belongs to sgd and muon"),
    "rate of muon's rest": (["train", "mws", "--adam-lr", "0.1"], "adam_lr belongs to muon"),
    "not a run": (["report", "."], "is not a run"),
    "nothing to resume": (["resume", "nowhere"], "is not a run"),
    "no place": (["train", "mws", *TINY, "--out", "/proc/nowhere/run"], "proc"),
}


@pytest.mark.parametrize("words, hint", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_2(words, hint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = call(*words)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1 and hint in result.stderr, result.stderr
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_left_alone(run: Path):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    result = call("train", "mws", *TINY, "--out", str(run))
    assert result.exit_code == 2 and "holds a run" in result.stderr
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert call("train", "mws", *TINY, "--out", str(run), "--overwrite").exit_code == 0
    assert (run.parent / "run.old-1" / "metrics.jsonl").read_bytes() == before[run / "metrics.jsonl"]


def test_corrupt_checkpoint_is_one_line(run: Path):
    path = run / "checkpoints" / "000006.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    result = call("report", str(run))
    assert result.exit_code == 2 and "000006.safetensors is corrupt" in result.stderr


@pytest.mark.filterwarnings("default")
def test_truncated_metrics_warn_and_work(run: Path):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    result = call("report", str(run))
    assert result.exit_code == 0 and "cut short" in result.stderr
