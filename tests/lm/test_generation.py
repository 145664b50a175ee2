"""`generate`: tokens and activations of a prompt are independent of the batch that it is in."""

import math

import pytest
import torch
import torch.nn.functional as F

import plateaulens as pl
from plateaulens.lm import generation as generating
from plateaulens.lm.generation import generate
from plateaulens.tracing import decoding, next_token as choosing
from plateaulens.tracing.next_token import TokenChoice

LENGTHS = [5, 11, 3, 5, 8, 1, 14]
SITES = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_q", "blocks.1.hook_resid_post", "unembed.hook_in"]


def prompts(lengths=tuple(LENGTHS), n_new=6, seed=0, **decoding):
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, 50, (n,), generator=rng).tolist() for n in lengths]
    return pl.Batch.prompts(rows, n_new, pl.lm.Decoding(**decoding))


def rows_of(batch):
    return [row[: end + 1] for row, end in zip(batch.tokens, batch.answer_positions[:, 0].tolist())]


@torch.no_grad()
def reference(hf, batch):
    """One prompt at a time, everything again for each token, no TransformerLens: tokens, final states, logits."""
    generated, states, logits = [], [], []
    for row in rows_of(batch):
        out = hf(row[None], output_hidden_states=True)
        steps = []
        for _ in range(batch.n_new):
            out = hf(row[None], output_hidden_states=True)
            steps.append((out.logits[0, -1], torch.stack([h[0, -1] for h in out.hidden_states])))
            row = torch.cat([row, out.logits[0, -1:].argmax(-1)])
        generated.append(row[-batch.n_new :])
        logits.append(torch.stack([s[0] for s in steps]))
        states.append(torch.stack([s[1] for s in steps]))
    return torch.stack(generated), torch.stack(states), torch.stack(logits)


@pytest.fixture(scope="module")
def gpt2():
    """Learned positions: what left padding would shift."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, attn_implementation="eager")
    cfg.initializer_range = 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(cfg).eval()
        torch.nn.init.normal_(hf.transformer.wpe.weight, std=1.0)
        bridge = build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config)
    return hf, bridge


@pytest.mark.parametrize("kind", ["neox", "olmo2", "gpt2"])
def test_padded_batch_gives_the_tokens_of_each_prompt_alone(kind, request):
    hf, bridge = request.getfixturevalue(kind)
    batch = prompts()
    generated, states, logits = reference(hf, batch)
    got = generate(bridge, batch, SITES, logits=True)
    assert torch.equal(got.tokens, generated) and not got.near_ties.any()
    torch.testing.assert_close(got.logits, logits, rtol=1e-5, atol=2e-5)
    for site, layer in (("blocks.0.hook_resid_pre", 0), ("unembed.hook_in", -1)):
        torch.testing.assert_close(got.rows[site], states[:, :, layer], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["neox", "gpt2"])
@pytest.mark.parametrize("decoding", [{}, dict(sample=True, seed=3), dict(sample=True, top_k=None, temperature=2.0)])
def test_prompts_are_independent_of_their_batch(kind, decoding, request):
    bridge, batch = request.getfixturevalue(kind)[1], prompts(**decoding)
    together = generate(bridge, batch, SITES, logits=True)
    order = torch.tensor([6, 2, 0, 5])
    some = generate(bridge, batch[order], SITES, logits=True)
    assert torch.equal(some.tokens, together.tokens[order])
    for name in SITES:
        torch.testing.assert_close(some.rows[name], together.rows[name][order], rtol=1e-5, atol=1e-5)
    for i in range(len(batch)):
        assert torch.equal(generate(bridge, batch[i : i + 1]).tokens[0], together.tokens[i])


def test_many_prompts_in_several_passes_keep_their_order(neox, monkeypatch):
    batch = prompts([1 + i % 7 for i in range(20)])
    whole = generate(neox[1], batch, SITES)
    monkeypatch.setattr(generating, "MAX_PROMPTS", 3)
    parts = generate(neox[1], batch, SITES)
    assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.tokens, reference(neox[0], batch)[0])
    for name in SITES:
        torch.testing.assert_close(parts.rows[name], whole.rows[name], rtol=1e-5, atol=1e-5)


def calls(monkeypatch):
    """The shape of the tokens of every decode, and whether it used a cache."""
    seen, decode = [], decoding.decode

    def spy(model, tokens, count, *, use_cache, **rest):
        seen.append((tokens.shape, use_cache))
        return decode(model, tokens, count, use_cache=use_cache, **rest)

    monkeypatch.setattr(generating, "decode", spy)
    return seen


def test_near_ties_are_rerun_alone_without_cache_and_counted(neox, monkeypatch):
    from copy import deepcopy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import GPTNeoXForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        hf, batch = GPTNeoXForCausalLM(neox[0].config).eval(), prompts()
    plain = hf(batch.tokens[1, :11][None]).logits[0, -1]
    best, other = plain.topk(2).indices.tolist()
    with torch.no_grad():  # the favourite of prompt 1 gets a twin that is as likely but for rounding
        out = hf.get_output_embeddings().weight
        out[other] = out[best] * (1 + 1e-6)
    bridge = build_bridge_from_module(deepcopy(hf), "GPTNeoXForCausalLM", hf_config=hf.config)
    seen = calls(monkeypatch)
    got = generate(bridge, batch, SITES, logits=True)
    alone = got.near_ties.any(1)
    assert alone[1] and not alone.all()
    again = [shape for shape, cached in seen if not cached]
    assert again and all(n == 1 for n, _ in again)
    assert {length for _, length in again} >= {LENGTHS[1] + int(got.near_ties[1].nonzero()[0, 0])}
    generated, states, logits = reference(hf, batch)
    assert torch.equal(got.tokens, generated)
    torch.testing.assert_close(got.rows["unembed.hook_in"], states[:, :, -1], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(got.logits, logits, rtol=1e-5, atol=2e-5)
    assert torch.equal(pl.trace(bridge, batch, ["generated"]).near_ties, got.near_ties)


def test_float64_prompts_are_independent_of_their_batch(neox):
    """Hugging Face's softmax is in float32, in which the mask of float64 is -inf: a row of padding would be NaN."""
    from copy import deepcopy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf, batch = deepcopy(neox[0]).double(), prompts()
    bridge = build_bridge_from_module(deepcopy(hf), "GPTNeoXForCausalLM", hf_config=hf.config)
    generated, states, _ = reference(hf, batch)
    for sites in (["unembed.hook_in"], SITES):  # without the bridge's hooks, and with them
        got = generate(bridge, batch, sites)
        assert torch.equal(got.tokens, generated) and not got.near_ties.any()
        torch.testing.assert_close(got.rows["unembed.hook_in"], states[:, :, -1], rtol=1e-6, atol=1e-6)


