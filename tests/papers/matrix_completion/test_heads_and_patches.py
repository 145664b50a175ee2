"""Head atlas, head ablations, patching of -X, swapped parts and the copy check, against planted and manual results."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import plateaulens as pl
from plateaulens.analysis.checkpoint_steps import map_checkpoints
from plateaulens.models.config import bert
from plateaulens.models.parameter_groups import parameters_of
from plateaulens.papers.matrix_completion.copy_check import copy_check
from plateaulens.papers.matrix_completion.embeddings import permute_positions
from plateaulens.papers.matrix_completion.head_ablation import head_ablations
from plateaulens.papers.matrix_completion.head_atlas import head_atlas, head_groups
from plateaulens.papers.matrix_completion.negated_patching import patch_negated
from plateaulens.papers.matrix_completion.part_swapping import PAPER_PARTS, swap_parts

TASK = pl.tasks.MatrixCompletion(rows=3, cols=4, rank=1, factors="bounded", precision=0.1, limit=1.0)
BATCH = TASK.sample(40, seed=3)
SEEN = BATCH.observed
ROW, COLUMN = torch.arange(12) // 4, torch.arange(12) % 4
SAME_ROW, SAME_COLUMN, SELF = ROW[:, None] == ROW, COLUMN[:, None] == COLUMN, torch.eye(12, dtype=torch.bool)


def model_of(seed=0, std=0.3):
    """A model whose weights are large enough that all parts matter."""
    model = pl.Transformer(pl.ModelConfig.for_task(TASK, **bert(16, 2, 4), seed=seed))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * std)
    return model


def even(keys):
    """Equal attention to the given keys; to all where there are none."""
    keys = keys.float().where(keys.any(-1, keepdim=True), 1.0)
    return keys / keys.sum(-1, keepdim=True)


def losses_by_hand(model, hooks=(), batch=BATCH):
    with torch.no_grad():
        said = model.run_with_hooks(batch.inputs, fwd_hooks=list(hooks))
    error, seen = (said - batch.values) ** 2, batch.observed
    return [error.mean().item(), error[seen].mean().item(), error[~seen].mean().item()]


def three(found, **where):
    return [found[name].sel(where).item() for name in ("loss", "observed_loss", "masked_loss")]


# Heads.


def test_planted_heads_get_their_mass_and_label():
    model = model_of()
    planted = torch.stack([even(SAME_ROW & ~SELF), even(SAME_COLUMN & ~SELF), even(SELF), even(SELF | ~SELF)])
    looks = SEEN[:, None] & SAME_ROW & ~SELF, SEEN[:, None] & SAME_COLUMN & ~SELF, ~SEEN[:, None] & ~SELF
    seeking = torch.stack([*map(even, looks), even(SEEN[:, None].expand(-1, 12, -1))], 1)
    with pl.intervene(model, pl.FixAttention(planted, 0), pl.FixAttention(seeking, 1)):
        atlas = head_atlas(model, BATCH)
    labels = [["same row", "same column", "self", "none"], ["observed same row", "observed same column", "masked"]]
    assert atlas.label.values[0].tolist() == labels[0]
    assert atlas.label.values[1, :3].tolist() == labels[1]
    mass = atlas.mass.sel(layer=0)
    for head, name in enumerate(labels[0][:3]):
        assert mass.sel(head=head, category=name).item() == pytest.approx(1, abs=1e-6)
    assert mass.sel(head=0, category="same column") == 0
    # Even attention is chance; a head that looks at a row whatever is hidden there does not seek what is shown.
    np.testing.assert_allclose(atlas.ratio.sel(layer=0, head=3), 1, rtol=1e-5)
    ratio = atlas.ratio.sel(layer=0, head=0)
    assert ratio.sel(category="same row").item() == pytest.approx(ratio.sel(category="observed same row").item())
    assert atlas.mass.sel(layer=1, head=3, category="observed").item() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(atlas.pattern.sel(layer=0), planted, atol=1e-6)
    np.testing.assert_allclose(atlas.masked, (~SEEN).float().mean(0), atol=1e-6)
    groups = head_groups(atlas)
    assert groups["same row"] == [(0, 0)] and groups["masked"] == [(1, 2)] and "none" not in groups


@pytest.mark.parametrize("queries", ["masked", "observed", "all"])
def test_mass_and_chance_equal_a_count_by_hand(queries):
    model, batch = model_of(), BATCH[:5]
    atlas, pattern = head_atlas(model, batch, queries), pl.trace(model, batch).pattern()[1]
    member = {
        "same row": lambda b, q, k: q != k and q // 4 == k // 4,
        "same column": lambda b, q, k: q != k and q % 4 == k % 4,
        "self": lambda b, q, k: q == k,
        "masked": lambda b, q, k: not SEEN[b, k],
        "observed": lambda b, q, k: bool(SEEN[b, k]),
        "observed same row": lambda b, q, k: q != k and q // 4 == k // 4 and bool(SEEN[b, k]),
        "observed same column": lambda b, q, k: q != k and q % 4 == k % 4 and bool(SEEN[b, k]),
    }
    asked = [(b, q) for b in range(5) for q in range(12) if queries == "all" or SEEN[b, q] == (queries == "observed")]
    assert set(atlas.category.values) == set(member)
    for name, belongs in member.items():
        keys = [(b, q, [k for k in range(12) if belongs(b, q, k)]) for b, q in asked]
        mass = sum(pattern[b, 2, q, of].sum().item() for b, q, of in keys) / len(asked)
        chance = sum(len(of) for *_, of in keys) / 12 / len(asked)
        assert atlas.mass.sel(layer=1, head=2, category=name).item() == pytest.approx(mass, abs=1e-5)
        assert atlas.chance.sel(category=name).item() == pytest.approx(chance, abs=1e-6)


@pytest.mark.usefixtures("annotations_unchecked")
def test_structured_masks_are_reported_and_bad_batches_refused():
    model = model_of()
    rows = head_atlas(model, replace(TASK, mask="row").sample(3, seed=0))
    assert np.flatnonzero(rows.masked).tolist() == [4, 6, 7, 8, 9, 11]
    run = SimpleNamespace(steps=[0], model=lambda step: model)
    for kind in ("masked", "observed"):  # a mean over no cell would be NaN
        without = BATCH.with_observed(torch.full((1, 12), kind == "masked"))
        for question in (
            lambda b, kind=kind: head_atlas(model, b, kind),
            lambda b: head_ablations(model, b),
            lambda b: patch_negated(model, b),
            lambda b: swap_parts(model, model, b),
            lambda b: copy_check(run, b),
            lambda b: permute_positions(model, b),
        ):
            with pytest.raises(ValueError, match=f"none of these 40 matrices has {kind} cells"):
                question(without)
        assert head_ablations(model, without, metrics=["loss"]).loss.notnull().all()
    with pytest.raises(ValueError, match="did you mean 'masked'"):
        head_atlas(model, BATCH, "maskd")
    words = pl.tasks.MovingWindowSum(n=4, k=2, p=7).sample(2, seed=0)
    mixture = replace(BATCH, task=pl.tasks.MatrixMixture())  # as a run stores its evaluation batch
    for other in (words, mixture):
        for question, subject in ((head_atlas, model), (patch_negated, model), (copy_check, run)):
            with pytest.raises(ValueError, match="needs matrices with masked cells"):
                question(subject, other)


# Ablations.


def test_ablations_equal_raw_edits_of_the_pattern():
    model, group = model_of(), [(0, 1), (1, 2), (1, 3)]
    found = head_ablations(model, BATCH, {"three": group})
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    assert found.ablated.values.tolist() == ["intact", *heads, "layer 0", "layer 1", "three"]
    edits = {"mean": lambda p: p.mean(0, keepdim=True), "uniform": lambda p: 1 / 12, "zero": lambda p: 0.0}

    def hooks(chosen, mode):
        def hook_of(layer):
            def hook(pattern, hook):
                new = pattern.clone()
                for head in (h for at, h in chosen if at == layer):
                    new[:, head] = edits[mode](pattern[:, head])
                return new

            return f"blocks.{layer}.attn.hook_pattern", hook

        return [hook_of(layer) for layer in {layer for layer, _ in chosen}]

    for name, chosen in {"L1H2": [(1, 2)], "layer 0": [(0, h) for h in range(4)], "three": group}.items():
        for mode in edits:
            by_hand = losses_by_hand(model, hooks(chosen, mode))
            assert three(found, ablated=name, mode=mode) == pytest.approx(by_hand, abs=1e-5)
            assert three(found, ablated="intact", mode=mode) == pytest.approx(losses_by_hand(model), abs=1e-6)
            assert by_hand != pytest.approx(losses_by_hand(model), abs=1e-4)


def test_mean_ablation_does_not_change_a_positional_head():
    model = model_of()
    positional = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)).mul(6).softmax(-1)
    with pl.intervene(model, pl.FixAttention(positional, 0)):
        found = head_ablations(model, BATCH, metrics=["masked_loss"]).masked_loss
    intact = found.sel(ablated="intact")
    for name in ("L0H0", "L0H3", "layer 0"):
        change = (found - intact).sel(ablated=name)
        assert abs(change.sel(mode="mean")) < 1e-6 < 1e-4 < abs(change.sel(mode="uniform"))
    assert abs((found - intact).sel(ablated="layer 1", mode="mean")) > 1e-4


@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_ablations_are_refused():
    with pytest.raises(ValueError, match="heads 0..3"):
        head_ablations(model_of(), BATCH, {"far": [(0, 4)]})
    words = pl.tasks.MovingWindowSum(n=4, k=2, p=7)  # any task will do
    model = pl.Transformer(pl.ModelConfig.for_task(words, d_model=16, n_heads=1))
    assert list(head_ablations(model, words.sample(4, seed=0), metrics=["loss"]).data_vars) == ["loss"]
    with pytest.raises(ValueError, match=r"metrics of one value, each once; .* position_accuracy \[4\]"):
        head_ablations(model, words.sample(4, seed=0), metrics=["loss", "position_accuracy"])
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        head_ablations(model_of(), BATCH, modes=["unifrom"])


# Patching of X into -X.


def distances_by_hand(said):
    return [((said - x)[cells] ** 2).mean().item() for x in (BATCH.values, -BATCH.values) for cells in (~SEEN, SEEN)]


@pytest.mark.parametrize("head", [None, 2])
def test_patches_equal_raw_edits_of_z(head):
    model = model_of()
    found = patch_negated(model, BATCH, by_head=head is not None)
    _, clean = model.run_with_cache(BATCH.inputs)
    for layer in range(2):
        site = f"blocks.{layer}.attn.hook_z"
        for name, cells in {"all": SEEN | ~SEEN, "masked": ~SEEN, "observed": SEEN}.items():

            def edit(z, hook, cells=cells, value=clean[site]):
                new = z.clone()
                for example, at in cells.nonzero().tolist():
                    of = slice(None) if head is None else head
                    new[example, at, of] = value[example, at, of]
                return new

            with torch.no_grad():
                said = model.run_with_hooks(BATCH.negated().inputs, fwd_hooks=[(site, edit)])
            place = {"layer": layer, "positions": name} | ({} if head is None else {"head": head})
            assert found.distance.sel(place).values.ravel() == pytest.approx(distances_by_hand(said), abs=1e-5)
    with torch.no_grad():
        assert found.unpatched.values.ravel() == pytest.approx(
            distances_by_hand(model(BATCH.negated().inputs)), abs=1e-6
        )
        assert found.clean.values.ravel() == pytest.approx(distances_by_hand(model(BATCH.inputs)), abs=1e-6)
    assert found.attrs["four_variance"] == pytest.approx(4 * TASK.variance)


def test_last_layer_patch_changes_only_the_patched_cells():
    found = patch_negated(model_of(), BATCH)
    last = found.distance.sel(layer=1)
    for at, others in (("masked", "observed"), ("observed", "masked")):
        np.testing.assert_allclose(last.sel(positions=at, cells=at), last.sel(positions="all", cells=at), atol=1e-6)
        untouched = found.unpatched.sel(cells=others)
        np.testing.assert_allclose(last.sel(positions=at, cells=others), untouched, atol=1e-6)


def test_patch_of_dominant_attention_gives_the_run_on_x():
    model = model_of()
    with torch.no_grad():
        model.blocks[0].attn.o.weight.mul_(1e5)
    found = patch_negated(model, BATCH)
    np.testing.assert_allclose(found.distance.sel(layer=0, positions="all"), found.clean, rtol=1e-3)
    assert abs(found.clean - found.unpatched).max() > 0.1


# Swapped parts.


def test_paper_parts_omit_output_weights_and_ln1_only():
    model = model_of()
    parts = {name: set(parameters_of(model, globs)) for name, globs in PAPER_PARTS.items()}
    assert not parts["att"] & parts["mlp"]
    left = {name for name, _ in model.named_parameters()} - parts["att"] - parts["mlp"]
    assert left == {
        f"blocks.{i}.{name}" for i in range(2) for name in ("attn.o.weight", "attn.o.bias", "ln1.w", "ln1.b")
    }
    assert all(any(f"attn.{x}." in name for x in "qkv") for name in parts["att"])


def test_swapped_parts_equal_copied_weights():
    before, after = model_of(0), model_of(1)
    found = swap_parts(before, after, BATCH, PAPER_PARTS | {"all": "*"})
    intact = {"before": losses_by_hand(before), "after": losses_by_hand(after)}
    for into, other in (("before", "after"), ("after", "before")):
        assert three(found, model=into, parts="none") == pytest.approx(intact[into], abs=1e-6)
        assert three(found, model=into, parts="all") == pytest.approx(intact[other], abs=1e-6)
    mixed = model_of(0)
    taken = {n: v for n, v in after.state_dict().items() if any(f"attn.{x}." in n for x in "qkv")}
    mixed.load_state_dict(mixed.state_dict() | taken)
    assert three(found, model="before", parts="att") == pytest.approx(losses_by_hand(mixed), abs=1e-6)
    assert losses_by_hand(before) == intact["before"]


# Copying.


class Planted(HookedRootModule):
    """Says of each cell what `say` makes of the token that it is shown."""

    def __init__(self, say):
        super().__init__()
        self.say, self.hook_in, self.weight = say, HookPoint(), torch.nn.Parameter(torch.zeros(()))
        self.cfg = SimpleNamespace(n_layers=0, d_vocab=TASK.d_vocab)
        self.setup()

    def forward(self, tokens):
        return self.say(tokens)


def test_copied_loss_of_a_copier_is_0_and_of_a_constant_known():
    copier = Planted(lambda tokens: TASK.value(tokens).where(tokens > 0, 0.0))
    constant = Planted(lambda tokens: torch.full(tokens.shape, 0.7))
    run = SimpleNamespace(steps=[1, 2], model={1: copier, 2: constant}.get)
    found = copy_check(run, BATCH, [None, 0.4, -0.24])
    assert found["value"].values.tolist() == ["MASK", "0.4", "-0.2"]  # rounded to tokens of this task
    assert (found.sel(step=1).to_dataarray() == 0).all()
    assert found.copied_loss.sel(step=2).values == pytest.approx([0.49, 0.09, 0.81])
    expected = ((BATCH.values - 0.7)[SEEN] ** 2).mean().item()
    assert found.observed_loss.sel(step=2).values == pytest.approx([expected] * 3)


def test_default_values_are_the_papers_scaled_to_the_task(tmp_path):
    run = SimpleNamespace(steps=[0], model=lambda step: Planted(lambda tokens: tokens.float()))
    paper = copy_check(run, pl.tasks.MatrixCompletion().sample(4, seed=0))
    assert paper["value"].values.tolist() == ["MASK", "0.44", "-0.24"]
    assert copy_check(run, BATCH)["value"].values.tolist() == ["MASK", "0.5", "-0.3"]
    beyond = replace(TASK, rank=4, factors="signs").sample(4, seed=0)  # 0.44 becomes 1.9
    assert copy_check(run, beyond)["value"].values.tolist() == ["MASK", "1", "-1"]
    assert copy_check(run, BATCH, [None, 0.42, 0.38, -0.3])["value"].values.tolist() == ["MASK", "0.4", "-0.3"]
    with pytest.raises(ValueError, match="tokens reach from -1.0 to 1.0, got 1.2"):
        copy_check(run, BATCH, [1.2])
    with pytest.raises(ValueError, match="steps= is empty"):
        copy_check(run, BATCH, steps=[])


# A recorded run, its figures and its tables.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cfg = pl.TrainConfig(steps=4, batch_size=8, lr=1e-2)
    path, eval_batch = tmp_path_factory.mktemp("runs") / "a", TASK.sample(8, seed=1)
    return pl.record(pl.train(model_of(), TASK, cfg), path, eval_batch, save_every=2, progress=False)


def test_map_checkpoints_measures_each_chosen_step(run):
    found = map_checkpoints(run, lambda model: head_ablations(model, BATCH, modes=["zero"]), [0, 4])
    assert found.step.values.tolist() == [0, 4]
    for step in (0, 4):
        at = {"step": step, "ablated": "intact", "mode": "zero"}
        assert three(found, **at) == pytest.approx(losses_by_hand(run.model(step)), abs=1e-6)
    assert copy_check(run, BATCH).step.values.tolist() == [0, 2, 4]


def test_figures_have_the_computed_values(run):
    model, plots = run.model(4), pl.papers.matrix_completion.plots
    atlas, batch = head_atlas(model, BATCH), replace(TASK, mask="row").sample(4, seed=0)
    maps = plots.head_maps(atlas)
    assert [note.text for note in maps.layout.annotations[:2]] == [
        f"L0H{head}: {atlas.label.values[0, head]}" for head in range(2)
    ]
    np.testing.assert_allclose(maps.data[5].z, atlas.pattern[1, 1])
    assert len(maps.layout.shapes) == 8 * 2 * 2 and not maps.frames  # two lines each way part three rows
    marked = plots.head_maps(head_atlas(model, batch)).data[-1]
    assert list(marked.x) == [4, 6, 7, 8, 9, 11]
    stepped = map_checkpoints(run, lambda m: head_atlas(m, BATCH))
    assert [frame.name for frame in plots.head_maps(stepped).frames] == ["0", "2", "4"]
    with pytest.raises(ValueError, match="atlas.sel"):
        plots.head_categories(stepped)
    heat = plots.head_categories(atlas).data[0]
    np.testing.assert_allclose(heat.customdata, atlas.mass.values.reshape(8, 7))
    ablated = head_ablations(model, BATCH)
    bars = plots.head_ablations(ablated, "loss").data
    assert [bar.name for bar in bars] == ["mean", "uniform", "zero"] and bars[0].x[0] == "L0H0"
    assert list(bars[1].y) == ablated.loss.sel(mode="uniform").values[1:].tolist()
    for by_head in (False, True):
        patched = patch_negated(model, BATCH, by_head=by_head)
        first = plots.negated_patches(patched).data[1]  # to -X at masked cells
        assert first.x[1] == ("L0H0, masked" if by_head else "L0, masked")
        assert list(first.y) == patched.distance.sel(to="-X", cells="masked").values.ravel().tolist()
    swapped = swap_parts(run.model(0), model, BATCH)
    bars = plots.swapped_parts(swapped).data
    assert [bar.name for bar in bars] == ["nothing", "att", "mlp"]
    assert list(bars[1].y) == swapped.masked_loss.sel(parts="att").values.tolist()
    copied = copy_check(run, BATCH)
    lines = plots.copied_tokens(copied).data
    assert list(lines[4].y) == copied.copied_loss.isel(value=1).values.tolist() and list(lines[4].x) == [0, 2, 4]
    with pytest.raises(ValueError, match="did you mean 'masked_loss'"):
        plots.swapped_parts(swapped, "maskedloss")
