"""Patching equals plain hooks on every kind of model, and paths equal those worked out by hand."""

from inspect import unwrap
from itertools import product

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from transformer_lens import patching as theirs

import plateaulens as pl
from plateaulens.analysis.patching import normalized
from plateaulens.hooks import has_user_hooks
from plateaulens.interventions import intervene

D_VOCAB, LENGTH = 20, 4
KINDS = ["linear", "softmax", "converted", "neox", "olmo"]
TL_SWEEPS = {  # site, axes -> the equivalent sweep of TransformerLens
    ("resid_pre", "pos"): "resid_pre",
    ("attn_out", "pos"): "attn_out",
    ("mlp_out", "pos"): "mlp_out",
    ("z", "head"): "attn_head_out_all_pos",
    ("q", "head"): "attn_head_q_all_pos",
    ("k", "head"): "attn_head_k_all_pos",
    ("v", "head"): "attn_head_v_all_pos",
    ("pattern", "head"): "attn_head_pattern_all_pos",
    ("z", ("pos", "head")): "attn_head_out_by_pos",
    ("v", ("pos", "head")): "attn_head_v_by_pos",
    ("pattern", ("head", "query")): "attn_head_pattern_by_pos",
}
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v")
PLACES = {**dict.fromkeys(STREAM, {"pos": 1}), **dict.fromkeys(HEADS, {"pos": 1, "head": 2})}
PLACES["pattern"] = {"head": 1, "query": 2}


def hook_of(site, layer):
    return f"blocks.{layer}.{'' if site in STREAM else 'attn.'}hook_{site}"


