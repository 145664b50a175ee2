"""Every intervention acts as an edit written by hand does, on every kind of model; and says where it cannot."""

import pytest
import torch

import plateaulens as pl
from helpers import INTERVENTION_CASES, RESID, VECTOR, WINDOW_SUM, small_transformer
from plateaulens.hooks import active_interventions, check_writable, hook_names
from plateaulens.interventions import INTERVENTIONS, from_json
from plateaulens.models.parameter_groups import PARTS, parameters_of

KINDS = ("linear", "softmax", "tl", "neox", "olmo2")


@pytest.fixture(params=KINDS)
def model(request):
    """One model of each kind: ours, TransformerLens's (native bridge on 4, HookedTransformer on 3.9), bridges."""
    if request.param in ("linear", "softmax"):
        return small_transformer(request.param)
    if request.param == "tl":
        return pl.to_tl(small_transformer("softmax"))
    return request.getfixturevalue(request.param)[1]


@pytest.fixture
def tokens():
    return WINDOW_SUM.sample(3, seed=0).inputs


def logits(model, tokens):
    with torch.no_grad():
        out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def by_hand(model, tokens, site, edit):
    with model.hooks(fwd_hooks=[(site, lambda tensor, hook: edit(tensor.clone()))]):
        return logits(model, tokens)


def value_at(model, tokens, site):
    seen = []
    with model.hooks(fwd_hooks=[(site, lambda tensor, hook: seen.append(tensor.detach().clone()))]):
        logits(model, tokens)
    return seen[0]


@pytest.mark.parametrize("name", INTERVENTION_CASES)
def test_intervention_equals_the_edit_by_hand(model, tokens, name):
    change, site, edit = INTERVENTION_CASES[name]
    plain, expected = logits(model, tokens), by_hand(model, tokens, site, edit)
    with pl.intervene(model, change):
        changed = logits(model, tokens)
    torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-5)
    assert (changed - plain).abs().max() > 1e-3, "the case must change something"
    assert torch.equal(logits(model, tokens), plain) and not active_interventions(model)


def test_resampling_gives_each_example_another_ones_activation(model, tokens):
    real = value_at(model, tokens, RESID)
    with pl.intervene(model, pl.Ablate(RESID, "resample")):
        seen = value_at(model, tokens, RESID)
        again = value_at(model, tokens, RESID)
    owners = [[torch.equal(row, other) for other in real].index(True) for row in seen]
    assert sorted(owners) == [0, 1, 2] and all(owner != i for i, owner in enumerate(owners))
    assert torch.equal(seen, again)


def test_glob_applies_to_every_matching_site():
    model, batch = small_transformer(), WINDOW_SUM.sample(3, seed=0)
    both = "blocks.*.hook_mlp_out"
    with pl.intervene(model, pl.Ablate(both, "zero")):
        together = logits(model, batch.inputs)
    with pl.intervene(model, *(pl.Ablate(f"blocks.{layer}.hook_mlp_out", "zero") for layer in (0, 1))):
        assert torch.equal(logits(model, batch.inputs), together)
    assert not torch.equal(logits(model, batch.inputs), together)


def test_patch_sets_the_activation_of_the_other_run(model, tokens):
    other = tokens.flip(0)
    value = value_at(model, other, RESID)
    with pl.intervene(model, pl.Patch(RESID, value)):
        patched = logits(model, tokens)
    torch.testing.assert_close(patched, logits(model, other))  # all that later layers see is the stream


@pytest.mark.parametrize("name", INTERVENTION_CASES)
def test_every_intervention_round_trips_through_json(name):
    change = INTERVENTION_CASES[name][0]
    back = from_json(change.to_json(), change.tensors())
    assert back == change and type(back) is type(change) and repr(back) == repr(change)


def test_every_intervention_has_a_case():
    tried = {type(change).__name__ for change, _, _ in INTERVENTION_CASES.values()} | {"Freeze"}
    assert tried == set(INTERVENTIONS)


