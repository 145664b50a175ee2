"""`train` is a plain torch loop, exactly; stopping, forking and resuming change no byte."""

import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import plateaulens as pl
from plateaulens._signals import defer_sigint
from plateaulens.training.optimizers import lr_factor

TASK = pl.tasks.MovingWindowSum(n=4, k=2, p=5)
SIZE = dict(steps=12, batch_size=16, lr=1e-3)
CONFIGS = {
    "adam": pl.TrainConfig(**SIZE),
    "adam with decay and betas": pl.TrainConfig(**SIZE, weight_decay=0.1, betas=(0.8, 0.95)),
    "adamw": pl.TrainConfig(**SIZE, optimizer="adamw", weight_decay=0.1, seed=3),
    "sgd": pl.TrainConfig(**SIZE, optimizer="sgd"),
    "sgd with momentum": pl.TrainConfig(**SIZE, optimizer="sgd", momentum=0.9, weight_decay=0.01),
    "clip": pl.TrainConfig(**SIZE, grad_clip=0.05),
    "muon": pl.TrainConfig(**SIZE, optimizer="muon", adam_lr=3e-3, weight_decay=0.05),
    "warm-up": pl.TrainConfig(**SIZE, warmup=5),
    "cosine": pl.TrainConfig(**SIZE, schedule="cosine", warmup=4),
    "wsd": pl.TrainConfig(**SIZE, optimizer="muon", schedule="wsd", warmup=3, decay=6),
}
COSINE, WSD = dict(schedule="cosine", warmup=4), dict(schedule="wsd", warmup=3, decay=6)
CONFIGS |= {  # with these, every optimizer has gone through every schedule
    f"{optimizer} with {schedule['schedule']}": pl.TrainConfig(**SIZE, **fields, **schedule, optimizer=optimizer)
    for optimizer, schedule, fields in (
        ("adam", WSD, {}),
        ("adamw", COSINE, dict(weight_decay=0.1)),
        ("adamw", WSD, dict(weight_decay=0.1)),
        ("sgd", COSINE, dict(momentum=0.9)),
        ("sgd", WSD, dict(momentum=0.9)),
        ("muon", COSINE, dict(adam_lr=3e-3)),
    )
}
each_config = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)


def build(seed=0, **fields):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, seed=seed, **(dict(d_model=16) | fields)))


def states_equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def finish(training):
    for _ in training:
        pass
    return training.state_dict()


def factor(cfg, done):
    """The schedules, drawn by hand: a list of the factors of all updates."""
    up = [i / cfg.warmup for i in range(cfg.warmup)]
    flat = cfg.steps - cfg.warmup
    if cfg.schedule == "cosine":
        after = [(1 + np.cos(np.pi * i / flat)) / 2 for i in range(flat)]
    else:
        after = [1.0] * (flat - cfg.decay) + [1 - i / cfg.decay for i in range(cfg.decay)]
    return (up + after)[done]


def test_schedule_of_quiet_features_equals_its_formula():
    """arXiv 2505.03997: peak (0.01 + 0.99 t/W) in warm-up, then half a cosine down to a tenth of the peak."""
    cfg = pl.TrainConfig(steps=100, warmup=10, schedule="cosine", lr_start=0.01, lr_end=0.1)
    assert [lr_factor(cfg, t) for t in (1, 6, 11)] == pytest.approx([0.01, 0.01 + 0.99 * 0.5, 1.0])
    assert lr_factor(cfg, 56) == pytest.approx(0.55) and lr_factor(cfg, 101) == pytest.approx(0.1)
    assert lr_factor(pl.TrainConfig(steps=1, schedule="cosine", lr_end=0.1), 1) == 1
    stable = pl.TrainConfig(steps=10, schedule="wsd", decay=4, lr_end=0.2)
    assert [lr_factor(stable, t) for t in range(6, 12)] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2])
    for fields in (dict(lr_end=0.1), dict(lr_start=0.1), dict(lr_end=2.0, schedule="cosine")):
        with pytest.raises(ValueError, match="lr_"):
            pl.TrainConfig(steps=10, **fields)


