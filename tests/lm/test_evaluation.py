"""`evaluate`: the same numbers as plain Hugging Face, kept step by step, and refusals of other results."""

import json
import shutil
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import plateaulens as pl
from helpers import run_in_child
from plateaulens.lm import evaluation, weight_audit

WATCH = ["collapse", "repetition", "norm@blocks.*.hook_resid_post", "prediction_entropy"]
TEXTS = [
    "Why does ice float?",
    "What?",
    "How do plants make their food from light and air?",
    "Who is it?",
    "Where is it?",
]


@pytest.fixture
def suite(suite_folder):
    return pl.lm.from_folder(suite_folder)


@pytest.fixture
def prompts(suite):
    return pl.Batch.prompts(suite.tokenizer(TEXTS)["input_ids"], 8, pl.lm.Decoding(forbidden=(0,)))


@torch.no_grad()
def by_hand(folder, texts):
    """The paper's protocol in plain Hugging Face: one prompt at a time, no cache, `generate` of exactly 8 tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    collapse, repetition, said = [], [], []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=8,
            max_new_tokens=8,
            do_sample=False,
            use_cache=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        hidden = [layers[-1][0, -1] for layers in out.hidden_states]
        cosines = [F.cosine_similarity(hidden[i], hidden[j], dim=0) for i in range(8) for j in range(i)]
        assert len(cosines) == 28
        tokens = out.sequences[0, ids.shape[1] :].tolist()
        collapse.append(float(torch.stack(cosines).mean()))
        repetition.append(sum(a == b for a, b in zip(tokens, tokens[1:])) / 7)
        said.append(tokens)
    return collapse, repetition, said


def test_evaluation_equals_hugging_face_one_prompt_at_a_time(suite, prompts, suite_folder, tmp_path):
    done = pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False)
    assert done.steps == [0, 1, 16, 128]
    for step in done.steps:
        collapse, repetition, said = by_hand(suite_folder / f"step{step}", TEXTS)
        assert done.step(step)["generated"] == said
        np.testing.assert_allclose(done.values(step)["collapse"], collapse, atol=1e-5)
        np.testing.assert_allclose(done.values(step)["repetition"], repetition, atol=1e-6)
        assert done.step(step)["generated_text"] == suite.tokenizer.batch_decode(said)
    assert done.metrics.collapse[16] == pytest.approx(np.mean(done.values(16)["collapse"]))
    assert list(done.metrics) == [
        *("collapse", "repetition", "norm@blocks.0.hook_resid_post", "norm@blocks.1.hook_resid_post"),
        *("prediction_entropy", "near_ties"),
    ]


def contents(folder):
    """What the files say, times left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".json":
            found[path.name] = {
                k: v for k, v in json.loads(path.read_text()).items() if k not in ("seconds", "created")
            }
        else:
            found[path.name] = path.read_bytes()
    return found


def test_evaluation_continues_and_takes_more_steps(suite, prompts, tmp_path, monkeypatch):
    whole = pl.lm.evaluate(suite, tmp_path / "whole", prompts, WATCH, progress=False)
    pl.lm.evaluate(suite, tmp_path / "parts", prompts, WATCH, [128, 0], progress=False)
    opened = []
    monkeypatch.setattr(
        suite, "_open", lambda step, *rest, original=suite._open: opened.append(step) or original(step, *rest)
    )
    parts = pl.lm.evaluate(suite, tmp_path / "parts", prompts, WATCH, progress=False)
    assert opened == [1, 16] and contents(parts.path) == contents(whole.path)
    pl.lm.evaluate(suite, tmp_path / "parts", prompts, WATCH, progress=False)
    assert opened == [1, 16]


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_repeated_interrupts_end_in_the_same_files(sig, suite, prompts, tmp_path):
    whole = pl.lm.evaluate(suite, tmp_path / "whole", prompts, WATCH, progress=False)
    seconds = sum(whole.step(step)["seconds"] for step in whole.steps)

    def work(path):
        torch.set_num_threads(1)
        pl.lm.evaluate(suite, path, prompts, WATCH, progress=False)

    done, waits = False, torch.rand(40, generator=torch.Generator().manual_seed(0)) * 2 * seconds + 0.05
    for wait in [*waits.tolist()[:4], None]:
        done = run_in_child(tmp_path / "cut", wait, sig, work)
        kept = tmp_path / "cut" / "steps"
        for path in kept.glob("*.json"):  # whatever is there is whole
            assert json.loads(path.read_text())["step"] == int(path.stem)
    assert done and contents(tmp_path / "cut") == contents(whole.path)


