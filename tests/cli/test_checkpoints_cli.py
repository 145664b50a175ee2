"""`plateaulens checkpoints ...` and the page about a survey."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.cli.checkpoints import among, default_folder, size


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(main, ["checkpoints", *map(str, arguments)])
        assert not isinstance(done.exception, Exception), done.exception
        return done

    return run


def test_measure_then_report(shell, suite_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("Why?\nWhat floats?\nWho is it?\n")
    measure = ("measure", suite_folder, "--prompts", "mine.txt", "--n-new", 4, "--out", "s")
    first = shell(*measure, "--steps", "0,16-128")
    assert first.exit_code == 0 and "collapse" in first.output and "report.html" in first.output
    done = pl.lm.EvaluatedCheckpoints("s")
    assert done.steps == [0, 16, 128] and done.config["texts"] == ["Why?", "What floats?", "Who is it?"]
    kept = {step: (done.path / "steps" / f"{step:06d}.json").stat().st_mtime_ns for step in done.steps}
    shell(*measure)
    assert pl.lm.EvaluatedCheckpoints("s").steps == [0, 1, 16, 128]
    assert all((done.path / "steps" / f"{s:06d}.json").stat().st_mtime_ns == at for s, at in kept.items())
    assert "s/report.html" in shell("report", "s").output
    other = shell(*measure, "--seed", 3, "--sample")
    assert other.exit_code == 2 and "decoding" in other.output and other.output.count("\n") < 4


def test_a_survey_without_a_result_is_no_obstacle(shell, suite_folder):
    measure = ("measure", suite_folder, "--n", 2, "--steps", 16, "--out", "s", "--metrics")
    first = shell(*measure, "collapse@blocks.9.hook_resid_post")
    assert first.exit_code == 2 and "unknown hook" in first.output
    assert (
        shell(
            *measure, "collapse@blocks.1.hook_resid_post", "--metrics", "collapse", "--metrics", "repetition"
        ).exit_code
        == 0
    )
    assert pl.lm.EvaluatedCheckpoints("s").steps == [16]


def test_a_suite_without_any_weights_is_one_line(shell, suite_folder, tmp_path):
    shutil.copytree(suite_folder / "step0", tmp_path / "w" / "step0")
    (tmp_path / "w" / "step0" / "model.safetensors").unlink()
    done = shell("measure", "w", "--n", 2)
    assert done.exit_code == 2 and "has no measured step yet" in done.output


def test_sampling_is_asked_for(shell, suite_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("Why?\n")
    options = ("--prompts", "mine.txt", "--n", 1, "--steps", 16, "--metrics", "collapse", "--metrics", "repetition")
    shell("measure", suite_folder, *options, "--sample", "--seed", 7, "--temperature", 2.0, "--top-k", 9, "--out", "s")
    expected = pl.lm.Decoding(sample=True, seed=7, temperature=2.0, top_k=9, forbidden=(0,))
    assert pl.lm.EvaluatedCheckpoints("s").prompts.decoding == expected


def test_a_small_pretraining_is_measured_as_any_suite(shell, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"The number {i} follows {i - 1}. " for i in range(2000)))
    small = ["--hidden", "16", "--layers", "1", "--heads", "2", "--vocab", "300", "--steps", "4", "--context", "16"]
    done = CliRunner().invoke(main, ["pretrain", "--text", "text.txt", "--out", "own", *small])
    assert done.exit_code == 0, done.output
    assert shell("measure", "own", "--n", 5).exit_code == 0
    assert pl.lm.EvaluatedCheckpoints("surveys/own").steps == [0, 1, 2, 4]


def test_steps_and_audit(shell, suite_folder, tmp_path):
    listed = shell("steps", suite_folder, "--sizes")
    assert [line.split()[0] for line in listed.output.splitlines()[1:]] == ["0", "1", "16", "128"]
    audit = shell("audit", suite_folder, "--out", "audit.json")
    assert "no two steps" in audit.output and json.loads((tmp_path / "audit.json").read_text())["duplicates"] == []


MISTAKES = [
    (("steps", "pythia-15m"), "did you mean '31m' or '14m'"),
    (("steps", "no/where/at/all"), "is no folder and no suite"),
    (("measure", "SUITE", "--steps", "a-b"), "numbers and ranges such as"),
    (("measure", "SUITE", "--steps", "17"), "no checkpoint of step 17"),
    (("measure", "SUITE", "--steps", "200-300"), "there is no step in 200-300"),
    (("measure", "SUITE", "--prompts", "missing.txt"), "unknown prompt set or file"),
    (("measure", "SUITE", "--n", "101"), "fewer than n=101; ask for 100 at most"),
    (("measure", "SUITE", "--temperature", "0.5"), "--temperature is about draws; add --sample"),
    (("measure", "SUITE", "--seed", "3"), "--seed is about draws; add --sample"),
    (
        ("measure", "SUITE", "--metrics", "norm@*", "--compare-with", "RUN"),
        "--compare-with compares collapse and repetition",
    ),
    (("measure", "SUITE", "--max-bytes", "2GB"), "--max-bytes is about checkpoints of a Hub"),
    (("measure", "pythia-14m", "--max-bytes", "1e400"), "500MB or 2GB"),
    (("measure", "SUITE", "--metrics", "colapse"), "did you mean 'collapse'"),
    (("measure", "SUITE", "--device", "tpu9"), "cannot be used here"),
    (("measure", "SUITE", "--compare-with", "nowhere"), "is not a run"),
    (("measure", "pythia-14m", "--max-bytes", "much"), "500MB or 2GB"),
    (("report", "nowhere"), "is not a survey"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES, ids=lambda a: a if isinstance(a, str) else a[-1])
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, message, shell, suite_folder, tmp_path):
    model, task = pl.Transformer(pl.ModelConfig(d_vocab=5, n_ctx=8, d_model=8)), pl.tasks.MovingWindowSum(n=4, p=5)
    run = pl.Run.create(tmp_path / "run", task=task, model=model, train=pl.TrainConfig(steps=1))
    done = shell(*({"SUITE": suite_folder, "RUN": run.path}.get(a, a) for a in arguments))
    assert done.exit_code == 2 and message in done.output, done.output
    assert len(done.output.strip().splitlines()) == 1
    assert list(tmp_path.rglob("*.json")) == [run.path / "run.json"]


@pytest.mark.parametrize("command", main.commands["checkpoints"].commands)
def test_help_has_a_worked_example(command, shell):
    text = shell(command, "--help").output
    assert re.search(rf"Example: plateaulens checkpoints {command} \S+", " ".join(text.split()))


def test_words_of_the_shell():
    assert among("0,16-128,1", [0, 1, 16, 64, 128]) == [0, 16, 64, 128, 1]
    assert [size(text) for text in ("12", "1kB", "500MB", "2GB", "1.5g", "2e9")] == [
        *(12, 1000, 500_000_000, 2 * 10**9, 1_500_000_000, 2_000_000_000)
    ]
    assert str(default_folder("EleutherAI/pythia-14m")) == "surveys/pythia-14m" == str(default_folder("pythia-14m"))


@pytest.fixture(scope="module")
def surveyed(suite_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("surveyed")
    suite = pl.lm.from_folder(suite_folder)
    prompts = suite.prompts(n=6)
    return pl.lm.evaluate(suite, folder / "s", prompts, progress=False)


def test_the_page_shows_what_was_measured(surveyed):
    page = pl.write_report(surveyed).read_text()
    assert surveyed.name in page and "http://" not in page.split("Provenance")[0][-3000:]
    for figure in ("early", "layers-collapse"):
        assert f'id="{figure}"' in page and f'"{figure}": {{' in page
    for step in surveyed.steps:
        assert f"<tr><td>{step}</td>" in page
    assert f"{surveyed.metrics.collapse[16]:.3f}" in page
    import html

    assert html.escape(surveyed.config["texts"][0], quote=True).replace("&#x27;", "&#39;") in page


def test_a_run_beside_it(surveyed, tmp_path):
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    training = pl.train(model, task, pl.TrainConfig(steps=8, batch_size=8))
    run = pl.record(training, tmp_path / "run", task.sample(8, seed=1), every=2, save_every=4, progress=False)
    assert 'id="beside"' in pl.write_report(surveyed, compare_with=run).read_text()
    with pytest.raises(ValueError, match="belongs to the report of a survey"):
        pl.write_report(run, compare_with=surveyed)


def test_nothing_measured_is_said(surveyed, tmp_path):
    import shutil

    shutil.copytree(surveyed.path, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "steps")
    with pytest.raises(ValueError, match="no measured step yet"):
        pl.write_report(pl.lm.EvaluatedCheckpoints(tmp_path / "s"))
