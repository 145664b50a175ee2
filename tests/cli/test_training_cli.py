"""The commands of `plateaulens` that train, report and list tasks."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.cli.training import SUMMARIES, train
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


@pytest.mark.parametrize("words", ["train", "resume", "report", "tasks", *(f"train {name}" for name in TASKS)])
def test_help_has_an_example(words: str):
    result = call(*words.split(), "--help")
    assert result.exit_code == 0 and "Example: plateaulens " + words in " ".join(result.output.split())


def test_train_help_lists_every_task_without_torch():
    result = call("train", "--help")
    listed = re.findall(r"^  ([a-z-]+)  ", result.output.partition("Commands:")[2], re.M)
    assert listed == list(TASKS) == list(SUMMARIES)
    code = "import sys; from plateaulens.cli import main; main(['train', '--help'], standalone_mode=False)"
    code += "; print('torch' in sys.modules)"
    shell = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", TASKS)
def test_train_task_describes_each_field_of_the_task_in_a_sentence(name: str):
    command = train.commands[name]
    params = command.get_params(click.Context(command))
    options = {param.name: param for param in params if isinstance(param, click.Option)}
    assert {key for key in options if str(key).startswith("task_")} == {f"task_{f.name}" for f in fields(TASKS[name])}
    texts = [str(option.help).partition("  [default")[0] for option in options.values() if option.name != "help"]
    assert all(re.fullmatch(r'[A-Z"].*\.', text) for text in texts), texts


@pytest.mark.parametrize(
    "words, task",
    [
        ("addition --n 2", pl.tasks.Addition(n=2)),
        ("binary-addition --bits 3 --answer-only", pl.tasks.BinaryAddition(bits=3, answer_only=True)),
        ("matrix-mixture --orders 3,4 --heads 2", pl.tasks.MatrixMixture(orders=(3, 4))),
    ],
)
def test_train_builds_the_task_of_its_options(words: str, task: pl.tasks.Task, tmp_path: Path):
    tiny = "--layers 1 --steps 1 --batch-size 2 --save-every 1 --d-model 16 --eval-size 2".split()
    result = call("train", *words.split(), *tiny, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert pl.Run(tmp_path / "run").task == task


def test_metrics_are_recorded_by_name(tmp_path: Path):
    names = ("--metrics", "loss,accuracy", "--metrics", "entropy")
    assert call("train", "mws", *TINY, *names, "--out", str(tmp_path / "run")).exit_code == 0
    assert pl.Run(tmp_path / "run").config["record"]["metrics"] == ["loss", "accuracy", "entropy"]


BAD = {
    "unknown task": (["train", "mvs"], "did you mean 'mws'"),
    "unknown command": (["trian", "mws"], "did you mean 'train'"),
    "zero steps": (["train", "mws", "--steps", "0"], "steps must be at least 1"),
    "option of other tasks": (["train", "copy", "--k", "3"], "copy has no option --k; it is an option of mws, repeat"),
    "bits of decimal addition": (["train", "addition", "--bits", "10"], "it is an option of binary-addition"),
    "unknown option": (["train", "mws", "--step", "3"], "--steps"),
    "unknown option of the group": (["--hlep"], "--help"),
    "unknown metric": (["train", "mws", "--metrics", "acuracy"], "did you mean 'accuracy'"),
    "empty evaluation batch": (["train", "mws", "--eval-size", "0"], "--eval-size"),
    "impossible window": (["train", "mws", "--n", "3", "--k", "4"], "use a smaller k"),
    "unknown attention": (["train", "mws", "--attention", "liner"], "did you mean 'linear'"),
    "unknown optimizer": (["train", "mws", "--optimizer", "adm"], "did you mean"),
    "wrong device": (["train", "mws", "--device", "gpu7"], "device 'gpu7'"),
    "wrong device to reproduce": (["reproduce", "copy", "--device", "gpu7"], "device 'gpu7'"),
    "start of nothing": (["train", "mws", "--from-step", "25"], "give scale"),
    "start after the end": (["train", "mws", "--scale-attention", "2", "--from-step", "400"], "steps-1=399"),
    "infinite largest entry": (["train", "matrix", "--limit", "inf"], "finite"),
    "unknown part": (["train", "mws", "--freeze", "atn"], "did you mean 'attn'"),
    "donor without parts": (["train", "mws", "--from", "."], "name these parts: frozen"),
    "donor that is no run": (["train", "mws", "--freeze", "attn", "--from", "."], "is not a run"),
    "momentum of adam": (["train", "mws", "--momentum", "0.9"], "momentum applies to sgd and muon"),
    "rate of AdamW without muon": (["train", "mws", "--adam-lr", "0.1"], "adam_lr applies to muon"),
    "not a run": (["report", "."], "is not a run"),
    "nothing to resume": (["resume", "nowhere"], "is not a run"),
    "folder that cannot be made": (["train", "mws", *TINY, "--out", "/proc/nowhere/run"], "proc"),
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
    assert result.exit_code == 0 and "incomplete" in result.stderr