def make(attention="softmax", seed=0, **fields):
    """A tiny model in double precision, with random biases."""
    sizes = dict(d_vocab=D_VOCAB, n_ctx=LENGTH, d_model=12, n_heads=3, d_head=4, d_mlp=16, n_layers=2) | fields
    model = pl.Transformer(pl.ModelConfig(**sizes, attention=attention, init_scale=20.0, seed=seed)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


@pytest.fixture(scope="module")
def olmo():
    """A small random OLMo-2 whose keys and values are shared by two heads each."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import Olmo2Config, Olmo2ForCausalLM

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(vocab_size=50, intermediate_size=32, max_position_embeddings=32)
    cfg = Olmo2Config(**sizes, initializer_range=0.5, pad_token_id=0, attn_implementation="eager")
    torch.manual_seed(0)
    hf = Olmo2ForCausalLM(cfg).eval()
    return hf, build_bridge_from_module(hf, "Olmo2ForCausalLM", hf_config=hf.config)


@pytest.fixture(params=KINDS)
def model(request):
    """One of each kind; converted is a native bridge on 4.x and a HookedTransformer on 3.9."""
    if request.param in ("neox", "olmo"):
        return request.getfixturevalue(request.param)[1]
    return pl.to_tl(make()) if request.param == "converted" else make(request.param)


def prompts(seed, n=3, length=LENGTH):
    return torch.randint(0, D_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


def batches():
    """Two batches without an answer: the model runs on all of their tokens."""
    return pl.Batch.prompts(prompts(0), n_new=2), pl.Batch.prompts(prompts(1), n_new=2)


def metric(logits):
    return (logits[:, -1, 2] - logits[:, -1, 4]).mean()


def logits_of(model, tokens, hooks=()):
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def read(model, tokens, names, hooks=()):
    """Activations by plain hooks, and the logits."""
    seen = {}
    readers = [(name, lambda a, hook, name=name: seen.__setitem__(name, a.clone())) for name in names]
    return seen, logits_of(model, tokens, [*hooks, *readers])


def setter(name, value, where=()):
    """A plain hook that writes `value` at the index `where`."""

    def write(activation, hook):
        activation = activation.clone()
        activation[where] = value[where]
        return activation

    return name, write


def near(got, want, atol=2e-5):
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def quiet(function, *args, **options):
    return function(*args, progress=False, **options)


# Activation patching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("site", PLACES)
def test_activation_patching_equals_plain_hooks(site, attention):
    model, (clean, corrupted) = make(attention), batches()
    dims = PLACES[site]
    for axes in [(), *[(axis,) for axis in dims], *([tuple(reversed(dims))] if len(dims) > 1 else [])]:
        grid = quiet(pl.activation_patching, model, clean, corrupted, site, metric, axes=axes)
        assert grid.dims == ("layer", *axes) and grid.name == "metric"
        seen, _ = read(model, clean.tokens, [hook_of(site, layer) for layer in range(2)])
        for layer, *at in product(*(grid[axis].values for axis in grid.dims)):
            name, where = hook_of(site, layer), [slice(None)] * 4
            for axis, i in zip(axes, at, strict=True):
                where[dims[axis]] = i
            where = tuple(where[: seen[name].ndim])
            truth = metric(logits_of(model, corrupted.tokens, [setter(name, seen[name], where)]))
            near(grid.sel(dict(zip(grid.dims, (layer, *at), strict=True))), truth, atol=1e-12)
        assert (abs(grid - grid.corrupted) > 1e-6).any()


@pytest.mark.parametrize("site, axes", TL_SWEEPS)
def test_activation_patching_equals_transformerlens(site, axes, model):
    clean, corrupted = batches()
    grid = quiet(pl.activation_patching, model, clean, corrupted, site, metric, axes)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean.tokens)
        truth = getattr(theirs, f"get_act_patch_{TL_SWEEPS[site, axes]}")(model, corrupted.tokens, cache, metric)
    assert grid.shape == truth.shape
    near(grid, truth)
    near([grid.clean, grid.corrupted], [metric(logits_of(model, b.tokens)) for b in (clean, corrupted)])
    assert (abs(grid - grid.corrupted) > 1e-3).any()


@pytest.mark.parametrize("site", [site for site in PLACES if site != "resid_mid"])
def test_run_patched_into_itself_is_unchanged(site, model):
    clean, _ = batches()
    grid = quiet(pl.activation_patching, model, clean, clean, site, metric, axes=())
    assert grid.clean == grid.corrupted
    near(grid, grid.clean)


def test_whole_residual_streams_restore_the_clean_run(model):
    for site in ("resid_pre", "resid_post"):
        grid = quiet(pl.activation_patching, model, *batches(), site, metric, axes=())
        assert grid.dims == ("layer",) and abs(grid.clean - grid.corrupted) > 1e-2
        near(normalized(grid), 1)


def test_only_the_differing_token_matters_before_the_first_layer(model):
    clean, _ = batches()
    tokens = clean.tokens.clone()
    tokens[:, 1] = (tokens[:, 1] + 7) % D_VOCAB
    grid = quiet(pl.activation_patching, model, clean, pl.Batch.prompts(tokens), "resid_pre", metric)
    near(normalized(grid).sel(layer=0), [0, 1, 0, 0], atol=1e-4)


def test_patch_after_the_last_layer_changes_only_its_position(model):
    for pos in range(LENGTH):
        at_pos = lambda logits: logits[:, pos, 3].mean()  # noqa: B023, E731
        grid = quiet(pl.activation_patching, model, *batches(), "resid_post", at_pos)
        truth = np.where(np.arange(LENGTH) == pos, grid.clean, grid.corrupted)
        near(grid.sel(layer=1), truth)


def test_default_metric_is_mean_log_probability_of_clean_answers():
    task = pl.tasks.MovingWindowSum(n=3, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, n_heads=2, init_scale=10.0))
    clean, corrupted = task.sample(4, seed=0), task.sample(4, seed=1)
    grid = quiet(pl.activation_patching, model, clean, corrupted, "z")
    assert (grid.name, grid.attrs["site"], grid.dims, grid.shape) == ("answer_log_prob", "z", ("layer", "head"), (1, 2))
    for batch, value in ((clean, grid.clean), (corrupted, grid.corrupted)):
        log_p = F.log_softmax(logits_of(model, batch.inputs), -1)
        by_hand = [log_p[b, 3 + r, clean.tokens[b, 4 + r]] for b in range(4) for r in range(3)]
        near(value, sum(by_hand) / 12, atol=1e-6)
    near(grid.clean, -pl.measure(model, clean, ["answer_loss"])["answer_loss"], atol=1e-6)
    again = quiet(pl.analysis.path_patching, model, clean, corrupted, "logits")
    assert (again.clean, again.corrupted, again.name) == (grid.clean, grid.corrupted, grid.name)


def test_default_metric_weighs_prompts_of_any_answer_length_equally():
    task = pl.tasks.MovingWindowSum(n=3, k=2, p=5)
    model = pl.Transformer(pl.ModelConfig.for_task(task, d_model=16, n_heads=2, init_scale=10.0))
    whole = task.sample(2, seed=0)
    out = whole.answer_positions.clone()
    out[1, 1:] = -1
    ragged = pl.Batch(whole.tokens, out, whole.loss_mask, task)
    grid = quiet(pl.activation_patching, model, ragged, ragged, "z")
    log_p = F.log_softmax(logits_of(model, whole.inputs), -1)
    by_row = [log_p[0, 3 + r, whole.tokens[0, 4 + r]] for r in range(3)], [log_p[1, 3, whole.tokens[1, 4]]]
    near(grid.clean, sum(sum(row) / len(row) for row in by_row) / 2, atol=1e-6)


# A model whose answer is known -----------------------------------------------------------------------------------


def circuit():
    """Two layers of two heads and one position: token -> L0H0 -> L1H0 -> logits, and L0H1 -> L1H1 beside it.

    Each head reads one pair of coordinates and writes another; pairs hold (1, -1) or (-1, 1), so that norms are
    constant. The logits read what L1H0 writes; what L1H1 writes nobody reads.
    """
    sizes = dict(d_vocab=2, n_ctx=1, d_model=10, n_heads=2, d_head=2, d_mlp=1, n_layers=2)
    model = pl.Transformer(pl.ModelConfig(**sizes, attention="softmax"))
    wires = {(0, 0): (0, 1), (0, 1): (0, 2), (1, 0): (1, 3), (1, 1): (2, 4)}  # head -> pairs it reads and writes
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith(".w"):
                weight.zero_()
        model.embed.W_E[:, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        for (layer, head), (source, target) in wires.items():
            attn, rows = model.blocks[layer].attn, slice(2 * head, 2 * head + 2)
            attn.v.weight[rows, 2 * source : 2 * source + 2] = torch.eye(2)
            attn.o.weight[2 * target : 2 * target + 2, rows] = torch.eye(2)
        model.unembed.w.weight[:, 6:8] = torch.eye(2)
    return model


def test_patching_finds_a_hand_made_circuit():
    model = circuit()
    runs = [pl.Batch.prompts(torch.tensor([[token]])) for token in (0, 1)]
    right = lambda logits: (logits[:, -1, 0] - logits[:, -1, 1]).mean()  # noqa: E731
    places = normalized(quiet(pl.activation_patching, model, *runs, "z", right))
    near(places, [[1, 0], [1, 0]], atol=1e-6)
    receivers = {"logits": [[0, 0], [1, 0]]}  # by itself, L0H0 tells the logits nothing
    receivers |= {(1, "v", 0): [[1, 0], [0, 0]], (1, "v", 1): [[0, 0], [0, 0]], (1, "q", 0): [[0, 0], [0, 0]]}
    for receiver, truth in receivers.items():
        paths = quiet(pl.analysis.path_patching, model, *runs, receiver if receiver == "logits" else [receiver], right)
        near(normalized(paths), truth, atol=1e-6)


# Path patching ---------------------------------------------------------------------------------------------------

RECEIVERS = [[(1, "q", 0)], [(1, "k", 2)], [(1, "v", 1)], [(1, "q", 0), (1, "q", 2), (1, "k", 1)], "logits"]


def heads_of(model, layer, x, given=None):
    """Queries, keys, values and z of a layer from its residual stream, from the weights; `given` replaces some."""
    block = model.blocks[layer]
    attn, x = block.attn, F.layer_norm(x, x.shape[-1:], block.ln1.w, block.ln1.b, model.cfg.eps)
    parts = {}
    for part in "qkv":
        weight, bias = getattr(attn, f"W_{part.upper()}"), getattr(attn, f"b_{part.upper()}")
        parts[part] = torch.einsum("bpm,hmd->bphd", x, weight) + bias
    for part, head, value in given or []:
        parts[part][:, :, head] = value
    scores = torch.einsum("bqhd,bkhd->bhqk", parts["q"], parts["k"]) / attn.W_Q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if model.cfg.attention == "softmax":
        scores = scores.masked_fill(later, -torch.inf).softmax(-1)
    return parts | {"z": torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(later, 0), parts["v"])}


def written(model, layer, z):
    return torch.einsum("bphd,hdm->bpm", z, model.W_O[layer]) + model.b_O[layer]


def mlp_of(model, layer, x):
    block = model.blocks[layer]
    x = F.layer_norm(x, x.shape[-1:], block.ln2.w, block.ln2.b, model.cfg.eps)
    hidden = F.gelu(x @ model.W_in[layer] + model.b_in[layer], approximate="tanh")
    return hidden @ model.W_out[layer] + model.b_out[layer]


def path_by_hand(model, clean, corrupted, layer, head, receivers, through_mlps):
    """The definition in plain arithmetic on the weights of a model of two layers, without any hook."""
    runs = []
    for tokens in (clean, corrupted):
        x = model.W_E[tokens] + model.W_pos[: tokens.shape[1]]
        run = {"x": [x], "z": [], "mlp": []}
        for i in range(2):
            run["z"].append(heads_of(model, i, x)["z"])
            middle = x + written(model, i, run["z"][i])
            run["mlp"].append(mlp_of(model, i, middle))
            x = middle + run["mlp"][i]
            run["x"].append(x)
        runs.append(run)
    ours, base = runs
    z = [base["z"][0].clone(), base["z"][1].clone()]
    z[layer][:, :, head] = ours["z"][layer][:, :, head]

    def after(i, x, z, free):
        middle = x + written(model, i, z)
        return middle + (mlp_of(model, i, middle) if free else base["mlp"][i])

    arrived = after(0, base["x"][0], z[0], through_mlps)
    if receivers == "logits":
        final = after(1, arrived, z[1], through_mlps)
    else:
        sent = heads_of(model, 1, arrived)
        given = [(part, h, sent[part][:, :, h]) for _, part, h in receivers]
        final = after(1, base["x"][1], heads_of(model, 1, base["x"][1], given)["z"], True)
    normal = F.layer_norm(final, final.shape[-1:], model.ln_final.w, model.ln_final.b, model.cfg.eps)
    return normal @ model.W_U


@pytest.mark.parametrize("through_mlps", [True, False])
@pytest.mark.parametrize("receivers", RECEIVERS, ids=str)
@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_path_patching_equals_values_worked_out_from_weights(attention, receivers, through_mlps):
    model, (clean, corrupted) = make(attention), batches()
    grid = quiet(pl.analysis.path_patching, model, clean, corrupted, receivers, metric, through_mlps=through_mlps)
    for layer, head in product(range(2), range(3)):
        logits = path_by_hand(model, clean.tokens, corrupted.tokens, layer, head, receivers, through_mlps)
        near(grid.sel(layer=layer, head=head), metric(logits).detach(), atol=1e-10)
    below = grid.sel(layer=0)
    assert (abs(below - grid.corrupted) > 1e-4).all()
    assert receivers == "logits" or (grid.sel(layer=1) == grid.corrupted).all()


@pytest.mark.parametrize("through_mlps", [True, False])
def test_path_patching_equals_plain_hooks(model, through_mlps):
    clean, corrupted = batches()
    every = [f"blocks.{layer}.{name}" for layer in range(2) for name in ("attn.hook_z", "hook_mlp_out")]
    frozen_at = [name for name in every if name.endswith("z") or not through_mlps]
    ours, _ = read(model, clean.tokens, every)
    base, _ = read(model, corrupted.tokens, every)
    for receivers in ([(1, "v", 1)], [(1, "v", 0), (1, "k", 1)], "logits"):
        rotated = "rot_" if "blocks.0.attn.hook_q_normed" in model.hook_dict else ""
        sites = [] if receivers == "logits" else [(f"blocks.1.attn.hook_{rotated * (p == 'k')}{p}", h)
                                                  for _, p, h in receivers]  # fmt: skip
        grid = quiet(pl.analysis.path_patching, model, clean, corrupted, receivers, metric, through_mlps=through_mlps)
        for layer, head in product(range(2), grid["head"].values):
            name = f"blocks.{layer}.attn.hook_z"
            hooks = [setter(at, base[at]) for at in frozen_at]
            hooks.append(setter(name, ours[name], (slice(None), slice(None), head)))
            sent, logits = read(model, corrupted.tokens, {site for site, _ in sites}, hooks)
            if sites:
                hooks = [setter(site, sent[site], (slice(None), slice(None), h)) for site, h in sites]
                logits = logits_of(model, corrupted.tokens, hooks)
            near(grid.sel(layer=layer, head=head), metric(logits))
        assert (abs(grid.sel(layer=0) - grid.corrupted) > 1e-4).all()


def test_receivers_in_several_layers_are_patched_together():
    """A sender in the middle reaches the later receiver only; what the earlier one does with it is not sent on."""
    model, (clean, corrupted) = make(n_layers=3), batches()
    receivers = [(1, "v", 0), (2, "q", 1)]
    grid = quiet(pl.analysis.path_patching, model, clean, corrupted, receivers, metric)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    sites = [("blocks.1.attn.hook_v", 0), ("blocks.2.attn.hook_q", 1)]
    (ours, _), (base, _) = (read(model, batch.tokens, names) for batch in (clean, corrupted))
    for layer, head in product(range(3), range(3)):
        hooks = [setter(name, base[name]) for name in names]
        hooks.append(setter(names[layer], ours[names[layer]], (slice(None), slice(None), head)))
        sent, _ = read(model, corrupted.tokens, [site for site, _ in sites], hooks)
        hooks = [setter(site, sent[site], (slice(None), slice(None), h)) for site, h in sites]
        near(grid.sel(layer=layer, head=head), metric(logits_of(model, corrupted.tokens, hooks)), atol=1e-12)
    near(
        grid.sel(layer=1), quiet(pl.analysis.path_patching, model, clean, corrupted, receivers[1:], metric).sel(layer=1)
    )
    assert (abs(grid - grid.corrupted).max("head") > 1e-4).values.tolist() == [True, True, False]


def test_path_from_last_layer_to_logits_is_the_whole_effect(model):
    whole = quiet(pl.activation_patching, model, *batches(), "z", metric)
    paths = quiet(pl.analysis.path_patching, model, *batches(), "logits", metric)
    near(paths.sel(layer=1), whole.sel(layer=1))
    assert (abs(paths - whole).sel(layer=0) > 1e-4).any()  # which below it is not


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_only_the_receivers_input_is_changed(part, model):
    """The pattern (for v: z) of the other heads of its layer stays that of the corrupted run."""
    clean, corrupted = batches()
    site, axis = ("blocks.1.attn.hook_z", 2) if part == "v" else ("blocks.1.attn.hook_pattern", 1)
    base, _ = read(model, corrupted.tokens, [site])
    seen = []
    with model.hooks(fwd_hooks=[(site, lambda a, hook: seen.append(a.clone()))]):
        grid = quiet(pl.analysis.path_patching, model, clean, corrupted, [(1, part, 0)], metric)
    moved = (seen[-1] - base[site]).abs().transpose(0, axis).flatten(1).amax(1)
    sharing = len(moved) // quiet(pl.activation_patching, model, clean, corrupted, part, metric).sizes["head"]
    served = 1 if part == "q" else sharing
    assert grid.sizes["head"] == len(moved)
    assert (moved[:served] > 1e-4).all() and (moved[served:] < 1e-6).all()


def test_converted_model_gives_the_same_numbers():
    model, pair = make("linear"), batches()
    converted = pl.to_tl(model)
    near(*(quiet(pl.activation_patching, m, *pair, "pattern", metric, ("query", "head")) for m in (model, converted)))
    near(
        *(
            quiet(pl.analysis.path_patching, m, *pair, [(1, "k", 0)], metric, through_mlps=False)
            for m in (model, converted)
        )
    )


def test_equal_batches_have_no_path_effect(model):
    clean, _ = batches()
    for receivers in ([(1, "q", 0)], "logits"):
        near(
            quiet(pl.analysis.path_patching, model, clean, clean, receivers, metric),
            metric(logits_of(model, clean.tokens)),
        )


# What surrounds the numbers --------------------------------------------------------------------------------------


def test_patching_leaves_the_model_unchanged(model):
    tokens = prompts(0)
    before = logits_of(model, tokens)
    quiet(pl.activation_patching, model, *batches(), metric=metric)
    quiet(pl.analysis.path_patching, model, *batches(), "logits", metric)

    def tripping(logits, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] > 3:
            raise RuntimeError("boom")
        return metric(logits)

    with pytest.raises(RuntimeError, match="boom"):
        quiet(pl.activation_patching, model, *batches(), metric=tripping)
    assert not has_user_hooks(model) and torch.equal(logits_of(model, tokens), before)


def test_patching_inside_intervene_uses_the_changed_model():
    """Inside `intervene`, all runs are those of the changed model."""
    model, pair = make("linear"), batches()
    with intervene(model, pl.AblateHeads([(0, 0)], "zero")):
        grid = quiet(pl.activation_patching, model, *pair, "z", metric)
        plain = metric(logits_of(model, pair[0].tokens))
    near(grid.clean, plain)
    near(grid.sel(layer=0, head=0), grid.corrupted)


def test_grids_have_named_axes_coordinates_and_attributes():
    def logit_difference(logits):
        return float(metric(logits))

    model, pair = make(), batches()
    grid = quiet(pl.activation_patching, model, *pair, "z", logit_difference, ("pos", "head"))
    assert grid.name == "logit_difference" and grid.dims == ("layer", "pos", "head")
    assert {axis: list(grid[axis].values) for axis in grid.dims} == {"layer": [0, 1], "pos": [0, 1, 2, 3],
                                                                      "head": [0, 1, 2]}  # fmt: skip
    share = normalized(grid)
    assert (share.clean, share.corrupted, share.site) == (1, 0, "z") and share.name == "normalized logit_difference"
    near(share * (grid.clean - grid.corrupted) + grid.corrupted, grid)
    paths = quiet(pl.analysis.path_patching, model, *pair, [(1, "q", 0), (1, "v", 2)], metric, through_mlps=False)
    assert (paths.receivers, paths.through_mlps, paths.dims) == ("L1H0.q, L1H2.v", False, ("layer", "head"))


def test_progress_bar_is_shown_only_with_progress(capsys):
    quiet(pl.activation_patching, make(), *batches(), metric=metric)
    quiet(pl.analysis.path_patching, make(), *batches(), "logits", metric)
    assert capsys.readouterr() == ("", "")
    pl.activation_patching(make(), *batches(), metric=metric)
    pl.analysis.path_patching(make(), *batches(), [(1, "q", 0)], metric)
    shown = capsys.readouterr().err
    assert "patching resid_pre" in shown and "paths to L1H0.q" in shown and "8/8" in shown


WRONG = [
    (dict(site="resid_pr"), "unknown site 'resid_pr'; did you mean 'resid_pre'"),
    (dict(site="z", axes="key"), "unknown axis of z 'key'"),
    (dict(site="resid_pre", axes="head"), "unknown axis of resid_pre 'head'; known: pos"),
    (dict(site="pattern", axes="pos"), "known: head, query"),
    (dict(site="z", axes=("head", "head")), "once"),
    (dict(metric=lambda logits: logits[:, -1, 0]), r"one number, got shape \[3\]; take the mean"),
    (dict(metric=None), "no true answers to score; pass metric="),
    (dict(corrupted=pl.Batch.prompts(prompts(1, n=2))), r"got inputs of \[3, 4\] and \[2, 4\]"),
    (dict(corrupted=pl.Batch.prompts(prompts(1, length=3))), r"\[3, 4\] and \[3, 3\]"),
]


@pytest.mark.parametrize("changed, message", WRONG, ids=[message[:20] for _, message in WRONG])
def test_invalid_arguments_raise_in_one_line(changed, message):
    clean, corrupted = batches()
    arguments = dict(clean=clean, corrupted=corrupted, metric=metric, progress=False) | changed
    with pytest.raises(ValueError, match=message) as error:
        unwrap(pl.activation_patching)(make(), **arguments)  # without the runtime check of types
    assert "\n" not in str(error.value)


WRONG_RECEIVERS = [
    ([(1, "z", 0)], "unknown input of a head 'z'"),
    ([(7, "q", 0)], r"unknown hook 'blocks.7.attn.hook_q'; did you mean"),
    ([(1, "q", 5)], r"heads 0..2, got \[5\]"),
    ([(0, "k", -1)], r"heads 0..2, got \[-1\]"),  # though nobody sends to the first layer
    ((1, "q", 0), 'or "logits" alone; got 1'),
    ("logit", "got 'logit'"),
    (["logits", (1, "q", 0)], "got 'logits'"),
    ([], "at least one receiver"),
]


@pytest.mark.parametrize("receivers, message", WRONG_RECEIVERS, ids=str)
def test_unknown_receivers_raise_in_one_line(receivers, message):
    with pytest.raises(ValueError, match=message) as error:
        quiet(unwrap(pl.analysis.path_patching), make(), *batches(), receivers, metric)
    assert "\n" not in str(error.value)


def test_sites_that_cannot_be_edited_on_a_bridge_raise(model):
    if not hasattr(model, "original_model"):
        grid = quiet(pl.activation_patching, model, *batches(), "resid_mid", metric, ())
        near(normalized(grid).sel(layer=1), 1)
    else:
        with pytest.raises(ValueError, match="would not take effect on this bridge|unknown hook"):
            quiet(pl.activation_patching, model, *batches(), "resid_mid", metric)


def test_normalized_raises_if_the_metric_does_not_differ():
    clean, _ = batches()
    grid = quiet(pl.activation_patching, make(), clean, clean, metric=metric)
    with pytest.raises(ValueError, match="metric is .* on both runs"):
        normalized(grid)


# The picture -----------------------------------------------------------------------------------------------------


def heats(figure):
    return [np.array(trace.z, dtype=float) for trace in figure.data]


@pytest.mark.parametrize("site, axes", [("resid_pre", ()), ("resid_pre", "pos"), ("z", "head"), ("pattern", "query")])
def test_figure_shows_the_grid(site, axes):
    grid = quiet(pl.activation_patching, make(), *batches(), site, metric, axes)
    figure = pl.plots.patching(grid)
    assert isinstance(figure, go.Figure) and figure.to_dict()
    (z,) = heats(figure)
    assert np.array_equal(z, grid.values if grid.ndim == 2 else grid.values[None])
    titles = (figure.layout.yaxis.title.text or None, figure.layout.xaxis.title.text)
    assert titles == (("layer", grid.dims[1]) if grid.ndim == 2 else (None, "layer"))
    scale = figure.layout.coloraxis
    assert (scale.cmin + scale.cmax) / 2 == pytest.approx(grid.corrupted)
    assert scale.cmin <= grid.min() + 1e-9 and scale.cmax >= grid.max() - 1e-9
    assert figure.layout.title.text == f"metric, {site} patched" and figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_figure_of_three_axes_has_one_panel_per_head():
    grid = quiet(pl.activation_patching, make(), *batches(), "z", metric, ("head", "pos"))
    figure = pl.plots.patching(normalized(grid))
    assert [note.text for note in figure.layout.annotations] == ["head 0", "head 1", "head 2"]
    for head, z in enumerate(heats(figure)):
        assert np.array_equal(z, normalized(grid).sel(head=head).values)
    many = pl.plots.patching(quiet(pl.activation_patching, make(n_heads=6), *batches(), "z", metric, ("pos", "head")))
    assert [note.text for note in many.layout.annotations] == [f"head {i}" for i in range(6)]
    assert {trace.coloraxis for trace in [*figure.data, *many.data]} == {"coloraxis"}
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax


def test_figure_of_paths_names_the_receivers():
    figure = pl.plots.patching(quiet(pl.analysis.path_patching, make(), *batches(), [(1, "q", 0)], metric))
    assert figure.layout.title.text == "metric, paths to L1H0.q"
    assert list(figure.data[0].x) == [0, 1, 2] and list(figure.data[0].y) == [0, 1]


def test_figure_of_another_array_raises():
    grid = quiet(pl.activation_patching, make(), *batches(), metric=metric)
    with pytest.raises(ValueError, match="the attribute 'corrupted'"):
        pl.plots.patching(grid.drop_attrs())
    flat = grid.copy(data=np.full(grid.shape, grid.corrupted))
    assert pl.plots.patching(flat).layout.coloraxis.cmax == pytest.approx(grid.corrupted + 1)
