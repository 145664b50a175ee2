"""The matrix-completion tasks, and a BERT model equal to Hugging Face's."""

import itertools
from dataclasses import asdict, replace

import networkx as nx
import pytest
import torch

import plateaulens as pl
from plateaulens.models.config import bert
from plateaulens.papers.matrix_completion.report import report_sections
from plateaulens.tasks import TASKS, task_from_json, task_to_json
from plateaulens.tasks.matrices.completion import disconnected_share
from plateaulens.tasks.matrices.entries import FACTORS, MASK

TINY = pl.tasks.MatrixCompletion(rows=3, cols=4, rank=1, factors="bounded", precision=0.1, limit=1.0)


def tiny_model(seed=0, **fields):
    return pl.Transformer(pl.ModelConfig.for_task(TINY, **bert(16, 2, 4) | fields, seed=seed))


# The task.


def test_vocabulary_of_the_paper():
    task = pl.tasks.MatrixCompletion()
    assert task.d_vocab == 2002 and task.n_ctx == 49
    values = torch.tensor([-10.0, 0.0, 0.44, 10.0, 11.0])
    assert task.token(values).tolist() == [1, 1001, 1045, 2001, 2001]
    assert task.value(task.token(values[:4])).tolist() == values[:4].tolist()
    assert pl.tasks.MatrixSequence().d_vocab == 2 * 200 + 1 + 2  # the paper's 405 has two unused tokens
    assert pl.tasks.MatrixSequence().n_ctx == 99


def test_tokens_and_values_round_trip():
    for task in (pl.tasks.MatrixCompletion(), TINY, pl.tasks.MatrixCompletion(precision=0.05, limit=3.0)):
        tokens = torch.arange(1, task.d_vocab)
        torch.testing.assert_close(task.token(task.value(tokens)), tokens)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("rank", [1, 2, None])
def test_entries_have_the_stated_rank_and_variance(factors, rank):
    task = pl.tasks.MatrixCompletion(rows=4, cols=5, rank=rank, factors=factors, scale=0.7, precision=0.001, limit=60.0)
    x = task.sample(20_000, seed=0).values
    assert x.mean().abs() < 0.02
    assert x.square().mean().item() == pytest.approx(task.variance, rel=0.05)
    singular = torch.linalg.svdvals(task.entries(50, torch.Generator().manual_seed(0)).double())
    assert (singular > 1e-5 * singular[:, :1]).sum(1).max() == (rank or 4)


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-24])
def test_factors_are_finite_and_signs_are_not_zero(monkeypatch, drawn):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, drawn))
    x = {name: FACTORS[name][0]((2,), torch.Generator()) for name in ("uniform", "laplace", "signs", "bounded")}
    assert all(of.isfinite().all() for of in x.values())
    assert (x["signs"].abs() == 1).all() and (x["bounded"].abs() >= 0.5).all()


def test_matrices_of_the_bundled_run_are_reproduced():
    run = pl.Run(pl.lm.bundled("matrix-4x4"))
    eval_batch, again = run.eval_batch(), run.task.sample(1024, seed=1)
    assert torch.equal(eval_batch.tokens, again.tokens) and torch.equal(
        eval_batch.answer_positions, again.answer_positions
    )


def test_exactly_the_hidden_cells_are_masked():
    batch = TINY.sample(500, seed=3)
    hidden = ~batch.observed
    assert ((batch.inputs == MASK) == hidden).all()
    assert (batch.inputs == batch.tokens)[~hidden].all()
    assert hidden.float().mean().item() == pytest.approx(TINY.p_mask, abs=0.02)
    for row, out, answers in zip(hidden, batch.answer_positions, batch.answers, strict=True):
        cells = row.nonzero()[:, 0].tolist()
        assert out.tolist() == cells + [-1] * (12 - len(cells)) and (answers[len(cells) :] == -1).all()
    for i in (0, 7):  # a part of a batch is the same matrices
        assert torch.equal(batch[i : i + 1].inputs, batch.inputs[i : i + 1])


def test_mask_and_matrix_change_independently():
    batch = TINY.sample(8, seed=0)
    torch.testing.assert_close(batch.negated().values, -batch.values)
    assert torch.equal(batch.negated().observed, batch.observed)
    assert (batch.negated().inputs == MASK).equal(batch.inputs == MASK)
    seen = torch.arange(12) % 2 == 0
    assert torch.equal(batch.with_observed(seen[None]).observed, seen.expand(8, -1))
    filled = replace(batch, filler=int(TINY.token(torch.tensor(0.4))))
    assert (TINY.value(filled.inputs)[~batch.observed] == 0.4).all()