@pytest.mark.parametrize("steps, warmup", [(40, 4), (40, 0), (9, 0), (11, 1)])
def test_warmup_and_cosine_equal_torchs(steps, warmup):
    """The paper's code steps these two of torch's schedulers after every batch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup, eta_min=0.1)
    rates = [1.0]
    for _ in range(warmup, steps - 1):
        optimizer.step(), cosine.step()
        rates.append(optimizer.param_groups[0]["lr"])
    rising = [0.01 + 0.99 * t / warmup for t in range(warmup)]
    cfg = pl.TrainConfig(steps=steps, warmup=warmup, schedule="cosine", lr_start=0.01 if warmup else 0.0, lr_end=0.1)
    assert [lr_factor(cfg, t) for t in range(1, steps + 1)] == pytest.approx(rising + rates)


def test_schedule_with_lr_end_equals_a_plain_loop():
    cfg = pl.TrainConfig(**SIZE, schedule="cosine", warmup=4, lr_start=0.01, lr_end=0.1)
    model, plain = build(), build()
    opt = torch.optim.Adam(plain.parameters())
    rates = [0.01, 0.2575, 0.505, 0.7525, *(0.1 + 0.45 * (1 + np.cos(np.pi * i / 8)) for i in range(8))]
    for t, rate in enumerate(rates, 1):
        tokens = TASK.sample(16, seed=int(np.random.SeedSequence((0, t)).generate_state(1)[0])).tokens
        plain.zero_grad()
        F.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        opt.param_groups[0]["lr"] = 1e-3 * rate
        opt.step()
    finish(pl.train(model, TASK, cfg))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=1e-7)


def twin(cfg, model):
    """The training loop as a student would write it."""
    if cfg.optimizer == "sgd":
        momentum = cfg.momentum or 0
        opts = [torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=momentum, weight_decay=cfg.weight_decay)]
    elif cfg.optimizer == "muon":
        attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
        hidden = [layer.weight for layer in (attn.q, attn.k, attn.v, attn.o, mlp.w_in, mlp.w_out)]
        rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
        opts = [
            torch.optim.Muon(hidden, lr=cfg.lr, weight_decay=cfg.weight_decay),
            torch.optim.AdamW(rest, lr=cfg.adam_lr or 1e-4, weight_decay=cfg.weight_decay),
        ]
    else:
        kind = torch.optim.Adam if cfg.optimizer == "adam" else torch.optim.AdamW
        opts = [kind(model.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)]
    rates = [opt.param_groups[0]["lr"] for opt in opts]
    losses = []
    for t in range(1, cfg.steps + 1):
        seed = int(np.random.SeedSequence((cfg.seed, t)).generate_state(1)[0])
        tokens = TASK.sample(cfg.batch_size, seed=seed).tokens
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        if cfg.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for opt, rate in zip(opts, rates, strict=True):
            opt.param_groups[0]["lr"] = rate * factor(cfg, t - 1)
            opt.step()
        losses.append(loss.detach())
    return losses


@each_config
def test_train_equals_a_plain_loop(cfg):
    model, plain = build(), build()
    losses = [step.loss for step in pl.train(model, TASK, cfg)][1:]
    assert torch.equal(torch.stack(losses), torch.stack(twin(cfg, plain)))
    assert states_equal(model.state_dict(), plain.state_dict())


def test_steps_count_completed_updates():
    model = build()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    steps = iter(pl.train(model, TASK, CONFIGS["adam"]))
    first = next(steps)
    assert (first.t, first.loss, first.batch, first.model) == (0, None, None, model)
    assert states_equal(start, model.state_dict())
    second = next(steps)
    assert second.t == 1 and second.batch.tokens.shape == (16, 9) and not second.loss.requires_grad
    assert not states_equal(start, model.state_dict())
    fresh = build()
    torch.testing.assert_close(second.loss, TASK.loss(fresh(second.batch.inputs), second.batch).detach())
    assert [s.t for s in steps] == list(range(2, 13))
    with pytest.raises(StopIteration):
        next(steps)


def test_batches_are_a_pure_function_of_seed_and_step():
    batches = [[s.batch.tokens for s in pl.train(build(i), TASK, CONFIGS["adam"]) if s.batch] for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert len({tokens.numpy().tobytes() for tokens in batches[0]}) == 12
    other = next(s.batch for s in pl.train(build(), TASK, CONFIGS["adamw"]) if s.batch)
    assert not torch.equal(other.tokens, batches[0][0])


def test_five_repeats_on_two_threads_give_the_same_bytes():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cfg = pl.TrainConfig(steps=8, batch_size=128, lr=1e-3)
        runs = [finish(pl.train(build(d_model=64), TASK, cfg)) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert all(states_equal(runs[0], other) for other in runs[1:])


def test_training_leaves_global_random_state_unchanged():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    finish(pl.train(build(), TASK, CONFIGS["adam"]))
    assert torch.equal(before, torch.get_rng_state())


def test_until_stops_and_training_can_continue():
    training = pl.train(build(), TASK, CONFIGS["adam"])
    assert [s.t for s in training.until(4)] == [0, 1, 2, 3, 4] and training.t == 4
    assert [s.t for s in training.until(4)] == [] == [s.t for s in training.until(2)]
    assert [s.t for s in training.until(6)] == [5, 6]
    assert states_equal(finish(training), finish(pl.train(build(), TASK, CONFIGS["adam"])))
    with pytest.raises(ValueError, match="until=13"):
        training.until(13)
    assert [s.t for s in pl.train(build(), TASK, CONFIGS["adam"]).until(0)] == [0]


@each_config
@pytest.mark.parametrize("at", [0, 5])
def test_fork_and_original_give_the_same_weights(cfg, at):
    straight = finish(pl.train(build(), TASK, cfg))
    training = pl.train(build(), TASK, cfg)
    for _ in training.until(at):
        pass
    copy = training.fork()
    assert copy.model is not training.model and copy.t == at
    there = training.state_dict()
    assert states_equal(finish(copy), straight)
    assert states_equal(training.state_dict(), there)  # the original stayed where it was
    assert states_equal(finish(training), straight)


def test_a_fork_before_the_first_step_still_delivers_it():
    training = pl.train(build(), TASK, CONFIGS["adam"])
    assert next(training.fork()).t == 0 == next(training).t
    assert next(training.fork()).t == 1


def test_fork_has_no_hooks():
    training = pl.train(build(), TASK, CONFIGS["adam"])
    training.model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: pattern * 0)
    copy = training.fork()
    assert not any(point.fwd_hooks for point in copy.model.hook_dict.values())
    assert training.model.hook_dict["blocks.0.attn.hook_pattern"].fwd_hooks


def test_forking_under_an_intervention_raises():
    training = pl.train(build(), TASK, CONFIGS["adam"])
    with pl.intervene(training.model, pl.ScaleAttention(TASK, factor=2.0)):
        next(training), next(training)
        with pytest.raises(ValueError, match="cannot fork while .*ScaleAttention"):
            training.fork()
    assert training.fork().t == 1


def test_intervention_changes_the_training():
    plain = finish(pl.train(build(), TASK, CONFIGS["adam"]))
    training = pl.train(build(), TASK, CONFIGS["adam"])
    with pl.intervene(training.model, pl.ScaleAttention(TASK, factor=5.0)):
        assert not states_equal(finish(training), plain)


@each_config
def test_state_dict_round_trip_is_exact(cfg):
    training = pl.train(build(), TASK, cfg)
    for _ in training.until(5):
        pass
    state = training.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    rest = pl.train(build(seed=7), TASK, cfg)
    rest.load_state_dict(state)
    assert rest.t == 5 and states_equal(rest.state_dict(), kept)
    assert torch.equal(rest.current.loss, training.current.loss) and rest.current.batch is None
    assert [s.t for s in rest] == list(range(6, 13))
    assert states_equal(state, kept)  # copies, not views
    assert states_equal(rest.state_dict(), finish(training))


WRONG = {
    "another width": lambda: pl.train(build(d_model=32), TASK, CONFIGS["adam"]),
    "another depth": lambda: pl.train(build(n_layers=2), TASK, CONFIGS["adam"]),
    "another optimizer": lambda: pl.train(build(), TASK, CONFIGS["sgd with momentum"]),
    "an optimizer without memory": lambda: pl.train(build(), TASK, CONFIGS["sgd"]),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_state_of_another_model_raises_and_changes_nothing(wrong):
    training, other = pl.train(build(seed=5), TASK, CONFIGS["adam"]), wrong()
    for t in (training, other):
        for _ in t.until(3):
            pass
    before = training.state_dict()
    with pytest.raises(ValueError, match="state"):
        training.load_state_dict(other.state_dict())
    assert states_equal(training.state_dict(), before) and training.t == 3
    next(training)


@pytest.mark.parametrize("lost", ["t", "model/unembed.w.weight", "optimizer/unembed.w.weight/exp_avg"])
def test_incomplete_state_raises_and_changes_nothing(lost):
    training = pl.train(build(), TASK, CONFIGS["adam"])
    for _ in training.until(3):
        pass
    state = training.state_dict()
    state["model/embed.W_E"] += 1
    del state[lost]
    before = training.state_dict()
    with pytest.raises(ValueError, match="state"):
        training.load_state_dict(state)
    assert states_equal(training.state_dict(), before)


BAD = [
    (dict(steps=0), "steps"),
    (dict(batch_size=0), "batch_size"),
    (dict(lr=0.0), "lr"),
    (dict(lr=float("nan")), "lr"),
    (dict(grad_clip=-1.0), "grad_clip"),
    (dict(seed=-1), "seed"),
    (dict(optimizer="adm"), "did you mean 'adam'"),
    (dict(momentum=0.9), "momentum applies to sgd and muon"),
    (dict(optimizer="sgd", adam_lr=0.1), "adam_lr applies to muon"),
]


@pytest.mark.parametrize("values, message", BAD)
@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_train_config_raises(values, message):
    with pytest.raises(ValueError, match=message):
        pl.TrainConfig(**values)


@dataclass(frozen=True, kw_only=True)
class Impatient(pl.tasks.MovingWindowSum):
    """Someone presses Ctrl-C in the middle of an update."""

    n: int = 4
    p: int = 5

    calls = []

    def loss(self, outputs, batch):
        self.calls.append(1)
        if len(self.calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().loss(outputs, batch)


def test_interrupt_is_deferred_until_the_update_is_complete():
    Impatient.calls.clear()
    handler = signal.getsignal(signal.SIGINT)
    training = pl.train(build(), Impatient(), CONFIGS["adam"])
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for step in training:
            seen.append(step.t)
    assert seen == [0, 1, 2] and training.t == 3 and signal.getsignal(signal.SIGINT) is handler
    plain = pl.train(build(), TASK, CONFIGS["adam"])
    for _ in plain.until(3):
        pass
    assert states_equal(training.state_dict(), plain.state_dict())
    assert [s.t for s in training] == list(range(3, 13))  # the step that the interrupt kept back comes first
    assert states_equal(training.state_dict(), finish(plain))


def test_training_under_no_grad_still_updates():
    expected = finish(pl.train(build(), TASK, CONFIGS["adam"]))
    with torch.no_grad():
        assert states_equal(finish(pl.train(build(), TASK, CONFIGS["adam"])), expected)


def test_interrupted_load_state_dict_changes_all_or_nothing(monkeypatch):
    training, other = pl.train(build(), TASK, CONFIGS["adam"]), pl.train(build(seed=4), TASK, CONFIGS["adam"])
    list(other.until(3))
    load = training.model.load_state_dict

    def interrupted(weights):
        os.kill(os.getpid(), signal.SIGINT)
        return load(weights)

    monkeypatch.setattr(training.model, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.load_state_dict(other.state_dict())
    assert states_equal(training.state_dict(), other.state_dict())


def test_deferred_interrupts_nest_and_are_raised_once():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_sigint():
            with defer_sigint():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
    assert done == ["inner", "outer"]
    with defer_sigint():
        pass


def test_any_module_and_task_can_be_trained():
    class Line:
        def sample(self, n, *, seed, device="cpu"):
            x = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))
            return type("Points", (), {"inputs": x, "y": 3 * x})()

        def loss(self, outputs, batch):
            return (outputs - batch.y).square().mean()

    model = torch.nn.Linear(1, 1)
    training = pl.Training(model, Line(), pl.TrainConfig(steps=200, lr=0.05))
    next(training)
    fork = pl.Training(model, Line(), training.cfg).fork()
    assert finish(training)["model/weight"].item() == pytest.approx(3, abs=0.05)
    assert states_equal(finish(fork), training.state_dict())


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_muon_raises_without_hidden_matrices(attention):
    model = pl.to_tl(pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16, n_heads=2, attention=attention)))
    with pytest.raises(ValueError, match="muon needs"):
        pl.train(model, TASK, pl.TrainConfig(steps=2, optimizer="muon"))


def test_muon_without_momentum_forks_exactly():
    cfg = pl.TrainConfig(steps=4, batch_size=4, optimizer="muon", momentum=0.0)
    training = pl.train(pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=16)), TASK, cfg)
    list(training.until(2))
    fork = training.fork()
    list(training), list(fork)
    assert states_equal(training.state_dict(), fork.state_dict())