def test_partial_result_file_is_ignored_and_damaged_one_refused(suite, prompts, tmp_path):
    done = pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [0], progress=False)
    (done.path / "steps" / ".000016.json.partial").write_text('{"step": 16, "val')
    assert done.steps == [0] and list(done.metrics.index) == [0]
    (done.path / "steps" / "000016.json").write_text('{"step": 16, "val')
    with pytest.raises(ValueError, match="000016.json is damaged"):
        done.metrics  # noqa: B018


def test_folder_of_another_evaluation_is_refused(suite, prompts, tmp_path):
    path = tmp_path / "s"
    pl.lm.evaluate(suite, path, prompts, WATCH, [0], progress=False)
    before = contents(path)
    other = pl.Batch.prompts([row.tolist()[:3] for row in prompts.tokens], 8, prompts.decoding)
    cases = [
        (dict(prompts=prompts, metrics=["collapse"]), "has an evaluation with metrics"),
        (dict(prompts=other, metrics=WATCH), "of other prompts"),
        (dict(prompts=pl.Batch.prompts([[1]], 5), metrics=WATCH), "with n_new 8, not 5"),
        (dict(prompts=prompts, metrics=WATCH, steps=[3]), "no checkpoint of step 3"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            pl.lm.evaluate(suite, path, progress=False, **options)
    with pytest.raises(ValueError, match="with dtype"):
        pl.lm.evaluate(
            pl.lm.from_folder(suite.source.folder, dtype=torch.float64), path, prompts, WATCH, progress=False
        )
    assert contents(path) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="has no evaluation"):
        pl.lm.evaluate(suite, tmp_path / "full", prompts, WATCH, progress=False)
    with pytest.raises(FileNotFoundError, match="is not an evaluation"):
        pl.lm.EvaluatedCheckpoints(tmp_path / "full")


def test_run_can_be_evaluated_as_a_suite(tmp_path):
    task = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16))
    training = pl.train(model, task, pl.TrainConfig(steps=4, batch_size=8))
    run = pl.record(training, tmp_path / "run", task.sample(8, seed=1), every=2, save_every=2, progress=False)
    done = pl.lm.evaluate(
        run, tmp_path / "s", run.eval_batch(), ["loss", "collapse", "position_accuracy"], progress=False
    )
    assert done.steps == run.steps == [0, 2, 4]
    for name in ("loss", "collapse"):
        np.testing.assert_allclose(done.metrics[name], run.metrics[name], atol=1e-5)
    np.testing.assert_allclose(done.metrics.position_accuracy[4], run.metrics.position_accuracy[4], atol=1e-6)


def test_defaults_are_a_hundred_questions_and_every_layer(suite, tmp_path):
    done = pl.lm.evaluate(suite, tmp_path / "s", steps=[16], progress=False)
    assert done.config["prompts"] == 100 and done.config["n_new"] == 8
    assert {"collapse", "repetition", "rep@2", "distinct@2", "collapse@blocks.1.hook_resid_post"} <= set(done.metrics)
    assert done.prompts.decoding == pl.lm.Decoding(forbidden=(0,)) and torch.equal(
        done.prompts.tokens, suite.prompts().tokens
    )
    again = pl.measure(suite.model(16), done.prompts, ["collapse", "anisotropy@unembed.hook_in"])
    for name, value in again.items():
        assert done.metrics[name][16] == pytest.approx(float(value), abs=1e-6)


def test_downloads_are_announced_with_their_size(suite, prompts, tmp_path, capsys):
    pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [0, 1])
    said = capsys.readouterr()
    assert f"{suite.name}: 2 steps (0, 1) of up to" in said.out + said.err


