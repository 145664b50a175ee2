"""Pre-training in miniature: windows, checkpoints, kills, bad input, and the suite that comes with the package."""

import json
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from helpers import run_in_child
from plateaulens.cli import main
from plateaulens.lm import pretraining
from plateaulens.lm.pretraining import pretrain, schedule
from plateaulens.lm.text import Text, python_documentation
from plateaulens.training.config import TrainConfig
from plateaulens.training.loop import Training

SUITE = Path(__file__).parents[2] / "data" / "neox-0.2m"
TINY = dict(hidden=16, layers=1, heads=2, vocab=300, context=8, progress=False)
CFG = TrainConfig(steps=12, batch_size=16, lr=1e-2, optimizer="adamw", weight_decay=0.01)
STEPS = [0, 1, 2, 4, 8, 12]
SAVED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def story(sentences=400, seed=0):
    """English enough: words of a small vocabulary, some of which follow each other often."""
    rng, subjects = random.Random(seed), "the cat|a naïve dog|the old clock|my sister".split("|")
    verbs, ends = (
        "sees|hears|follows|forgets".split("|"),
        "the river.|a song…|nothing at all.|the other one.".split("|"),
    )
    return "\n".join(" ".join(rng.choice(part) for part in (subjects, verbs, ends)) for _ in range(sentences))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(story().encode())
    return path


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A finished one."""
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "story.txt").write_bytes(story().encode())
    return pretrain(folder / "whole", folder / "story.txt", train=CFG, **TINY)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# The task.


def test_windows_are_parts_of_the_text_and_depend_on_the_seed_only():
    tokens = torch.randint(50, (200,), generator=torch.Generator().manual_seed(1))
    task, before = Text(tokens=tokens, context=7), torch.get_rng_state()
    batch = task.sample(64, seed=3)
    windows = {tuple(w.tolist()) for w in tokens.unfold(0, 8, 1)}
    assert {tuple(row.tolist()) for row in batch.tokens} <= windows
    assert torch.equal(batch.tokens, task.sample(64, seed=3).tokens)
    assert torch.equal(batch.tokens, task.sample(64, seed=torch.Generator().manual_seed(3)).tokens)
    assert not torch.equal(batch.tokens, task.sample(64, seed=4).tokens)
    assert torch.equal(before, torch.get_rng_state())


def test_every_window_is_drawn_also_the_first_and_the_last():
    starts = Text(tokens=torch.arange(12), context=8).sample(200, seed=0).tokens[:, 0]
    assert sorted(set(starts.tolist())) == [0, 1, 2, 3]


def test_all_next_tokens_are_scored_and_answers():
    batch = Text(tokens=torch.arange(30), context=5).sample(4, seed=0)
    assert batch.inputs.shape == (4, 5) and batch.loss_mask.all()
    assert torch.equal(batch.answers, batch.inputs + 1)


def test_the_loss_is_cross_entropy_for_logits_and_for_hugging_face():
    task = Text(tokens=torch.randint(11, (60,)), context=6)
    batch, logits = task.sample(3, seed=0), torch.randn(3, 6, 11)
    rows = [-logits[i, j].log_softmax(-1)[batch.tokens[i, j + 1]] for i in range(3) for j in range(6)]
    expected = sum(rows) / len(rows)
    eval_batch = type("Output", (), {"logits": logits})()
    assert task.loss(logits, batch).item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(task.loss(eval_batch, batch), task.loss(logits, batch))


def test_a_text_without_a_window_is_refused():
    with pytest.raises(ValueError, match="takes 9 tokens, the text has 8"):
        Text(tokens=torch.arange(8), context=8)
    with pytest.raises(ValueError, match="context must be at least 1"):
        Text(tokens=torch.arange(8), context=0)


# The checkpoints.


def test_pythias_schedule():
    assert schedule(12) == STEPS
    assert schedule(512) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert schedule(3000) == [*schedule(512), 1000, 2000, 3000]
    assert schedule(1) == [0, 1]


def test_what_is_written(suite):
    assert {p.name for p in suite.iterdir()} == {"pretrain.json", "metrics.jsonl", *(f"step{t}" for t in STEPS)}
    assert all({p.name for p in (suite / f"step{t}").iterdir()} == SAVED for t in STEPS)
    about = json.loads((suite / "pretrain.json").read_text())
    assert about["characters"] == len(story()) and about["source"] == "story.txt"
    assert str(suite) not in (suite / "pretrain.json").read_text()


def test_checkpoints_load_with_transformers(suite):
    tokenizer = AutoTokenizer.from_pretrained(suite / "step8")
    assert tokenizer.decode(tokenizer(story()).input_ids) == story()
    assert tokenizer("é<|endoftext|>").input_ids[-1] == tokenizer.eos_token_id == 0 and len(tokenizer) == 300
    model = AutoModelForCausalLM.from_pretrained(suite / "step8")
    config = model.config
    assert config.use_parallel_residual and config.hidden_act == "gelu" and not config.tie_word_embeddings
    assert config.rope_parameters["partial_rotary_factor"] == 0.25 and config.eos_token_id == 0
    assert not (config.hidden_dropout or config.attention_dropout)


def test_step_0_is_the_untouched_model_and_nothing_global_is_touched(suite):
    sizes = {name: TINY[name] for name in ("hidden", "layers", "heads", "vocab", "context")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        fresh = pretraining._new_model(sizes, CFG.seed).state_dict()
        assert torch.equal(before, torch.get_rng_state())
    saved = AutoModelForCausalLM.from_pretrained(suite / "step0").state_dict()
    assert all(torch.equal(fresh[name], saved[name]) for name in fresh)
    other = pretraining._new_model(sizes, CFG.seed + 1).state_dict()
    assert not torch.equal(other["lm_head.weight"], fresh["lm_head.weight"])


def test_the_checkpoints_are_those_of_a_plain_training(suite):
    """The same text, tokens and data in a loop by hand."""
    words = story()
    _, tokens = pretraining._tokenized(words, 300)
    assert torch.equal(tokens, torch.tensor(AutoTokenizer.from_pretrained(suite / "step4")(words).input_ids))
    task = Text(tokens=tokens[: len(tokens) - len(tokens) // 20], context=8)
    model = AutoModelForCausalLM.from_pretrained(suite / "step0")
    for _ in Training(model, task, CFG).until(4):
        pass
    saved = AutoModelForCausalLM.from_pretrained(suite / "step4").state_dict()
    assert all(torch.allclose(saved[name], value, atol=1e-6) for name, value in model.state_dict().items())


def test_the_loss_falls_and_is_that_of_the_held_out_end(suite):
    rows = metrics(suite)
    assert [row["step"] for row in rows] == STEPS
    assert rows[0]["train_loss"] is None and rows[0]["loss"] == pytest.approx(log(300), abs=0.2)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    _, tokens = pretraining._tokenized(story(), 300)
    end = Text(tokens=tokens[len(tokens) - len(tokens) // 20 :], context=8)
    batch = end.sample(256, seed=0)
    model = AutoModelForCausalLM.from_pretrained(suite / "step12")
    assert end.loss(model(batch.inputs), batch).item() == pytest.approx(rows[-1]["loss"], abs=1e-5)


def test_half_precision_is_the_same_model_rounded(suite, tmp_path, text):
    half = pretrain(tmp_path / "half", text, train=CFG, dtype=torch.float16, **TINY)
    model = AutoModelForCausalLM.from_pretrained(half / "step12")
    assert model.dtype == torch.float16
    full = AutoModelForCausalLM.from_pretrained(suite / "step12").state_dict()
    assert all(torch.equal(value, full[name].half()) for name, value in model.state_dict().items())
    assert metrics(half) == metrics(suite)


def test_training_forks_and_restores_a_hugging_face_model():
    sizes = {name: TINY[name] for name in ("hidden", "layers", "heads", "vocab", "context")}
    task = Text(tokens=torch.arange(300), context=8)
    training = Training(pretraining._new_model(sizes, 0), task, CFG)
    list(training.until(5))
    fork, fresh = training.fork(), Training(pretraining._new_model(sizes, 1), task, CFG)
    fresh.load_state_dict(training.state_dict())
    list(training), list(fork), list(fresh)
    for other in (fork, fresh):
        assert other.t == 12
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in training.state_dict().items())


# Cut off and called again.


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", range(3))
def test_repeated_kills_give_the_same_bytes(tmp_path, text, seed, one_thread):
    def work(path):
        pretrain(path, text, train=replace(CFG, steps=40), **TINY)

    start = time.monotonic()
    assert run_in_child(tmp_path / "whole", None, None, work)
    seconds, moments, kills = time.monotonic() - start, random.Random(seed), 0
    while not run_in_child(tmp_path / "killed", moments.uniform(0.1, 0.7) * seconds, signal.SIGKILL, work):
        kills += 1
        assert kills < 100, "no progress between kills"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", [0, 1, 3, 8, 11, 12])
def test_ctrl_c_then_again_gives_the_same_bytes(tmp_path, text, suite, moment, monkeypatch, one_thread):
    expected = contents(pretrain(tmp_path / "whole", text, train=CFG, **TINY))
    update, out = Training.__next__, tmp_path / "cut"

    def cut(training):
        step = update(training)
        if step.t == moment:
            raise KeyboardInterrupt  # the step is done, and the caller never saw it
        return step

    with monkeypatch.context() as patch:
        patch.setattr(Training, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            pretrain(out, text, train=CFG, **TINY)
    updates = []
    monkeypatch.setattr(Training, "_update", lambda self, f=Training._update: (updates.append(self.t + 1), f(self))[1])
    pretrain(out, text, train=CFG, **TINY)
    assert updates == list(range(moment + 1, 13)), "it continues where it was"
    assert contents(out) == expected


def test_partial_checkpoint_is_not_a_step(tmp_path, text, monkeypatch, one_thread):
    expected = contents(pretrain(tmp_path / "whole", text, train=CFG, **TINY))
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda self, folder: 1 / 0)  # the weights are there
        with pytest.raises(ZeroDivisionError):
            pretrain(tmp_path / "cut", text, train=CFG, **TINY)
    assert not (tmp_path / "cut" / "step0").exists()
    assert contents(pretrain(tmp_path / "cut", text, train=CFG, **TINY)) == expected


def test_finished_pretraining_is_left_as_it_is(suite, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in suite.rglob("*")}
    monkeypatch.setattr(pretraining, "_tokenized", None)  # nothing is computed
    assert pretrain(suite, suite.parent / "story.txt", train=CFG, **TINY) == suite
    assert {p: p.stat().st_mtime_ns for p in suite.rglob("*")} == before


def test_other_arguments_are_refused_and_overwrite_renames(suite, tmp_path, text):
    out = tmp_path / "suite"
    shutil.copytree(suite, out)
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"with \{'layers': 1\}, not \{'layers': 2\}"):
        pretrain(out, text, train=CFG, **(TINY | {"layers": 2}))
    with pytest.raises(FileExistsError, match="'seed': 0"):
        pretrain(out, text, train=replace(CFG, seed=1), **TINY)
    text.write_text(story(seed=5))
    with pytest.raises(FileExistsError, match="'text'"):
        pretrain(out, text, train=CFG, **TINY)
    with pytest.raises(ValueError, match="too short"):
        pretrain(out, text, train=CFG, overwrite=True, **(TINY | {"vocab": 4000}))
    assert contents(out) == before
    pretrain(out, text, train=CFG, overwrite=True, **TINY)
    assert contents(tmp_path / "suite.old-1") == before
    assert metrics(out) != metrics(suite)


def test_other_folders_are_refused_and_stale_state_is_removed(suite, tmp_path, text):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds something else"):
        pretrain(tmp_path / "other", text, train=CFG, **TINY)
    state = tmp_path / "out" / ".state" / "state.safetensors"
    state.parent.mkdir(parents=True)
    other = pretrain(tmp_path / "seed1", text, train=replace(CFG, seed=1, steps=2), **TINY)
    task = Text(tokens=torch.arange(300), context=8)
    training = Training(AutoModelForCausalLM.from_pretrained(other / "step2"), task, CFG)
    pretraining.write_tensors(state, training.state_dict())
    assert metrics(pretrain(tmp_path / "out", text, train=CFG, **TINY)) == metrics(suite)


def test_the_tokenizer_is_the_same_each_time_and_in_another_process(tmp_path, suite):
    out = tmp_path / "tokenizer"
    assert run_in_child(out, None, None, lambda path: pretraining._tokenized(story(), 300)[0].save_pretrained(path))
    assert (out / "tokenizer.json").read_bytes() == (suite / "step1" / "tokenizer.json").read_bytes()


# Bad input.

BAD = {
    "hidden and heads": (dict(hidden=24), "multiple of 8 x heads = 16, got 24"),
    "no layers": (dict(layers=0), "layers must be at least 1"),
    "too few tokens": (dict(vocab=256), "at least 257"),
    "more merges than the text has": (dict(vocab=5000), "too short for a vocabulary of 5000"),
    "a text too short": (dict(context=400), "windows of 401 tokens"),
    "a step beyond the end": (dict(steps_to_save=[13]), "must lie in 0..steps=12"),
    "a step before the start": (dict(steps_to_save=[-1]), "must lie in 0..steps=12"),
    "an optimizer for other names": (dict(train=replace(CFG, optimizer="muon")), "use adamw"),
    "whole numbers": (dict(dtype=torch.int8), "floating-point"),
}


@pytest.mark.parametrize("values, hint", BAD.values(), ids=BAD.keys())
def test_bad_sizes_are_one_line_and_nothing_is_written(tmp_path, text, values, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        pretrain(tmp_path / "out", text, **(TINY | {"train": CFG} | values))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_bad_texts(tmp_path):
    (tmp_path / "latin").write_bytes(story().encode("utf-16"))
    (tmp_path / "short").write_text("too short")
    for name, error, hint in [
        ("latin", ValueError, "not a text in UTF-8"),
        ("short", ValueError, "too short"),
        ("missing", FileNotFoundError, "missing"),
    ]:
        with pytest.raises(error, match=hint):
            pretrain(tmp_path / "out", tmp_path / name, train=CFG, **TINY)
        assert not (tmp_path / "out").exists()


def test_the_documentation_is_parsed_not_imported():
    loaded = set(sys.modules)
    text = python_documentation()
    assert len(text) > 500_000 and 'The "assert" statement' in text
    assert {"this", "antigravity", "turtle"}.isdisjoint(set(sys.modules) - loaded)
    assert text == text.encode().decode()


# The command.

WORDS = "--hidden 16 --layers 1 --heads 2 --vocab 300 --context 8 --batch-size 16 --lr 1e-2".split()


def call(*words):
    return CliRunner().invoke(main, ["pretrain", *map(str, words)])


def test_the_command(tmp_path, text, suite, monkeypatch):
    words = ["--text", text, "--out", tmp_path / "out", "--steps", 12, *WORDS]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_update", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        result = call(*words)
        assert result.exit_code == 130 and "the same command continues" in result.stderr
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert f"step     12  held-out loss {metrics(suite)[-1]['loss']:.3f}" in result.stdout
    assert contents(tmp_path / "out" / "step12") == contents(suite / "step12")
    assert call(*words, "--dtype", "float61").stderr.count("did you mean") == 1
    result = call(*words, "--seed", 1)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and "'seed': 0" in result.stderr
    help_ = call("--help")
    assert "Example: plateaulens pretrain" in " ".join(help_.output.split())


# What comes with the package.


def test_the_shipped_suite_is_whole_and_small():
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 512]
    assert {p.name for p in SUITE.iterdir()} == {"pretrain.json", "metrics.jsonl", *(f"step{t}" for t in steps)}
    assert all({p.name for p in (SUITE / f"step{t}").iterdir()} == SAVED for t in steps)
    assert sum(p.stat().st_size for p in SUITE.rglob("*")) < 5_000_000
    rows, about = metrics(SUITE), json.loads((SUITE / "pretrain.json").read_text())
    assert [row["step"] for row in rows] == steps == about["arguments"]["steps_to_save"]
    assert rows[0]["loss"] > 6 and rows[-1]["loss"] < 3.5
    weights = AutoModelForCausalLM.from_pretrained(SUITE / "step512").state_dict()
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in weights.values())


def test_the_shipped_suite_collapses_and_recovers():
    """Plain Hugging Face and arithmetic: greedy answers, hidden states after the final norm."""
    prompts = ["Return the number of", "The list is sorted, and", "This class is used to open", "If the file does not"]
    seen = {t: [answer(t, prompt) for prompt in prompts] for t in (0, 8, 512)}
    cosine = {t: sum(c for c, _ in rows) / 4 for t, rows in seen.items()}
    repetition = {t: sum(r for _, r in rows) / 4 for t, rows in seen.items()}
    assert cosine[8] > 0.9 and max(cosine[0], cosine[512]) < 0.5
    assert repetition[8] > 0.8 and max(repetition[0], repetition[512]) < 0.5


def answer(step, prompt, n=8):
    tokenizer = AutoTokenizer.from_pretrained(SUITE / f"step{step}")
    model = AutoModelForCausalLM.from_pretrained(SUITE / f"step{step}", dtype=torch.float32)
    tokens, hidden = tokenizer(prompt, return_tensors="pt").input_ids, []
    with torch.no_grad():
        for _ in range(n):
            hidden.append(model.gpt_neox(tokens).last_hidden_state[0, -1])
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    new, unit = tokens[0, -n:], torch.nn.functional.normalize(torch.stack(hidden), dim=1)
    pairs = (unit @ unit.T)[tuple(torch.triu_indices(n, n, 1))]
    return pairs.mean().item(), (new[1:] == new[:-1]).float().mean().item()
