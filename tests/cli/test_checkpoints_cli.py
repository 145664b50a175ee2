"""`plateaulens checkpoints ...` and the report on an evaluation."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

import plateaulens as pl
from plateaulens.cli import main
from plateaulens.cli.checkpoints import default_folder, parse_size, select_steps


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(main, ["checkpoints", *map(str, arguments)])
        assert not isinstance(done.exception, Exception), done.exception
        return done

    return run


def test_evaluate_then_report(shell, suite_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("Why?\nWhat floats?\nWho is it?\n")
    command = ("evaluate", suite_folder, "--prompts", "mine.txt", "--n-new", 4, "--out", "s")
    first = shell(*command, "--steps", "0,16-128")
    assert first.exit_code == 0 and "collapse" in first.output and "report.html" in first.output
    done = pl.lm.EvaluatedCheckpoints("s")
    assert done.steps == [0, 16, 128] and done.config["texts"] == ["Why?", "What floats?", "Who is it?"]
    kept = {step: (done.path / "steps" / f"{step:06d}.json").stat().st_mtime_ns for step in done.steps}
    shell(*command)
    assert pl.lm.EvaluatedCheckpoints("s").steps == [0, 1, 16, 128]
    assert all((done.path / "steps" / f"{s:06d}.json").stat().st_mtime_ns == at for s, at in kept.items())
    assert "s/report.html" in shell("report", "s").output
    other = shell(*command, "--seed", 3, "--sample")
    assert other.exit_code == 2 and "decoding" in other.output and other.output.count("\n") < 4


def test_folder_without_a_result_is_replaced(shell, suite_folder):
    command = ("evaluate", suite_folder, "--n", 2, "--steps", 16, "--out", "s", "--metrics")
    first = shell(*command, "collapse@blocks.9.hook_resid_post")
    assert first.exit_code == 2 and "unknown hook" in first.output
    assert (
        shell(
            *command, "collapse@blocks.1.hook_resid_post", "--metrics", "collapse", "--metrics", "repetition"
        ).exit_code
        == 0
    )
    assert pl.lm.EvaluatedCheckpoints("s").steps == [16]


def test_suite_without_weights_is_one_line(shell, suite_folder, tmp_path):
    shutil.copytree(suite_folder / "step0", tmp_path / "w" / "step0")
    (tmp_path / "w" / "step0" / "model.safetensors").unlink()
    done = shell("evaluate", "w", "--n", 2)
    assert done.exit_code == 2 and "has no evaluated step yet" in done.output


def test_sampling_options_reach_the_evaluation(shell, suite_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("Why?\n")
    options = ("--prompts", "mine.txt", "--n", 1, "--steps", 16, "--metrics", "collapse", "--metrics", "repetition")
    shell("evaluate", suite_folder, *options, "--sample", "--seed", 7, "--temperature", 2.0, "--top-k", 9, "--out", "s")
    expected = pl.lm.Decoding(sample=True, seed=7, temperature=2.0, top_k=9, forbidden=(0,))
    assert pl.lm.EvaluatedCheckpoints("s").prompts.decoding == expected


def test_small_pretraining_is_evaluated_as_any_suite(shell, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"The number {i} follows {i - 1}. " for i in range(2000)))
    small = ["--hidden", "16", "--layers", "1", "--heads", "2", "--vocab", "300", "--steps", "4", "--context", "16"]
    done = CliRunner().invoke(main, ["pretrain", "--text", "text.txt", "--out", "own", *small])
    assert done.exit_code == 0, done.output
    assert shell("evaluate", "own", "--n", 5).exit_code == 0
    assert pl.lm.EvaluatedCheckpoints("results/own").steps == [0, 1, 2, 4]


def test_list_and_audit(shell, suite_folder, tmp_path):
    listed = shell("list", suite_folder, "--sizes")
    assert [line.split()[0] for line in listed.output.splitlines()[1:]] == ["0", "1", "16", "128"]
    audit = shell("audit", suite_folder, "--out", "audit.json")
    assert "no two steps" in audit.output and json.loads((tmp_path / "audit.json").read_text())["duplicates"] == []


MISTAKES = [
    (("list", "pythia-15m"), "did you mean '31m' or '14m'"),
    (("list", "no/where/at/all"), "is neither a suite nor a folder"),
    (("evaluate", "SUITE", "--steps", "a-b"), "numbers and ranges such as"),
    (("evaluate", "SUITE", "--steps", "17"), "no checkpoint of step 17"),
    (("evaluate", "SUITE", "--steps", "200-300"), "there is no step in 200-300"),
    (("evaluate", "SUITE", "--prompts", "missing.txt"), "unknown prompt set or file"),
    (("evaluate", "SUITE", "--n", "101"), "fewer than n=101; ask for 100 at most"),
    (("evaluate", "SUITE", "--temperature", "0.5"), "--temperature has an effect only on draws; add --sample"),
    (("evaluate", "SUITE", "--seed", "3"), "--seed has an effect only on draws; add --sample"),
    (
        ("evaluate", "SUITE", "--metrics", "norm@*", "--compare-with", "RUN"),
        "--compare-with compares collapse and repetition",
    ),
    (("evaluate", "SUITE", "--max-bytes", "2GB"), "--max-bytes has an effect only on a Hub"),
    (("evaluate", "pythia-14m", "--max-bytes", "1e400"), "500MB or 2GB"),
    (("evaluate", "SUITE", "--metrics", "colapse"), "did you mean 'collapse'"),
    (("evaluate", "SUITE", "--device", "tpu9"), "cannot be used here"),
    (("evaluate", "SUITE", "--compare-with", "nowhere"), "is not a run"),
    (("evaluate", "pythia-14m", "--max-bytes", "much"), "500MB or 2GB"),
    (("report", "nowhere"), "is not an evaluation"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES, ids=lambda a: a if isinstance(a, str) else a[-1])
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, shell, suite_folder, tmp_path):
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


def test_steps_sizes_and_folders_are_parsed():
    assert select_steps("0,16-128,1", [0, 1, 16, 64, 128]) == [0, 16, 64, 128, 1]
    assert [parse_size(text) for text in ("12", "1kB", "500MB", "2GB", "1.5g", "2e9")] == [
        *(12, 1000, 500_000_000, 2 * 10**9, 1_500_000_000, 2_000_000_000)
    ]
    assert str(default_folder("EleutherAI/pythia-14m")) == "results/pythia-14m" == str(default_folder("pythia-14m"))


@pytest.fixture(scope="module")
def evaluated(suite_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    suite = pl.lm.from_folder(suite_folder)
    prompts = suite.prompts(n=6)
    return pl.lm.evaluate(suite, folder / "s", prompts, progress=False)


def test_report_shows_the_results(evaluated):
    page = pl.write_report(evaluated).read_text()
    assert evaluated.name in page and "http://" not in page.split("Provenance")[0][-3000:]
    for figure in ("early", "layers-collapse"):
        assert f'id="{figure}"' in page and f'"{figure}": {{' in page
    for step in evaluated.steps:
        assert f"<tr><td>{step}</td>" in page
    assert f"{evaluated.metrics.collapse[16]:.3f}" in page
    import html

    assert html.escape(evaluated.config["texts"][0], quote=True).replace("&#x27;", "&#39;") in page


def test_report_with_a_run_to_compare_with(evaluated, tmp_path):
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    training = pl.train(model, task, pl.TrainConfig(steps=8, batch_size=8))
    run = pl.record(training, tmp_path / "run", task.sample(8, seed=1), every=2, save_every=4, progress=False)
    assert 'id="comparison"' in pl.write_report(evaluated, compare_with=run).read_text()
    with pytest.raises(ValueError, match="is for the report of an evaluation"):
        pl.write_report(run, compare_with=evaluated)


def test_report_without_a_result_is_refused(evaluated, tmp_path):
    import shutil

    shutil.copytree(evaluated.path, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "steps")
    with pytest.raises(ValueError, match="no evaluated step yet"):
        pl.write_report(pl.lm.EvaluatedCheckpoints(tmp_path / "s"))
