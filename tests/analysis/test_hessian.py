"""The largest Hessian eigenvalue against the whole Hessian."""

import pytest
import torch
from torch.func import functional_call

import plateaulens as pl
from plateaulens.analysis.hessian import largest_hessian_eigenvalue

TASK = pl.tasks.MovingWindowSum(n=2, k=2, p=3)


def build(seed=0, **fields):
    return pl.Transformer(pl.ModelConfig.for_task(TASK, d_model=4, d_mlp=4, init_scale=10.0, seed=seed, **fields))


def dense(model, batch):
    """Every second derivative, one by one."""
    start = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in start.values()]

    def loss(vector):
        parts = zip(start, vector.split(sizes), strict=True)
        return TASK.loss(functional_call(model, {n: v.view_as(start[n]) for n, v in parts}, batch.inputs), batch)

    return torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in start.values()]))


@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_largest_eigenvalue_of_the_full_hessian(attention, seed):
    model, batch = build(seed, attention=attention), TASK.sample(8, seed=0)
    want = torch.linalg.eigvalsh(dense(model, batch).double())[-1].item()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert largest_hessian_eigenvalue(model, batch, tolerance=1e-6) == pytest.approx(want, rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_hessian_of_a_quadratic_equals_hand_computed_value():
    """On 1.5 |W x|^2 with orthonormal x the eigenvalue is 3."""

    class Quadratic:
        def loss(self, outputs, batch):
            return 1.5 * outputs.square().sum()

    class Linear(torch.nn.Linear):
        def forward(self, tokens):
            return super().forward(torch.eye(3)[tokens])

    tokens = torch.arange(3)[:, None].expand(-1, 2)
    batch = pl.Batch(tokens, tokens, tokens > 0, Quadratic())
    assert largest_hessian_eigenvalue(Linear(3, 1, bias=False), batch) == pytest.approx(3.0)


def test_sharpness_has_a_value_for_each_checkpoint(tmp_path):
    model = build()
    eval_batch = TASK.sample(8, seed=1)
    training = pl.train(model, TASK, pl.TrainConfig(steps=4, batch_size=8))
    run = pl.record(training, tmp_path / "run", eval_batch, save_every=2, progress=False)
    curve = pl.analysis.sharpness(run, eval_batch)
    assert list(curve.index) == [0, 2, 4] and curve.sharpness.notna().all()
    assert curve.sharpness[4] == largest_hessian_eigenvalue(run.model(4), eval_batch)
    with pytest.raises(ValueError, match="not converged in 1 iterations"):
        largest_hessian_eigenvalue(model, eval_batch, iterations=1)