def test_structured_masks_are_those_of_the_paper():
    def seen(mask):
        return pl.tasks.MatrixCompletion(mask=mask).sample(2, seed=0).observed[0].view(7, 7)

    rows = {(3, j) for j in range(7)} | {(6, j) for j in range(7)}
    hidden = rows - {(3, 1), (6, 5)}
    assert set(map(tuple, (~seen("row")).nonzero().tolist())) == hidden
    assert torch.equal(seen("column"), seen("row").T)
    assert set(map(tuple, (~seen("block")).nonzero().tolist())) == set(itertools.product(range(3, 7), repeat=2))
    task = pl.tasks.MatrixCompletion(mask="row")
    assert task.loss_plateau() == pytest.approx(12 / 49 * 2 / 9) and task.loss_floor() is None


def test_partial_solution_has_the_plateau_loss():
    for task in (
        TINY,
        pl.tasks.MatrixCompletion(),
        pl.tasks.MatrixCompletion(mask="block"),
        pl.tasks.MatrixMixture(orders=(3, 4)),
    ):
        batch = task.sample(40_000 if task is TINY else 5000, seed=0)
        copied = batch.values.where(batch.observed, 0.0)
        assert task.loss(copied, batch).item() == pytest.approx(task.loss_plateau(), rel=0.04)
        assert task.loss(batch.values, batch) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (2, 3), (3, 3)])
def test_disconnected_share_equals_the_enumeration_of_masks(size):
    p, share = 0.3, 0.0
    cells = list(itertools.product(range(size[0]), range(size[1])))
    for shown in itertools.product([True, False], repeat=len(cells)):
        graph = nx.Graph()
        graph.add_nodes_from([("row", i) for i in range(size[0])] + [("col", j) for j in range(size[1])])
        graph.add_edges_from((("row", i), ("col", j)) for (i, j), seen in zip(cells, shown, strict=True) if seen)
        hidden = len(cells) - sum(shown)
        probability = p**hidden * (1 - p) ** sum(shown)
        share += probability * sum(not nx.has_path(graph, ("row", i), ("col", j)) for i, j in cells) / len(cells)
    assert disconnected_share(*size, p) == pytest.approx(share, abs=1e-12)


def test_mixture_draws_every_size_and_one_per_batch():
    task = pl.tasks.MatrixMixture(orders=(2, 3, 5))
    widths = {task.sample(2, seed=seed).tokens.shape[1] for seed in range(20)}
    assert widths == {4, 9, 25} and task.n_ctx == 25


def test_decoder_sequence_holds_the_matrix_twice():
    task = pl.tasks.MatrixSequence(rows=3, cols=2)
    batch = task.sample(50, seed=0)
    first, separator, second = batch.tokens[:, :6], batch.tokens[:, 6], batch.answers
    assert (separator == task.d_vocab - 1).all() and (second > 0).all()
    assert ((first == second) | (first == MASK)).all() and (first == MASK).any()
    assert batch.loss_mask.all() and batch.loss_mask.shape == (50, 12)


@pytest.mark.parametrize("name", [n for n in TASKS if n.startswith("matrix")])
def test_json_round_trip_and_pure_sampling(name):
    task = TASKS[name]()
    assert task_from_json(task_to_json(task)) == task
    before = torch.get_rng_state()
    one, two = task.sample(3, seed=5), task.sample(3, seed=5)
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.answer_positions, two.answer_positions)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"p_mask": 1.0}, "p_mask must lie between 0 and 1"),
        ({"mask": "rows"}, "did you mean 'row'"),
        ({"factors": "normal"}, "unknown factors"),
        ({"precision": 20.0}, "precision between 0 and limit"),
        ({"limit": float("inf")}, "finite"),
        ({"limit": 1e308}, "finite"),  # limit / precision is not
        ({"scale": float("inf")}, "finite"),
        ({"rows": 0}, "needs at least 1 rows"),
        ({"rows": 2, "mask": "row"}, "needs at least 3 rows and 2 columns, got 2 x 7"),  # it hides two of them
        ({"cols": 2, "mask": "column"}, "needs at least 2 rows and 3 columns"),
        ({"rows": 4, "cols": 4, "mask": "block", "p_mask": 0.9}, "hides all of 4 x 4 cells"),
        ({"limit": 1.25, "precision": 0.1}, "limit must be a multiple of precision"),
    ],
)
def test_invalid_parameters_raise_in_one_line(wrong, says):
    with pytest.raises(ValueError, match=says):
        pl.tasks.MatrixCompletion(**wrong)


# The model.