def test_a_reported_step_is_warned_of_before_it_is_measured(suite, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "name", "EleutherAI/pythia-2.8b")
    monkeypatch.setattr(weight_audit, "_warned", set())
    with pytest.warns(UserWarning, match="issues/205"):
        pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [16], progress=False)


def test_memory_does_not_grow_with_the_steps(suite):
    """Of every bridge that a walk gave, at most the newest is alive."""
    import weakref

    seen = []
    for _step, model in suite.walk([0, 1, 16, 128] * 3):
        seen.append(weakref.ref(model))
        del model
        assert sum(ref() is not None for ref in seen) <= 1


def test_an_interrupted_walk_leaves_no_thread(suite):
    before = threading.active_count()
    walk = suite.walk()
    next(walk)
    walk.close()
    time.sleep(0.1)
    assert threading.active_count() <= before


def test_nothing_is_measured_of_a_damaged_step(suite_folder, prompts, tmp_path):
    shutil.copytree(suite_folder, tmp_path / "suite")
    path = tmp_path / "suite" / "step16" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    suite = pl.lm.from_folder(tmp_path / "suite")
    with pytest.raises(ValueError, match="step16/model.safetensors cannot be read .*; leave its step out with steps="):
        pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False)
    assert pl.lm.EvaluatedCheckpoints(tmp_path / "s").steps == []
    assert pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [0, 1], progress=False).steps == [0, 1]


def test_step_without_weights_is_left_out_with_a_note(suite_folder, prompts, tmp_path, capsys):
    shutil.copytree(suite_folder, tmp_path / "suite")
    (tmp_path / "suite" / "step128" / "model.safetensors").unlink()  # a pre-training that was killed, the last step
    shutil.rmtree(tmp_path / "suite" / "step16")
    (tmp_path / "suite" / "step200").mkdir()
    suite = pl.lm.from_folder(tmp_path / "suite")
    assert suite.prompts(n=1).tokens.shape[0] == 1 and [suite.has_weights(step) for step in suite.steps] == [
        *(True, True, False, False)
    ]
    assert pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, progress=False).steps == [0, 1]
    assert "left out, as they have no weights: 128, 200" in capsys.readouterr().err
    with pytest.raises(ValueError, match="step 200 of suite has no weights; leave it out"):
        pl.lm.evaluate(suite, tmp_path / "t", prompts, WATCH, [0, 200], progress=False)
    assert pl.lm.EvaluatedCheckpoints(tmp_path / "t").steps == []


def test_results_of_other_weights_are_refused(suite_folder, prompts, tmp_path):
    """Two suites of one name; or one that was trained anew."""
    for name, step in (("a", "step1"), ("b", "step128")):
        shutil.copytree(suite_folder / step, tmp_path / name / "suite" / "step0")
    first, second = (pl.lm.from_folder(tmp_path / name / "suite") for name in "ab")
    done = pl.lm.evaluate(first, tmp_path / "s", prompts, WATCH, progress=False)
    with pytest.raises(ValueError, match=r"has step 0 of other weights than suite has now.*remove steps/000000.json"):
        pl.lm.evaluate(second, tmp_path / "s", prompts, WATCH, progress=False)
    shutil.move(tmp_path / "a", tmp_path / "moved")
    pl.lm.evaluate(pl.lm.from_folder(tmp_path / "moved" / "suite"), tmp_path / "s", prompts, WATCH, progress=False)
    (done.path / "steps" / "000000.json").unlink()
    other = pl.lm.evaluate(second, tmp_path / "s", prompts, WATCH, progress=False)
    assert other.step(0)["weights"] == pl.lm.audit(second, progress=False).table.digest[0]
    shutil.copytree(suite_folder / "step16", tmp_path / "b" / "suite" / "stage2-step5")
    with pytest.raises(ValueError, match="has an evaluation with pattern"):
        pl.lm.evaluate(pl.lm.from_folder(tmp_path / "b" / "suite", r"stage2-step(\d+)"), tmp_path / "s", prompts, WATCH)