def test_nan_logits_are_near_ties():
    nothing = torch.full((2, 50), torch.nan)
    assert choosing.choose(nothing.clone(), TokenChoice())[1].all()
    for k in (None, 1, 2, 49):
        choice = TokenChoice(decoding=pl.lm.Decoding(sample=True, top_k=k), noise=torch.rand(2, 1, 50))
        assert choosing.choose(nothing.clone(), choice)[1].all()


def test_near_tie_is_a_difference_of_logits_at_any_temperature_and_rank():
    def near_ties(*scores, noise, **decoding):
        choice = TokenChoice(decoding=pl.lm.Decoding(sample=True, **decoding), noise=torch.tensor([[noise]]))
        return bool(choosing.choose(torch.tensor([scores]), choice)[1])

    none = [0.0, 0.0, 0.0]
    assert near_ties(5.0, 4.9995, 0.0, noise=none, top_k=None, temperature=0.01)
    assert not near_ties(5.0, 4.9, 0.0, noise=none, top_k=None, temperature=0.01)
    assert not near_ties(5.0, 4.9, 0.0, noise=none, top_k=None, temperature=50.0)
    assert near_ties(5.0, 4.0, 3.9995, 0.0, noise=[0.5, 0.0, 1.5002, 0.0], top_k=2)  # the third, were it the second
    assert not near_ties(5.0, 4.0, 3.9, 0.0, noise=[0.5, 0.0, 1.5997, 0.0], top_k=2)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_last_of_top_k_is_a_near_tie_only_if_replaceable(k):
    scores = torch.arange(50.0).flip(0)[None].repeat(200, 1)
    noise = -torch.empty(200, 50).exponential_(generator=torch.Generator().manual_seed(0)).log()
    # At this temperature all of the k are drawn.
    choice = TokenChoice(decoding=pl.lm.Decoding(sample=True, top_k=k, temperature=20.0), noise=noise[:, None])
    token, near_ties = choosing.choose(scores.clone(), choice)
    assert set(token.flatten().tolist()) == set(range(k)) and not near_ties.any()
    scores[:, k] = scores[:, k - 1] - choosing.NEAR_TIE_LOGITS / 2
    token, near_ties = choosing.choose(scores.clone(), choice)
    assert near_ties[token[:, 0] == k - 1].all() and (k == 1 or not near_ties.all())
    better = noise[:, k] - 1 > noise[:, :k].max(1).values  # would be drawn, were it one of them
    assert better.any() and near_ties[better].all()