def test_edit_at_every_accepted_site_changes_the_logits(model, tokens):
    """What an edit reaches: all sites of a model, one by one."""
    plain = logits(model, tokens)
    for site in sorted(hook_names(model)):
        with torch.no_grad():
            try:
                check_writable(model, site)
                steer = pl.Steer(site, torch.ones(1).expand(value_at(model, tokens, site).shape[-1]))
                with pl.intervene(model, steer):
                    changed = logits(model, tokens)
            except IndexError:  # never computed: `intervene` says so on leaving, below
                with pytest.raises(ValueError, match="never applied"), pl.intervene(model, pl.Ablate(site, "zero")):
                    logits(model, tokens)
            except ValueError as error:
                assert any(text in str(error) for text in ("would not take effect", "holds tokens")), (site, error)
            else:
                assert not torch.equal(changed, plain), f"an edit of {site} is lost, and nothing said so"


@pytest.mark.parametrize("kind", ["olmo2", "tl"])
def test_hook_resid_mid_raises_on_bridges_that_miss_the_skip(request, kind):
    bridge = request.getfixturevalue(kind)[1] if kind == "olmo2" else pl.to_tl(small_transformer("softmax"))
    if not hasattr(bridge, "original_model"):
        check_writable(bridge, "blocks.0.hook_resid_mid")  # 3.9's HookedTransformer: it acts, as above
        return
    with (
        pytest.raises(ValueError, match="not the residual stream"),
        pl.intervene(bridge, pl.Ablate("blocks.0.hook_resid_mid")),
    ):
        pass


# Decoding.