def test_evidence_is_warned_of_once_stored_and_shown_in_the_report(suite_folder, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_audit, "_warned", set())
    for i, step in enumerate((0, 16, 16, 128)):
        shutil.copytree(suite_folder / f"step{step}", tmp_path / "twice" / f"step{i}")
    suite = pl.lm.from_folder(tmp_path / "twice")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [0, 1], progress=False)
    with pytest.warns(UserWarning, match="step 2: has the weights of step 1 ") as caught:
        done = pl.lm.evaluate(pl.lm.from_folder(tmp_path / "twice"), tmp_path / "s", prompts, WATCH, progress=False)
    assert len(caught) == 1
    assert [bool(done.step(step)["evidence"]) for step in done.steps] == [False, True, True, False]
    page = pl.write_report(done).read_text()
    assert "step 2: has the weights of step 1 " in page
    pl.lm.evaluate(suite, tmp_path / "other", prompts, WATCH, [2], progress=False)
    other = pl.lm.evaluate(
        pl.lm.from_folder(tmp_path / "twice"), tmp_path / "other", prompts, WATCH, [1, 2], progress=False
    )
    assert all(other.step(step)["evidence"] for step in (1, 2))  # whichever came first
    suite = pl.lm.from_folder(tmp_path / "twice")
    for step in (1, 2):
        suite.audit_steps([step])
    weight_audit._warned.clear()
    with pytest.warns(UserWarning, match="step 1: has the weights of step 2 "):
        suite.model(1)


def test_unchanged_weight_files_are_read_once(suite_folder, prompts, tmp_path, monkeypatch):
    shutil.copytree(suite_folder, tmp_path / "suite")
    read = []
    monkeypatch.setattr(
        weight_audit, "_tensors", lambda path, own=weight_audit._tensors: read.append(path.parent.name) or own(path)
    )
    for steps in ([0], [0, 1], None, None):
        pl.lm.evaluate(pl.lm.from_folder(tmp_path / "suite"), tmp_path / "s", prompts, WATCH, steps, progress=False)
    assert read == ["step0", "step1", "step16", "step128"]
    shutil.copy(suite_folder / "step1" / "model.safetensors", tmp_path / "suite" / "step0")
    with pytest.raises(ValueError, match="has step 0 of other weights"):
        pl.lm.evaluate(pl.lm.from_folder(tmp_path / "suite"), tmp_path / "s", prompts, WATCH, progress=False)


def test_any_checkpoint_series_can_be_evaluated(suite, prompts, tmp_path):
    from types import SimpleNamespace

    own = SimpleNamespace(steps=[0, 16], model=suite.model, config=SimpleNamespace(hidden=3), source=None)
    done = pl.lm.evaluate(own, tmp_path / "own", prompts, WATCH, progress=False)
    assert done.steps == [0, 16] and "weights" not in done.step(0)
    pl.write_report(done)


def test_report_without_collapse_and_repetition(suite, prompts, tmp_path):
    norms = pl.lm.evaluate(suite, tmp_path / "norms", prompts, "norm@*", [0, 16], progress=False)
    page = pl.write_report(norms).read_text()
    assert 'id="layers-norm"' in page and 'id="early"' not in page
    short = pl.Batch.prompts([[1, 2, 3], [4, 5]], 1)
    one = pl.lm.evaluate(suite, tmp_path / "one", short, ["collapse", "repetition"], [16], progress=False)
    assert 'id="early"' not in pl.write_report(one).read_text()  # one token has no neighbor
    with pytest.raises(ValueError, match="a lambda has none"):
        pl.lm.evaluate(suite, tmp_path / "l", short, [lambda t: t.generated.float().mean(1)])


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"step": 16}'])
def test_json_of_another_shape_is_damaged(text, suite, prompts, tmp_path):
    done = pl.lm.evaluate(suite, tmp_path / "s", prompts, WATCH, [16], progress=False)
    (done.path / "steps" / "000016.json").write_text(text)
    with pytest.raises(ValueError, match="000016.json is damaged"):
        done.step(16)
    (done.path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match="evaluation.json is damaged"):
        pl.lm.EvaluatedCheckpoints(done.path)


def test_default_metrics_begin_with_those_of_the_paper():
    assert evaluation.LANGUAGE_METRICS[:2] == ("collapse", "repetition")
