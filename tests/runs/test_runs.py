"""The run folder: what is in it, and what happens when it is damaged."""

import json
import warnings
from dataclasses import asdict
from hashlib import sha256

import numpy as np
import pytest
import torch

import plateaulens as pl
from plateaulens._io import digest, read_tensors, write_json, write_tensors

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
CFG = pl.TrainConfig(steps=12, batch_size=16, lr=1e-3)
EVAL_BATCH = TASK.sample(8, seed=1)


def build(seed=0):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16, seed=seed))


def recorded(path, **kwargs):
    options = dict(every=3, save_every=5, progress=False) | kwargs
    return pl.record(pl.train(build(), TASK, CFG), path, EVAL_BATCH, **options)


def created(path, **kwargs):
    return pl.Run.create(path, task=TASK, model=build(), train=CFG, **kwargs)


def contents(folder):
    """Every file of a run by its bytes, times left out."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    config = json.loads(files.pop("run.json"))
    config.pop("created")
    return files, config


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_run_folder_holds_configs_versions_and_metrics(tmp_path):
    run = recorded(tmp_path / "run")
    files, config = contents(run.path)
    assert set(files) == {
        "metrics.jsonl",
        "eval_batch.safetensors",
        *(f"checkpoints/{t:06d}.safetensors" for t in (0, 5, 10, 12)),
        "state/000012.safetensors",
    }
    assert config["task"] == {"task": "mws", "n": 4, "k": 2, "p": 5}
    assert config["model"] == asdict(build().cfg) and config["train"] == json.loads(json.dumps(asdict(CFG)))
    assert {"python", "torch", "transformer-lens", "plateaulens"} <= set(config["versions"])
    assert config["device"] == "cpu" and config["threads"] == torch.get_num_threads() and config["interventions"] == []
    assert config["record"] | {"metrics": []} == {"start": 0, "end": 12, "every": 3, "save_every": 5, "metrics": []}
    rows = [json.loads(line) for line in files["metrics.jsonl"].decode().splitlines()]
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    default_metrics = set(pl.metrics.DEFAULT_METRICS)
    assert [set(row) for row in rows] == [default_metrics | {"step"}] + [default_metrics | {"step", "train_loss"}] * 4


def test_opened_run_equals_the_recorded_one(tmp_path):
    straight = pl.train(build(), TASK, CFG)
    weights, values = {}, {}
    for step in straight:
        weights[step.t] = {name: w.clone() for name, w in straight.model.state_dict().items()}
        values[step.t] = pl.measure(straight.model, EVAL_BATCH, pl.metrics.DEFAULT_METRICS)
    recorded(tmp_path / "run")
    run = pl.Run(tmp_path / "run")
    assert run.steps == [0, 5, 10, 12] and run.last == 12 and run.task == TASK and run.train_config == CFG
    for t in run.steps:
        assert states_equal(run.weights(t), weights[t]) and states_equal(run.model(t).state_dict(), weights[t])
    for t in run.metrics.index:
        assert run.metrics.loc[t, "loss"] == pytest.approx(values[t]["loss"].item(), abs=1e-6)
        assert run.metrics.loc[t, "position_accuracy"] == values[t]["position_accuracy"].tolist()
    assert torch.equal(run.eval_batch().tokens, EVAL_BATCH.tokens) and run.eval_batch().task == TASK
    assert run.eval_batch().n_new == 0
    assert states_equal(run.new_model().state_dict(), weights[0])
    assert "mws" in repr(run) and "0..12" in repr(run)


def test_create_raises_for_a_used_folder_and_overwrite_renames_it(tmp_path):
    (tmp_path / "run").mkdir()
    created(tmp_path / "run", notes={"mark": 1})  # empty is fine
    for _ in range(2):
        with pytest.raises(FileExistsError, match="not empty.*overwrite"):
            created(tmp_path / "run")
    created(tmp_path / "run", overwrite=True, notes={"mark": 2})
    created(tmp_path / "run", overwrite=True)
    assert "mark" not in pl.Run(tmp_path / "run").config
    assert [pl.Run(tmp_path / f"run.old-{i}").config["mark"] for i in (1, 2)] == [1, 2]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        created(tmp_path / "file")


def test_folder_without_run_json_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run"):
        pl.Run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": ')
    with pytest.raises(ValueError, match="run.json is corrupt"):
        pl.Run(tmp_path)


def test_log_raises_for_steps_that_do_not_ascend(tmp_path):
    run = created(tmp_path / "run")
    assert run.last == -1 and run.metrics.empty
    run.log(0, {"a": 1.0})
    run.log(4, {"a": torch.tensor(2.0), "b": torch.tensor([1.0, 2.0])})
    for step in (4, 3, 0, -1):
        with pytest.raises(ValueError, match=f"step {step} is not above the last logged step 4"):
            run.log(step, {})
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 2
    again = pl.Run(run.path)
    assert again.last == 4 and again.metrics["a"].tolist() == [1.0, 2.0] and again.metrics.loc[4, "b"] == [1.0, 2.0]


def test_nan_and_infinities_are_logged_as_null(tmp_path):
    run = created(tmp_path / "run")
    run.log(1, {"a": float("nan"), "b": torch.tensor([1.0, float("inf")]), "c": torch.tensor(float("-inf")), "d": None})
    line = json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line == {"step": 1, "a": None, "b": [1.0, None], "c": None, "d": None}
    assert run.metrics["a"].isna().all()


def test_numbers_and_arrays_of_numpy_are_logged(tmp_path):
    run = created(tmp_path / "run")
    run.log(1, {"a": np.float32(0.5), "b": np.float64("nan"), "c": np.array([1.0, np.inf]), "d": np.int64(2)})
    line = json.loads((run.path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "a": 0.5, "b": None, "c": [1.0, None], "d": 2}


def logged(tmp_path):
    run = created(tmp_path / "run")
    for step in range(4):
        run.log(step, {"loss": 1.0 / (step + 1)})
    return run.path, (run.path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("cut", [2, 10, 20])
def test_incomplete_last_line_warns_and_is_left_out(tmp_path, cut):
    path, text = logged(tmp_path)
    (path / "metrics.jsonl").write_text(text[:-cut])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = pl.Run(path)
    with pytest.warns(UserWarning, match="incomplete"):
        assert run.metrics["loss"].tolist() == [1.0, 1 / 2, 1 / 3]
    assert run.last == 2


def test_log_after_a_crash_drops_the_incomplete_line(tmp_path):
    path, text = logged(tmp_path)
    (path / "metrics.jsonl").write_text(text[:-4])
    pl.Run(path).log(7, {"loss": 0.5})
    assert pl.Run(path).metrics["loss"].to_dict() == {0: 1.0, 1: 1 / 2, 2: 1 / 3, 7: 0.5}


def test_damaged_line_raises_with_its_number(tmp_path):
    path, text = logged(tmp_path)
    lines = text.splitlines(keepends=True)
    (path / "metrics.jsonl").write_text(lines[0] + lines[1][:9] + "\n" + "".join(lines[2:]))
    with pytest.raises(ValueError, match="metrics.jsonl, line 2, is not a measured step"):
        pl.Run(path)


@pytest.mark.parametrize("line", ["3", "null", "[1]", '{"loss": 1}', '{"step": "1"}', '{"step": null}'])
def test_line_without_a_step_raises_with_its_number(tmp_path, line):
    path, text = logged(tmp_path)
    for lines, number in ((text + line + "\n", 5), (line + "\n" + text, 1)):
        (path / "metrics.jsonl").write_text(lines)
        with pytest.raises(ValueError, match=f"metrics.jsonl, line {number}, is not a measured step"):
            pl.Run(path)


def test_truncated_checkpoint_raises_one_clear_error(tmp_path):
    run = created(tmp_path / "run")
    run.save(3, build())
    file = run.path / "checkpoints/000003.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="000003.safetensors is corrupt"):
            run.model(3)
    file.write_bytes(whole)
    assert states_equal(run.weights(3), build().state_dict())


def test_any_flipped_byte_of_a_checkpoint_is_detected(tmp_path):
    run = created(tmp_path / "run")
    run.save(3, build())
    truth = dict(build().state_dict())
    file = run.path / "checkpoints/000003.safetensors"
    whole = file.read_bytes()
    caught = 0
    for place in [*range(0, 1200, 7), *range(1200, len(whole), len(whole) // 60), len(whole) - 1]:
        for mask in (0x01, 0x0F, 0x80):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                got = run.weights(3)
            except ValueError as error:
                assert "000003.safetensors is corrupt" in str(error)
                caught += 1
            else:  # a byte that says nothing about the tensors
                assert states_equal(got, truth) and all(got[n].dtype == truth[n].dtype for n in truth), (place, mask)
    assert caught > 400


def test_tensors_of_every_dtype_round_trip(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "mask": torch.tensor([True, False]),
        "one": torch.tensor(7),
        "strided": torch.randn(4, 3).T,
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    got = read_tensors(tmp_path / "x.safetensors")
    assert states_equal(got, tensors) and got["half"].dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "y.safetensors")


def test_digest_depends_on_dtype_shape_and_bytes():
    x = torch.arange(6.0).reshape(2, 3)
    said = sha256(b"torch.float32[2, 3]" + x.numpy().tobytes()).hexdigest()
    assert digest(x) == digest(x.clone().requires_grad_()) == digest(x.T.contiguous().T) == said
    others = [x.flatten(), x.T, x.int(), x + 1, x[0, 0], x[0, :0], x.bfloat16(), x.bool()]
    assert len({said, *map(digest, others)}) == 1 + len(others)


def test_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_step_without_checkpoint_raises_with_the_nearest(tmp_path):
    run = created(tmp_path / "run")
    with pytest.raises(ValueError, match="nearest: None"):
        run.weights(1)
    for t in (0, 10):
        run.save(t, build())
    with pytest.raises(ValueError, match=r"no checkpoint of step 7; nearest: 10, all: \[0, 10\]"):
        run.model(7)


def test_schedules_may_be_lists(tmp_path):
    run = recorded(tmp_path / "run", every=[1, 2, 7, 99], save_every={4}, metrics=["loss"])
    assert run.metrics.index.tolist() == [0, 1, 2, 7, 12] and run.steps == [0, 4, 12]
    assert run.config["record"]["every"] == [1, 2, 7, 99] and list(run.metrics.columns) == ["loss", "train_loss"]


BAD = [
    (dict(every=0), "schedule"),
    (dict(save_every=-1), "schedule"),
    (dict(until=13), "until step 13"),
    (dict(metrics=["los"]), "did you mean 'loss'"),
    (dict(metrics=["collapse@nowhere"]), "unknown hook"),
]


@pytest.mark.parametrize("options, message", BAD)
def test_a_bad_recording_raises_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        recorded(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_recording_in_parts_equals_recording_at_once(tmp_path):
    training = pl.train(build(), TASK, CFG)
    first = pl.record(training, tmp_path / "first", EVAL_BATCH, every=1, save_every=6, until=6, progress=False)
    second = pl.record(training, tmp_path / "second", EVAL_BATCH, every=1, save_every=6, progress=False)
    whole = recorded(tmp_path / "whole", every=1, save_every=6)
    text = [(r.path / "metrics.jsonl").read_text().splitlines() for r in (first, second, whole)]
    assert text[0] + text[1][1:] == text[2] and text[0][-1] == text[1][0]
    assert states_equal(second.weights(12), whole.weights(12))
    with pytest.raises(ValueError, match="training is at 12"):
        pl.record(training, tmp_path / "third", EVAL_BATCH, until=3, progress=False)


def interventions():
    pattern = pl.trace(build(seed=3), EVAL_BATCH).pattern().mean()
    return [pl.FixAttention(pattern), pl.ScaleAttention(TASK, factor=3.0)]


def test_interventions_are_stored_with_their_steps(tmp_path):
    training = pl.train(build(), TASK, CFG)
    for _ in training.until(4):
        pass
    on = interventions()
    with pl.intervene(training.model, *on):
        run = pl.record(training, tmp_path / "run", EVAL_BATCH, until=9, progress=False)
    assert pl.Run(run.path).config["interventions"] == [{"from": 4, "to": 9, "what": i.to_json()} for i in on]
    assert {p.stem for p in (run.path / "tensors").iterdir()} == set(on[0].tensors())


class Stop(Exception):
    pass


def cut_at(step, calls):
    """A measurement that crashes the recording when `step` is measured, once."""

    @pl.metrics.requires("outputs")
    def loss(t):
        calls.append(1)
        if len(calls) == step:
            raise Stop
        return pl.metrics.loss(t)

    return loss


@pytest.mark.parametrize("with_interventions", [False, True])
@pytest.mark.parametrize("crash", [3, 6, 9, 13])
def test_crashed_run_resumes_to_the_same_bytes(tmp_path, with_interventions, crash):
    options = dict(every=1, save_every=5, progress=False)
    for name in ("whole", "cut"):
        training, calls = pl.train(build(), TASK, CFG), []
        metrics = [cut_at(crash if name == "cut" else -1, calls), "accuracy"]
        with pl.intervene(training.model, *(interventions() if with_interventions else [])):
            if name == "cut":
                with pytest.raises(Stop):
                    pl.record(training, tmp_path / name, EVAL_BATCH, metrics, **options)
            else:
                pl.record(training, tmp_path / name, EVAL_BATCH, metrics, **options)
    run = pl.resume(tmp_path / "cut", progress=False)
    assert contents(run.path) == contents(tmp_path / "whole")
    before = contents(run.path)
    assert contents(pl.resume(run.path, progress=False).path) == before  # a finished run stays as it is


def test_resume_raises_for_what_it_cannot_resume(tmp_path):
    created(tmp_path / "run")
    with pytest.raises(ValueError, match="no recording to resume"):
        pl.resume(tmp_path / "run", progress=False)
    training = pl.train(build(), TASK, CFG)
    for _ in training.until(4):
        pass
    run = pl.record(training, tmp_path / "late", EVAL_BATCH, progress=False)
    for state in (run.path / "state").iterdir():
        state.unlink()
    with pytest.raises(ValueError, match="has no exact state"):
        pl.resume(run.path, progress=False)


def test_folder_of_a_run_killed_before_run_json_can_be_reused(tmp_path):
    run = pl.record(pl.train(build(), TASK, CFG), tmp_path / "whole", EVAL_BATCH, progress=False, until=2)
    cut = tmp_path / "cut"
    (cut / "tensors").mkdir(parents=True)
    (cut / "eval_batch.safetensors").write_bytes((run.path / "eval_batch.safetensors").read_bytes())
    (cut / ".run.json.partial").write_text("{")
    pl.record(pl.train(build(), TASK, CFG), cut, EVAL_BATCH, progress=False, until=2)
    (tmp_path / "left").mkdir()
    for name in ("state", "tensors"):
        (tmp_path / "left" / name).mkdir()
    for file in ("eval_batch.safetensors", "state/000002.safetensors"):
        (tmp_path / "left" / file).write_bytes((run.path / file).read_bytes())
    write_tensors(tmp_path / "left" / "tensors" / f"{'a' * 64}.safetensors", {"tensor": torch.zeros(1)})
    (tmp_path / "left" / "state" / ".000003.safetensors.partial").write_text("x")
    new = created(tmp_path / "left")  # takes nothing of the one that was killed
    assert [p.name for p in new.path.rglob("*") if p.is_file()] == ["run.json"]
    assert not new.has_eval_batch and not new.tensors() and new.rewind() is None
    for name in (
        "tensors/my_embeddings.safetensors",
        "state/deep/000001.safetensors",
        "eval_batch.safetensors/notes.txt",
    ):
        file = tmp_path / name.replace("/", "-") / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(FileExistsError, match="not empty"):
            created(tmp_path / name.replace("/", "-"))
        assert file.read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        pl.record(pl.train(build(), TASK, CFG), tmp_path / "other", EVAL_BATCH, progress=False)


OTHERS = ({}, "x", None, {"task": 3}, {"task": []})  # what no task is


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", "null", '"run"', '{"task": {"task": "mws"}, "model": 1, "train": {}}'),
        *(json.dumps({"task": other, "model": {}, "train": {}}) for other in OTHERS),
    ],
)
def test_foreign_run_json_raises_one_clear_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="not the config of a run"):
        pl.Run(tmp_path)


def test_run_without_evaluation_batch_raises(tmp_path):
    run = created(tmp_path / "run")
    assert not run.has_eval_batch
    with pytest.raises(ValueError, match="has no evaluation batch"):
        run.eval_batch()


class Own(pl.tasks.MovingWindowSum):
    """A task of the user's, with its own idea of what is compared."""

    @property
    def collapse_positions(self):
        return (0, 3)