DECODED = {
    **{
        name: INTERVENTION_CASES[name][0]
        for name in ("scale", "optimal", "fix", "uniform head", "mean", "zero", "patch", "project")
    },
    "resample": pl.Ablate(RESID, "resample", positions=[5, 6, 7]),
    "steer at an answer": pl.Steer(RESID, 5 * VECTOR, positions=[6]),
}


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("name", DECODED)
def test_cached_decoding_edits_absolute_positions(attention, name):
    model, batch = small_transformer(attention), WINDOW_SUM.sample(3, seed=0)
    with pl.intervene(model, DECODED[name]):
        cached = pl.trace(model, batch, ["generated"]).generated
        tokens = batch.tokens[:, : batch.prompt_len]
        for _ in range(WINDOW_SUM.n_out):
            tokens = torch.cat([tokens, logits(model, tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, tokens[:, batch.prompt_len :])


def test_transformerlens_cache_gives_absolute_positions():
    tl = pl.to_tl(small_transformer("softmax"))
    if hasattr(tl, "original_model"):
        return  # bridges of TransformerLens 4 decode native models without a cache
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    tokens = WINDOW_SUM.sample(3, seed=0).inputs
    steer = pl.Steer(RESID, 5 * VECTOR, positions=[6])
    cache = TransformerLensKeyValueCache.init_cache(tl.cfg, "cpu", 3)
    with pl.intervene(tl, steer), torch.no_grad():
        whole = tl(tokens)
        tl(tokens[:, :6], past_kv_cache=cache, attention_mask=torch.ones(3, 6, dtype=torch.long))
        last = tl(tokens[:, 6:7], past_kv_cache=cache, attention_mask=torch.ones(3, 1, dtype=torch.long))
    torch.testing.assert_close(last[:, 0], whole[:, 6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "task", [pl.tasks.Permutation(n=4), pl.tasks.Histogram(n=4), pl.tasks.PrefixSum(n=4, p=5)], ids=repr
)
def test_prompt_dependent_maps_follow_the_prompts(task):
    model, batch = small_transformer(task=task), task.sample(5, seed=1)
    plain = pl.trace(model, batch).pattern()
    maps = task.optimal_attention(batch)
    with pl.intervene(model, pl.ScaleAttention(task, factor=0.0)):
        scaled = pl.trace(model, batch)
    for layer, omega in enumerate(maps, 2 - len(maps)):
        if omega is None:
            continue
        omega = omega.clone()
        omega[:, [task.prompt_len - 1 + i for i in task.partial_positions]] = False
        gone = (scaled.pattern()[layer] == 0) & (plain[layer].abs() > 0)
        assert torch.equal(gone, omega[:, None].expand_as(gone) & (plain[layer].abs() > 0))
    assert not torch.equal(scaled.outputs, pl.trace(model, batch).outputs)


# What cannot act says so.


@pytest.mark.usefixtures("annotations_unchecked")
def test_intervention_that_cannot_act_raises():
    model, batch = small_transformer(), WINDOW_SUM.sample(3, seed=0)
    cases = [
        (pl.AblateHeads([(1, 0)], "mean"), batch[:1], "batch of one"),
        (pl.Ablate(RESID, "resample"), batch[:1], "batch of one"),
        (pl.AblateHeads([(1, 2)], "zero"), batch, "heads 0..1"),
        (pl.Ablate(RESID, "zero", heads=[0]), batch, "no head axis"),
        (pl.Steer(RESID, torch.ones(7)), batch, "does not fit"),
        (pl.Patch(RESID, torch.ones(4, 8, 16)), batch, "nothing is broadcast"),
        (pl.Patch(RESID, torch.ones(1, 8, 16), positions=[1]), batch, "nothing is broadcast"),
        (pl.Patch(RESID, torch.ones(5, 16)), batch, "covers 5 positions"),
        (pl.AblateHeads([(2, 0)], "zero"), batch, "blocks.2.attn.hook_pattern"),
        (pl.Ablate("blocks.0.hook_result", "zero"), batch, "unknown hook"),
        (pl.ScaleAttention(pl.tasks.Permutation(n=4, compose=3), factor=2.0), batch, "deeper model"),
        (pl.Ablate("blocks.1.hook_resid_post", "mean", positions=[30]), batch, "never applied"),
    ]
    for change, prompts, message in cases:
        with pytest.raises(ValueError, match=message), pl.intervene(model, change):
            model(prompts.inputs)
        assert not active_interventions(model)
    for wrong in (
        lambda: pl.AblateHeads([(0, 0)], "median"),
        lambda: pl.AblateHeads([]),
        lambda: pl.Ablate(RESID, "zreo"),
        lambda: pl.Ablate(RESID, positions=[]),
        lambda: pl.Steer(RESID, VECTOR, heads=[-1]),
    ):
        with pytest.raises(ValueError, match="unknown mode|one or more|at least one"):
            wrong()


# Parts, graft, freeze.


@pytest.fixture(params=["linear", "tl"])
def trainable(request):
    return small_transformer() if request.param == "linear" else pl.to_tl(small_transformer("softmax"))


def test_parameter_groups_partition_the_parameters(trainable):
    single = ("embed", "pos", "qk", "ov", "mlp", "norms", "unembed")
    found = [name for part in single for name in parameters_of(trainable, part)]
    everything = {n.replace("_original_component.", ""): p for n, p in trainable.named_parameters()}
    learnt = {name for name in everything if not name.startswith("unembed.b")}  # a constant zero of 3.9's models
    assert len(found) == len(set(found)) and learnt <= set(found) <= set(everything)
    assert parameters_of(trainable, "attn").keys() == parameters_of(trainable, ["qk", "ov"]).keys()
    paper = {name: set(parameters_of(trainable, name)) for name in ("KQ", "KQOV", "MLP", "Embedding")}
    assert paper["KQ"] < paper["KQOV"] and paper["KQOV"] | paper["MLP"] == set(found)
    assert not paper["KQOV"] & paper["MLP"] and paper["Embedding"] == set(
        parameters_of(trainable, ["embed", "pos", "unembed", "ln_final"])
    )
    layer = "layers" if any(n.startswith("layers") for n in everything) else "blocks"
    assert all(n.startswith(f"{layer}.1.") for n in parameters_of(trainable, f"{layer}.1.*"))


@pytest.mark.parametrize("part", ["qk", "attn", "MLP", "KQOV"])
def test_graft_takes_only_the_named_parts_from_the_donor(trainable, part):
    donor = (
        small_transformer(seed=1)
        if isinstance(trainable, pl.Transformer)
        else pl.to_tl(small_transformer("softmax", seed=1))
    )
    before = {n: p.clone() for n, p in trainable.named_parameters()}
    new = pl.graft(trainable, donor, part)
    inside = parameters_of(new, part)
    foreign = parameters_of(donor, list(inside))
    for name, parameter in parameters_of(new, ["*"]).items():
        source = foreign if name in inside else parameters_of(trainable, ["*"])
        assert torch.equal(parameter, source[name])
        assert parameter.data_ptr() != source[name].data_ptr()
    assert all(torch.equal(p, before[n]) for n, p in trainable.named_parameters())
    tokens = WINDOW_SUM.sample(2, seed=0).inputs
    assert (logits(new, tokens) - logits(trainable, tokens)).abs().max() > 1e-3
    everything = pl.graft(trainable, donor, ["*"])
    torch.testing.assert_close(logits(everything, tokens), logits(donor, tokens))


def test_frozen_parts_stay_and_the_rest_learns(trainable):
    cfg = pl.TrainConfig(steps=3, batch_size=4, weight_decay=0.1, optimizer="adamw")
    before = {n: p.clone() for n, p in parameters_of(trainable, ["*"]).items()}
    learnt = {n for n, p in trainable.named_parameters() if p.requires_grad}
    assert learnt == {n for n, _ in trainable.named_parameters() if n != "unembed.b_U"}, "ours has no bias there"
    training = pl.train(trainable, WINDOW_SUM, cfg)
    with pl.intervene(trainable, pl.Freeze(["qk", "embed"])):
        list(training.until(2))
    frozen = set(parameters_of(trainable, ["qk", "embed"]))
    changed = {n for n, p in parameters_of(trainable, ["*"]).items() if not torch.equal(p, before[n])}
    assert changed and not changed & frozen
    assert {n for n in before if ".v." in n or "W_V" in n} <= changed
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == learnt
    list(training)
    assert {n for n in frozen if not torch.equal(parameters_of(trainable, ["*"])[n], before[n])}, "they learn again"


def test_freeze_round_trips_and_raises_without_effect():
    model, batch = small_transformer(), WINDOW_SUM.sample(3, seed=0)
    freeze = pl.Freeze("KQ")
    assert from_json(freeze.to_json()) == freeze == pl.Freeze(["KQ"]) != pl.Freeze("KQOV")
    with pytest.raises(ValueError, match="Freeze.*its parameters"), pl.intervene(model, freeze):
        pl.measure(model, batch, [pl.metrics.loss])  # no gradient: nothing to hold
    with pl.intervene(model, freeze, pl.Freeze("qk")):  # two may hold the same parameter
        model(batch.inputs)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="did you mean 'KQOV'"), pl.intervene(model, pl.Freeze("KQO")):
        pass


def test_parameters_of_hugging_face_bridges_raise(neox):
    with pytest.raises(ValueError, match="holds copies of its weights"):
        pl.graft(neox[1], neox[1], "attn")
    with pytest.raises(ValueError, match="holds copies"), pl.intervene(neox[1], pl.Freeze("mlp")):
        pass


def test_graft_of_another_shape_raises():
    with pytest.raises(ValueError, match="cannot graft 'mlp'.*differs"):
        pl.graft(small_transformer(), small_transformer(d_mlp=8), "mlp")
    assert pl.graft(small_transformer(), small_transformer(d_mlp=8), "attn") is not None
    with pytest.raises(ValueError, match="cannot graft"):
        pl.graft(small_transformer(), small_transformer(n_layers=1), "attn")
    assert set(PARTS) >= {"qk", "ov", "attn", "mlp", "embed", "pos", "unembed", "norms"}