def bert_of_hugging_face(model, head):
    """The BertModel with our weights, and its read-out."""
    from transformers import BertConfig, BertModel

    cfg = model.cfg
    theirs = BertModel(
        BertConfig(
            vocab_size=cfg.d_vocab,
            hidden_size=cfg.d_model,
            num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads,
            intermediate_size=cfg.d_mlp,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=cfg.n_ctx,
            type_vocab_size=1,
            layer_norm_eps=cfg.eps,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    ).eval()
    torch.nn.init.zeros_(theirs.embeddings.token_type_embeddings.weight)
    names = {
        "embed.W_E": "embeddings.word_embeddings.weight",
        "pos_embed.W_pos": "embeddings.position_embeddings.weight",
        "ln_embed.w": "embeddings.LayerNorm.weight",
        "ln_embed.b": "embeddings.LayerNorm.bias",
    }
    parts = {
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense",
        "mlp.w_in": "intermediate.dense",
        "mlp.w_out": "output.dense",
    }
    for layer in range(cfg.n_layers):
        for (ours, other), kind in itertools.product(parts.items(), ("weight", "bias")):
            names[f"blocks.{layer}.{ours}.{kind}"] = f"encoder.layer.{layer}.{other}.{kind}"
        for (ours, other), (w, kind) in itertools.product(
            {"ln1": "attention.output.LayerNorm", "ln2": "output.LayerNorm"}.items(), (("w", "weight"), ("b", "bias"))
        ):
            names[f"blocks.{layer}.{ours}.{w}"] = f"encoder.layer.{layer}.{other}.{kind}"
    own = dict(model.named_parameters())
    with torch.no_grad():
        for ours, other in names.items():
            theirs.get_parameter(other).copy_(own.pop(ours))
    assert set(own) == {"unembed.w.weight", "unembed.w.bias"}
    return theirs, lambda hidden: torch.nn.functional.linear(hidden, *(own[n] for n in sorted(own, reverse=True)))


def test_model_equals_hugging_face_bert_at_every_layer():
    model = tiny_model()
    with torch.no_grad():  # weights large enough that every part of the formula shows
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        theirs, head = bert_of_hugging_face(model, None)
        inputs = TINY.sample(5, seed=0).inputs
        said, cache = model.run_with_cache(inputs)
        other = theirs(inputs, output_hidden_states=True, output_attentions=True)
        expected = head(other.last_hidden_state)[..., 0]
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cache["blocks.0.hook_resid_pre"], other.hidden_states[0], atol=1e-5, rtol=0)
    for layer in range(2):
        after = cache[f"blocks.{layer}.hook_normalized_resid_post"]
        torch.testing.assert_close(after, other.hidden_states[layer + 1], atol=1e-5, rtol=0)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        torch.testing.assert_close(pattern, other.attentions[layer], atol=1e-5, rtol=0)
    assert torch.equal(cache["unembed.hook_in"], after)


def test_sizes_and_initial_weights_of_the_paper():
    cfg = pl.ModelConfig.for_task(pl.tasks.MatrixCompletion(), **bert())
    with torch.device("meta"):
        count = sum(p.numel() for p in pl.Transformer(cfg, device="meta").parameters())
    # The paper's table of 512 positions has 463 that are never used.
    assert count == 30_284_545 - (512 - 49) * 768
    model = pl.Transformer(pl.ModelConfig.for_task(TINY, **bert(64, 2, 4)))
    assert model.W_E[MASK].abs().max() == 0
    std = 0.02 * (768 / 64) ** 0.5
    for name in ("blocks.0.attn.o.weight", "blocks.1.mlp.w_out.weight", "embed.W_E"):
        weight = model.get_parameter(name)
        assert weight[1:].std().item() == pytest.approx(std, rel=0.1)
    assert model.unembed.w.weight.abs().max() <= 64**-0.5 and model.unembed.w.bias != 0


def test_embedding_of_mask_is_not_trained():
    for optimizer in ("adam", "adamw", "sgd", "muon"):
        model = tiny_model()
        cfg = pl.TrainConfig(steps=3, batch_size=4, lr=0.01, optimizer=optimizer, weight_decay=0.1)
        before = model.W_E.clone()
        for _ in pl.train(model, TINY, cfg):
            pass
        assert model.W_E[MASK].abs().max() == 0
        assert not torch.equal(model.W_E, before)


def test_edits_act_before_and_after_the_norm():
    model, batch = tiny_model(), TINY.sample(4, seed=0)
    plain = pl.trace(model, batch)
    site = "blocks.0.hook_normalized_resid_post"
    assert torch.equal(plain.cache[site], plain.cache["blocks.1.hook_resid_pre"])
    for name in (site, "blocks.0.hook_normalized_resid_mid", "blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"):
        with pl.intervene(model, pl.Ablate(name, "zero")):
            assert not torch.allclose(pl.trace(model, batch).outputs, plain.outputs)


def test_conversion_raises_for_what_transformerlens_lacks():
    with pytest.raises(ValueError, match="support norm_position='pre' only"):
        pl.to_tl(tiny_model())
    with pytest.raises(ValueError, match="no next-token loss"):
        tiny_model()(TINY.sample(2, seed=0).inputs, return_type="loss")
    with pytest.raises(ValueError, match="padding_idx must be a token"):
        pl.ModelConfig(d_vocab=4, n_ctx=4, padding_idx=4)


