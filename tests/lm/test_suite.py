"""`Checkpoints` and the loaders: steps in order, the right model at each, and refusals of damaged files."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import plateaulens as pl
from plateaulens.lm.pythia_suites import PYTHIA_STEPS
from plateaulens.lm.source import File, steps_of, weight_files
from plateaulens.lm.suites_by_name import load


def plain(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@pytest.fixture
def folder(suite_folder, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(suite_folder, tmp_path / "suite")
    return tmp_path / "suite"


def test_steps_are_sorted_and_models_are_those_of_their_folders(suite_folder):
    suite, prompt = pl.lm.from_folder(suite_folder), torch.arange(1, 9)[None]
    assert suite.steps == [0, 1, 16, 128] and suite.revision(16) == "step16"
    seen = []
    for step in suite.steps:
        model = suite.model(step)
        with torch.no_grad():
            torch.testing.assert_close(
                model(prompt), plain(suite_folder / f"step{step}")(prompt).logits, rtol=1e-5, atol=1e-5
            )
        assert model.cfg.checkpoint_value == step and not model.training
        seen.append(model(prompt))
    assert not any(torch.allclose(seen[0], other, atol=1e-2) for other in seen[1:])


def test_the_residual_stream_is_that_of_the_checkpoint_unprocessed(suite_folder):
    prompt = torch.arange(1, 9)[None]
    with torch.no_grad():
        hidden = plain(suite_folder / "step16")(prompt, output_hidden_states=True).hidden_states
        _, cache = pl.lm.from_folder(suite_folder).model(16).run_with_cache(prompt)
    torch.testing.assert_close(cache["blocks.1.hook_resid_pre"], hidden[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache["unembed.hook_in"], hidden[-1], rtol=1e-5, atol=1e-5)


def test_walk_gives_the_models_of_its_steps_and_can_be_stopped(suite_folder):
    suite, prompt = pl.lm.from_folder(suite_folder), torch.arange(1, 9)[None]
    for step, model in suite.walk([128, 0]):
        torch.testing.assert_close(model(prompt), suite.model(step)(prompt))
    for _step, _model in suite.walk():
        break
    with pytest.raises(ValueError, match="no checkpoint of step 17; nearest: 16"):
        next(suite.walk([0, 17]))


def test_the_dtype_is_float32_unless_asked(suite_folder):
    assert next(pl.lm.from_folder(suite_folder).model(0).parameters()).dtype == torch.float32
    half = pl.lm.from_folder(suite_folder, dtype=torch.bfloat16).model(0)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_device_map_is_passed_on(suite_folder):
    model = pl.lm.from_folder(suite_folder, device_map={"": "cpu"}).model(16)
    torch.testing.assert_close(
        model(torch.ones(1, 3).long()), pl.lm.from_folder(suite_folder).model(16)(torch.ones(1, 3).long())
    )


def test_pickled_and_sharded_weights_open_too(folder):
    weights = load_file(folder / "step16" / "model.safetensors")
    expected = pl.lm.from_folder(folder).model(16)(torch.arange(1, 9)[None])
    (folder / "step16" / "model.safetensors").unlink()
    torch.save(weights, folder / "step16" / "pytorch_model.bin")
    torch.testing.assert_close(pl.lm.from_folder(folder).model(16)(torch.arange(1, 9)[None]), expected)
    (folder / "step16" / "pytorch_model.bin").unlink()
    plain(folder / "step1").save_pretrained(folder / "step16", max_shard_size="20KB")
    shards = [f.path for f in pl.lm.from_folder(folder).files(16)]
    assert len(shards) > 3 and "model.safetensors.index.json" in shards
    torch.testing.assert_close(
        pl.lm.from_folder(folder).model(16)(torch.arange(1, 9)[None]),
        pl.lm.from_folder(folder).model(1)(torch.arange(1, 9)[None]),
    )


def damaged(folder, how):
    path = folder / "step16" / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if "layers.1.mlp" in n and n.endswith("weight"))
    if how == "missing":
        del weights[name]
    elif how == "unexpected":
        weights["gpt_neox.layers.1.extra.weight"] = torch.zeros(3)
    elif how == "reshaped":
        weights[name] = weights[name][:, :-1].contiguous()
    elif how == "nan":
        weights[name][0, 0] = float("nan")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    elif how == "gone":
        path.unlink()
        return
    elif how == "config":
        (folder / "step16" / "config.json").write_text("{")
        return
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("how", ["missing", "unexpected", "reshaped", "nan", "cut", "gone", "config"])
def test_no_damaged_checkpoint_is_opened(how, folder):
    damaged(folder, how)
    with pytest.raises(ValueError, match="step 16") as error:
        pl.lm.from_folder(folder).model(16)
    assert "\n" not in str(error.value)
    pl.lm.from_folder(folder).model(1)


def test_a_bridge_that_computes_something_else_is_refused(suite_folder, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    boot = TransformerBridge.boot_transformers

    def wrong(*args, **kwargs):
        bridge = boot(*args, **kwargs)
        with torch.no_grad():
            next(p for n, p in bridge.named_parameters() if "embed" in n).mul_(1.1)
        return bridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", wrong)
    with pytest.raises(ValueError, match="differs from Hugging Face's model by"):
        pl.lm.from_folder(suite_folder).model(16)


def test_prompts_are_the_tokenizers_and_the_text_never_ends_early(suite_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("Why?\nWhat is a plateau?\n")
    suite = pl.lm.from_folder(suite_folder)
    batch = suite.prompts(tmp_path / "mine.txt", n=2, n_new=4)
    assert batch.answer_positions[:, 0].tolist() == [3, 17] and batch.n_new == 4 and batch.decoding.forbidden == (0,)
    assert suite.tokenizer.decode(batch.tokens[1]) == "What is a plateau?"
    drawn = suite.prompts(n=3, sample=True, draws=5, top_k=None)
    assert drawn.decoding == pl.lm.Decoding(sample=True, seed=5, top_k=None, forbidden=(0,))
    assert len(suite.prompts()) == 100


def test_revisions_are_read_as_steps():
    assert steps_of(["main", "step1", "step16", "step0"]) == {0: "step0", 1: "step1", 16: "step16"}
    olmo = ["stage1-step600-tokens3B", "stage1-step150-tokens1B", "stage2-ingredient1-step1000-tokens5B"]
    assert list(steps_of(olmo)) == [150, 600, 1000]
    assert steps_of(["footstep3", "step1.5", "steps"]) == {}
    with pytest.raises(ValueError, match="'a-step1' and 'b-step1' are both step 1"):
        steps_of(["a-step1", "b-step1"])


def test_the_weights_of_a_revision_are_chosen():
    def names(*paths):
        return [f.path for f in weight_files([File(p, 1) for p in paths])]

    assert names("a.txt", "pytorch_model.bin", "model.safetensors") == ["model.safetensors"]
    sharded = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    assert names(*sharded, "pytorch_model.bin.index.json") == ["pytorch_model.bin.index.json", *sharded]
    with pytest.raises(ValueError, match="no weights among"):
        names("config.json")


def test_suites_by_name(suite_folder):
    assert len(PYTHIA_STEPS) == 154 and PYTHIA_STEPS[-1] == 143000
    names = {
        "pythia-14m": "EleutherAI/pythia-14m",
        "pythia-1.4b-deduped": "EleutherAI/pythia-1.4b-deduped",
        "pythia-70m-seed3": "EleutherAI/pythia-70m-seed3",
        "olmo2-7b": "allenai/OLMo-2-1124-7B",
        "allenai/OLMo-2-0425-1B": "allenai/OLMo-2-0425-1B",
        str(suite_folder): suite_folder.name,
    }
    for word, name in names.items():
        assert load(word).name == name
    assert pl.lm.pythia("14m").expected == PYTHIA_STEPS
    for word in (
        "pythia-15m",
        "olmo2-3b",
        "no-such",
        "./nowhere",
        "pythia-14m-sed1",
        "pythia-14m-seed99",
        "pythia-12b-seed3",
    ):
        with pytest.raises(ValueError, match="unknown size|neither a suite|PolyPythias are"):
            load(word)
    with pytest.raises(FileNotFoundError, match="no sub-folders step0"):
        pl.lm.from_folder(suite_folder / "step0")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pl.lm.from_folder(suite_folder / "nothing")


def test_a_folder_that_is_a_run_is_said_to_be_one(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it is the folder of a run, open it with plateaulens.Run"):
        pl.lm.from_folder(tmp_path)


def test_suite_without_a_tokenizer_has_models_and_no_tokenizer(folder):
    for path in folder.glob("*/*"):
        if path.name.startswith(("tokenizer", "special")):
            path.unlink()
    suite = pl.lm.from_folder(folder)
    assert suite.model(16).tokenizer is None
    with pytest.raises(ValueError, match="has no tokenizer;"):
        suite.prompts()


def test_tokenizer_of_any_step_is_used(folder):
    for step in (16, 128):
        for path in (folder / f"step{step}").glob("tokenizer*"):
            path.unlink()
    (folder / "step128" / "model.safetensors").unlink()
    suite = pl.lm.from_folder(folder)
    assert suite.tokenizer("Why?")["input_ids"] and suite.model(16).tokenizer is not None


def test_prompts_can_be_given_as_they_are(suite_folder):
    suite = pl.lm.from_folder(suite_folder)
    batch = suite.prompts(["Why?", "What floats on water?"], n_new=4)
    assert len(batch) == 2 and batch.decoding.forbidden and batch.n_new == 4
    assert suite.tokenizer.decode(batch.tokens[0, : batch.answer_positions[0, 0] + 1].tolist()) == "Why?"


def test_tokens_seen(suite_folder):
    suite = pl.lm.from_folder(suite_folder, tokens_a_step=2048)
    assert suite.tokens(16) == 32768 and pl.lm.from_folder(suite_folder).tokens(16) is None


def test_analysis_takes_a_suite_as_it_takes_a_run(suite_folder):
    suite = pl.lm.from_folder(suite_folder)
    batch = pl.Batch.prompts(torch.arange(1, 25).view(4, 6), 3)
    grid = pl.patch_across_steps(suite, batch, metrics=["collapse", "repetition"], sources=[16, 128], targets=[0, 1])
    with pl.intervene(model := suite.model(0), pl.FixAttention(pl.trace(suite.model(16), batch).pattern())):
        expected = pl.measure(model, batch, ["collapse"])["collapse"]
    assert float(grid.collapse.sel(source=16, target=0)) == pytest.approx(float(expected), abs=1e-5)
    assert pl.analysis.trace_checkpoints(suite, batch).steps == suite.steps
