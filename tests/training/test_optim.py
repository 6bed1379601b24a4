import math

import pytest
import torch

from muxfer.config.task import Training
from muxfer.training.optim import AveragedWeights, Clip, build_adamw, rate_multiplier, set_rates


def params_with_grads(scale: float = 1.0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (4,), (), (2, 2, 2))]
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator)
    return params


def group(params, **numbers):
    return {"params": params, "lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8, "betas": (0.9, 0.999)} | numbers


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_with_folds_of_one_equals_torchs(scale):
    ours, theirs = params_with_grads(scale), params_with_grads(scale)
    norm = Clip(ours, [1.0] * len(ours), 1.0)()
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert torch.equal(norm, expected)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_folds_enter_the_norm_and_one_coefficient_scales_all_gradients():
    params, folds = params_with_grads(10.0), [0.25, 1.0, 16.0, 1.0]
    before = [param.grad.clone() for param in params]
    expected = math.sqrt(sum(float((fold * grad).square().sum()) for fold, grad in zip(folds, before, strict=True)))
    norm = Clip(params, folds, 0.5)()
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    for param, grad in zip(params, before, strict=True):
        torch.testing.assert_close(param.grad, grad * (0.5 / (norm + 1e-6)))


def test_without_a_limit_the_norm_is_only_measured():
    params = params_with_grads(100.0)
    before = [param.grad.clone() for param in params]
    assert float(Clip(params, [1.0] * 4, None)()) > 100
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


def test_a_parameter_without_gradient_is_ignored_with_its_fold():
    params, folds = params_with_grads(), [5.0, 1.0, 2.0, 3.0]
    params[0].grad = None
    expected = Clip(params[1:], folds[1:], None)()
    assert torch.equal(Clip(params, folds, None)(), expected)


def test_the_schedule_keeps_every_groups_own_rate():
    first, second, third = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    rates = (1e-2, 2.5e-3, 4e-4)
    optimizer = build_adamw(group([param], lr=rate) for param, rate in zip((first, second, third), rates, strict=True))
    training = Training(steps=40, batch_size=1, warmup_steps=8, schedule="cosine")
    for step in range(40):
        multiplier = rate_multiplier(training, step)
        set_rates(optimizer, multiplier)
        assert [entry["lr"] for entry in optimizer.param_groups] == [rate * multiplier for rate in rates]


def test_merged_groups_give_the_same_update():
    def train(merge: bool):
        params = params_with_grads()
        entries = [group([param], lr=1e-2 if i % 2 else 1e-3) for i, param in enumerate(params)]
        optimizer = build_adamw(entries) if merge else torch.optim.AdamW(entries, fused=True)
        optimizer.step()
        return optimizer, params

    (merged, ours), (_, theirs) = train(True), train(False)
    assert len(merged.param_groups) == 2
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1]),
        ("cosine", 0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("cosine", 2, [0.5, 1, 1, 0.5]),
    ],
)
def test_rates_warm_up_then_follow_the_schedule(schedule, warmup, expected):
    training = Training(steps=4, batch_size=1, warmup_steps=warmup, schedule=schedule)
    assert [rate_multiplier(training, step) for step in range(4)] == pytest.approx(expected)


def test_the_average_is_the_weighted_mean_of_all_weights():
    param = torch.nn.Parameter(torch.full((2,), 100.0))
    average = AveragedWeights([param], fraction=0.1, steps=50)
    assert average.decay == pytest.approx(0.8)
    visited = [3.0, -1.0, 4.0, 1.0, -5.0]
    for count, value in enumerate(visited, start=1):
        param.data.fill_(value)
        average.update(count)
        shares = [0.8 ** (count - i) for i in range(1, count + 1)]
        mean = sum(share * seen for share, seen in zip(shares, visited, strict=False)) / sum(shares)
        torch.testing.assert_close(average.weights[0], torch.full((2,), mean))


def test_an_average_over_less_than_a_step_is_the_current_weights():
    param = torch.nn.Parameter(torch.zeros(1))
    average = AveragedWeights([param], fraction=0.05, steps=10)
    for count in (1, 2, 3):
        param.data.fill_(count)
        average.update(count)
        assert average.weights[0].item() == count