def test_near_tie_that_changes_is_followed_by_new_tokens(neox):
    """The wrong twin is put in by hand: what is said again is what the prompt says alone, everything after it too."""
    bridge, batch = neox[1], prompts()
    right, wrong = (generate(bridge, batch, SITES, logits=True, entropy=True) for _ in range(2))
    wrong.tokens[1, 2:] = (wrong.tokens[1, 2:] + 1) % 50
    for tensor in (*wrong.rows.values(), wrong.logits, wrong.entropy):
        tensor[1, 2:] = 0
    wrong.near_ties[1, [2, 4]] = True
    generating._rerun_near_ties(bridge, batch[1:2], wrong, 1)
    assert torch.equal(wrong.tokens, right.tokens)
    for name in SITES:
        torch.testing.assert_close(wrong.rows[name], right.rows[name], rtol=1e-5, atol=1e-5)
    for name in ("logits", "entropy"):
        torch.testing.assert_close(getattr(wrong, name), getattr(right, name), rtol=1e-5, atol=1e-5)


def test_sampling_follows_the_softmax(neox):
    """Draws of many seeds against the probabilities, by a chi-square that fails once in ten thousand."""
    from scipy.stats import chisquare

    bridge, draws = neox[1], 3000
    prompt = prompts([6], n_new=1).tokens
    logits = neox[0](prompt).logits[0, -1].detach()
    for options in (dict(temperature=8.0, top_k=None), dict(temperature=5.0, top_k=7)):
        scores = logits / options["temperature"]
        if options["top_k"]:
            scores = scores.masked_fill(scores < scores.topk(7).values[-1], -math.inf)
        p = scores.softmax(-1)
        decodings = [pl.lm.Decoding(sample=True, seed=seed, **options) for seed in range(draws)]
        noise = [choosing.gumbel_noise(pl.Batch.prompts(prompt, 1, decoding), [6], 50) for decoding in decodings]
        choice = TokenChoice(decoding=decodings[0], noise=torch.cat(noise))
        counts = choosing.choose(logits.repeat(draws, 1), choice)[0].flatten().bincount(minlength=50).float()
        kept = p > 0
        assert counts[~kept].sum() == 0 and kept.sum() == (options["top_k"] or 50)
        assert chisquare(counts[kept].double(), p.double()[kept] / p.double().sum() * draws).pvalue > 1e-4
    assert torch.equal(generate(bridge, prompts(sample=True, top_k=1)).tokens, generate(bridge, prompts()).tokens)


@pytest.mark.parametrize("d_vocab", [1, 7, 128, 300, 512])
def test_best_two_by_blocks_equal_those_of_a_sort(d_vocab):
    """Few different scores, so that ties lie within a block and between them."""
    scores = torch.randint(0, 4, (200, d_vocab), generator=torch.Generator().manual_seed(d_vocab)).float()
    token, best, second = choosing._best_two(scores)
    assert token[:, 0].tolist() == scores.numpy().argmax(1).tolist()
    ranked = F.pad(scores, (0, 1), value=-torch.inf).sort(1, descending=True).values
    assert torch.equal(best, ranked[:, :1]) and torch.equal(second, ranked[:, 1:2])


def test_choosing_leaves_the_logits_as_they_were():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    for options in (pl.lm.Decoding(forbidden=(3, 7)), pl.lm.Decoding(forbidden=(3, 7), sample=True)):
        before = logits.clone()
        choosing.choose(logits, TokenChoice(decoding=options, noise=torch.zeros(5, 1, 50) if options.sample else None))
        assert torch.equal(logits, before)