# Measuring and recording.


def test_losses_are_means_over_cells():
    model, batch = tiny_model(), TINY.sample(60, seed=2)
    with torch.no_grad():
        error = (model(batch.inputs) - batch.values) ** 2
    found = pl.measure(model, batch, ["loss", "observed_loss", "masked_loss", "masked_size"])
    seen = batch.observed
    expected = {"loss": error.mean(), "observed_loss": error[seen].mean(), "masked_loss": error[~seen].mean()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    with torch.no_grad():
        torch.testing.assert_close(found["masked_size"], model(batch.inputs)[~seen].abs().mean())
    share = seen.float().mean()
    torch.testing.assert_close(found["loss"], share * found["observed_loss"] + (1 - share) * found["masked_loss"])
    with pytest.raises(ValueError, match="generates nothing"):
        pl.measure(model, batch, ["accuracy"])
    copying = pl.tasks.Copy(n=3, max_value=4)
    decoder = pl.Transformer(pl.ModelConfig.for_task(copying, d_model=8))
    with pytest.raises(ValueError, match="unknown metric 'masked_loss'"):
        pl.measure(decoder, copying.sample(2, seed=0), ["masked_loss"])


def test_matrix_run_is_recorded_resumed_and_opened(tmp_path, monkeypatch):
    eval_batch, cfg = TINY.sample(16, seed=1), pl.TrainConfig(steps=6, batch_size=8, lr=1e-3)
    options = {"eval_batch": eval_batch, "every": 1, "save_every": 3, "progress": False}
    whole = pl.record(pl.train(tiny_model(), TINY, cfg), tmp_path / "a", **options)
    log = pl.Run.log

    def full_disk(run, step, values):
        if step == 5:
            raise OSError("the disk is full")
        log(run, step, values)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(pl.Run, "log", full_disk)
        pl.record(pl.train(tiny_model(), TINY, cfg), tmp_path / "b", **options)
    cut = pl.Run(tmp_path / "b")
    assert cut.metrics.index[-1] == 4 and cut.steps[-1] == 3
    resumed = pl.resume(cut.path, progress=False)
    assert list(resumed.metrics.index) == [0, 1, 2, 3, 4, 5, 6]
    for name in ("metrics.jsonl", "checkpoints/000006.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert list(whole.metrics.columns) == ["loss", "observed_loss", "masked_loss", "masked_size", "train_loss"]
    back = pl.Run(tmp_path / "a").eval_batch()
    assert torch.equal(back.inputs, eval_batch.inputs) and torch.equal(back.values, eval_batch.values)
    assert asdict(whole.model_config) == asdict(tiny_model().cfg)
    assert pl.write_report(whole).exists()


def test_report_without_hidden_cells_has_no_heads(tmp_path):
    task = replace(TINY, p_mask=0.001)
    eval_batch, cfg = task.sample(4, seed=1), pl.TrainConfig(steps=2, batch_size=8)
    assert eval_batch.observed.all()
    run = pl.record(pl.train(tiny_model(), task, cfg), tmp_path / "a", eval_batch, progress=False)
    page = pl.write_report(run, sections=report_sections(run)).read_text()
    assert "mean attention" not in page and "a matrix, masked cells framed" in page
    with_hidden = pl.record(pl.train(tiny_model(), TINY, cfg), tmp_path / "b", TINY.sample(4, seed=1), progress=False)
    assert "mean attention" in pl.write_report(with_hidden, sections=report_sections(with_hidden)).read_text()


@pytest.mark.slow
def test_mixture_and_decoder_train():
    mixture = pl.tasks.MatrixMixture(orders=(2, 3), precision=0.1, limit=1.0)
    model = pl.Transformer(pl.ModelConfig.for_task(mixture, **bert(16, 1, 2)))
    cfg = pl.TrainConfig(steps=300, batch_size=64, lr=3e-3)
    steps = [step.loss for step in pl.train(model, mixture, cfg)]
    assert torch.stack(steps[-50:]).mean() < 0.7 * torch.stack(steps[1:20]).mean()
    sequence = pl.tasks.MatrixSequence(rows=2, cols=2, rank=1, precision=0.5, limit=1.0)
    decoder = pl.Transformer(pl.ModelConfig.for_task(sequence, d_model=32, n_layers=2, n_heads=2, attention="softmax"))
    losses = [step.loss for step in pl.train(decoder, sequence, pl.TrainConfig(steps=300, batch_size=64, lr=3e-3))]
    assert losses[-1] < 0.8 * losses[1]
    assert 0 <= pl.measure(decoder, sequence.sample(32, seed=0), ["accuracy"])["accuracy"] <= 1