def test_run_of_a_user_task_resumes_with_its_training(tmp_path):
    task = Own(n=4, k=2, p=5)
    eval_batch = task.sample(8, seed=1)
    options = dict(every=1, save_every=5, progress=False)
    pl.record(pl.train(build(), task, CFG), tmp_path / "whole", eval_batch, ["loss", "collapse"], **options)
    with pytest.raises(Stop):
        metrics = [cut_at(8, []), "collapse"]
        pl.record(pl.train(build(), task, CFG), tmp_path / "cut", eval_batch, metrics, **options)
    with pytest.raises(ValueError, match="pass training="):
        pl.resume(tmp_path / "cut", progress=False)
    assert pl.resume(tmp_path / "whole", progress=False).finished  # nothing to do, so nothing is asked for
    pl.resume(tmp_path / "cut", training=pl.train(build(), task, CFG), progress=False)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_run_of_a_user_task_under_an_intervention_resumes(tmp_path):
    task = Own(n=4, k=2, p=5)
    eval_batch = task.sample(8, seed=1)
    metrics = [cut_at(8, [])]
    with pytest.raises(Stop):
        model = build()
        with pl.intervene(model, pl.ScaleAttention(task, factor=3.0)):
            pl.record(
                pl.train(model, task, CFG), tmp_path / "cut", eval_batch, metrics, every=1, save_every=5, progress=False
            )
    run = pl.resume(tmp_path / "cut", training=pl.train(build(), task, CFG), progress=False)
    assert run.finished and run.config["interventions"][0]["what"]["factor"] == 3.0


def test_resume_asks_for_a_user_metric(tmp_path):
    with pytest.raises(Stop):
        pl.record(pl.train(build(), TASK, CFG), tmp_path / "cut", EVAL_BATCH, [cut_at(8, [])], every=1, progress=False)
    kept = (tmp_path / "cut" / "run.json").read_text()
    (tmp_path / "cut" / "run.json").write_text(kept.replace('"loss"', '"my_loss"'))
    with pytest.raises(ValueError, match=r"my_loss.*metrics=\["):
        pl.resume(tmp_path / "cut", progress=False)


def test_prompts_are_stored_with_their_decoding(tmp_path):
    how = pl.lm.Decoding(sample=True, seed=3, forbidden=(0, 2))
    prompts = pl.Batch.prompts([[1, 2, 3], [4]], 5, how)
    pl.Run.create(tmp_path / "run", task=TASK, model=build(), train=pl.TrainConfig(), eval_batch=prompts)
    eval_batch = pl.Run(tmp_path / "run").eval_batch()
    assert (
        eval_batch.decoding == how
        and eval_batch.n_new == 5
        and torch.equal(eval_batch.answer_positions, prompts.answer_positions)
    )