def test_draws_depend_on_the_seed_and_not_on_the_global_generator(neox):
    state = torch.get_rng_state()
    one, same, other = (
        generate(neox[1], prompts(sample=True, seed=s, temperature=9.0, top_k=None)).tokens for s in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_a_rank_that_rounding_could_change_is_a_near_tie():
    logits = torch.tensor([[3.0, 2.0, 2.0 - 1e-5, 1.0]])
    decoding = pl.lm.Decoding(sample=True, top_k=2)
    for favourite, near in ((0, False), (1, True), (2, True), (3, False)):
        noise = torch.zeros(1, 4)
        noise[0, favourite] = 20.0
        assert bool(choosing.choose(logits, TokenChoice(decoding=decoding, noise=noise[:, None]))[1]) == near


@pytest.mark.parametrize("decoding", [{}, dict(sample=True, top_k=3)])
def test_forbidden_tokens_are_never_generated(decoding, neox):
    free = generate(neox[1], prompts(**decoding)).tokens
    never = free.unique()[:3].tolist()
    assert not torch.isin(
        generate(neox[1], prompts(forbidden=tuple(never), **decoding)).tokens, torch.tensor(never)
    ).any()


@pytest.mark.parametrize("kind", ["neox", "olmo2"])
def test_interventions_act_on_cached_decoding_as_on_full_passes(kind, request):
    hf, bridge = request.getfixturevalue(kind)
    batch = prompts([6] * 4)
    plain = generate(bridge, batch, SITES)
    uniform = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
    for change in (pl.FixAttention(uniform, layer=0), pl.AblateHeads([(1, 0)], mode="uniform")):
        with pl.intervene(bridge, change):
            cached = generate(bridge, batch, SITES, logits=True)
            full = generating._decode_batch(bridge, batch, False, generating.Reading(tuple(SITES), logits=True))
        assert torch.equal(cached.tokens, full.tokens)
        for name in SITES:
            torch.testing.assert_close(cached.rows[name], full.rows[name], rtol=1e-5, atol=2e-5)
        assert not torch.allclose(cached.rows["unembed.hook_in"], plain.rows["unembed.hook_in"], atol=1e-2)
    with pytest.raises(ValueError, match="split_by_length"), pl.intervene(bridge, pl.FixAttention(uniform, layer=0)):
        generate(bridge, prompts())


def test_unequal_prompts_are_split_by_length_under_an_intervention(neox):
    batch = prompts()
    with pl.intervene(neox[1], pl.AblateHeads([(1, 0)], mode="uniform")):
        got = pl.measure(neox[1], batch.split_by_length(), ["collapse", "repetition"], reduce=None)["collapse"]
        one = torch.cat([pl.measure(neox[1], b, ["collapse"], None)["collapse"] for b in batch.split_by_length()])
    torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-5)
    assert [len(b) for b in batch.split_by_length()] == [1, 1, 2, 1, 1, 1]
    assert [b.prompt_len for b in batch.split_by_length()] == sorted(set(LENGTHS))
    assert all(b.tokens.shape[1] == b.prompt_len for b in batch.split_by_length())


def test_trace_of_unequal_prompts_has_answer_rows_and_refuses_whole_ones(neox):
    hf, bridge = neox
    batch = prompts()
    generated, states, logits = reference(hf, batch)
    t = pl.trace(bridge, batch, ["unembed.hook_in", "answer_outputs"])
    assert torch.equal(t.generated, generated) and torch.equal(t.batch.answers, generated)
    torch.testing.assert_close(t.answer_outputs, logits, rtol=1e-5, atol=2e-5)
    got = pl.measure(bridge, batch, ["collapse", "prediction_entropy", "norm@blocks.*.hook_resid_post"], reduce=None)
    hidden = states[:, :, -1]
    pairs = [F.cosine_similarity(hidden[:, i], hidden[:, j], dim=1) for i in range(6) for j in range(i)]
    torch.testing.assert_close(got["collapse"], torch.stack(pairs).mean(0), rtol=1e-5, atol=1e-5)
    p = logits.softmax(-1)
    torch.testing.assert_close(got["prediction_entropy"], -(p * p.log()).sum(-1).mean(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        got["norm@blocks.0.hook_resid_post"], states[:, :, 1].norm(dim=-1).mean(-1), rtol=1e-5, atol=1e-5
    )
    for requires in (["outputs"], ["blocks.0.attn.hook_pattern"], None):
        with pytest.raises(ValueError, match="1 to 14 tokens.*split_by_length"):
            pl.trace(bridge, batch, requires)


def test_models_without_masks_generate_length_by_length(monkeypatch):
    model = pl.Transformer(pl.ModelConfig(d_model=16, n_heads=2, d_vocab=50, n_ctx=32, attention="softmax", seed=0))
    batch = prompts()
    seen = calls(monkeypatch)
    got = generate(model, batch, ["unembed.hook_in"])
    assert sorted(shape[1] for shape, cached in seen if cached) == sorted(set(LENGTHS))
    for i, row in enumerate(rows_of(batch)):
        for _ in range(6):
            row = torch.cat([row, model(row[None])[0, -1:].argmax(-1)])
        assert torch.equal(got.tokens[i], row[-6:])


def test_hooks_of_the_callers_see_whole_sequences(neox):
    batch, lengths = prompts([6, 6]), []
    with neox[1].hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda t, hook: lengths.append(t.shape[1]))]):
        generate(neox[1], batch)
    assert lengths == [6, 7, 8, 9, 10, 11]


def test_a_site_without_a_row_a_prompt_is_refused(neox):
    with pytest.raises(ValueError, match="read another hook"):
        generate(neox[1], prompts(), ["blocks.0.attn.hook_pattern"])
    with pytest.raises(ValueError, match="read another hook"):
        decoding._append_last_row("rotary", 7, [])(torch.zeros(1, 5, 8), None)


def test_bad_input_gives_one_line():
    with pytest.raises(ValueError, match="at least one token"):
        pl.Batch.prompts([[1], []])
    with pytest.raises(ValueError, match="no prompt"):
        pl.Batch.prompts([])
    for wrong in (dict(temperature=0.0), dict(top_k=0), dict(seed=-1)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            pl.lm.Decoding(**wrong)
