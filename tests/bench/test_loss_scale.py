"""Guards against rules that are not those of torch, DeepSpeed and Megatron, and against a rule that looks too good."""

import math

import pytest

from gradscale.bench import loss_scale
from gradscale.bench.peers.scaling import SCALE_RULES, DeepSpeedRule, MegatronRule, TorchRule


def scales(rule, overflows):
    out = []
    for overflow in overflows:
        rule.update(overflow, 2.0)
        out.append(rule.scale)
    return out


def test_the_rule_of_torch_is_that_of_its_grad_scaler():
    import torch

    overflows = [False] * 7 + [True, True] + [False] * 12 + [True]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    expected = []
    for overflow in overflows:
        scaler.scale(weight.sum()).backward()
        if overflow:
            weight.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        expected.append(scaler.get_scale())
    assert scales(TorchRule(1024.0, interval=5), overflows) == expected


def test_the_rule_of_deepspeed_is_that_of_its_scaler(monkeypatch):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.fp16 import loss_scaler

    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)  # only rank 0 logs
    theirs = loss_scaler.DynamicLossScaler(1024.0, 5, 1.0, 2, False, raise_error_at_min_scale=False)
    overflows = ([False] * 7 + [True] * 3 + [False] * 13 + [True]) * 2 + [True] * 12
    expected = []
    for overflow in overflows:
        theirs.update_scale(overflow)
        expected.append(theirs.cur_scale)
    assert scales(DeepSpeedRule(1024.0, window=5), overflows) == expected


def test_megatron_waits_for_a_second_overflow_and_refills_with_growth():
    assert scales(MegatronRule(64.0, window=3), [True, True, True, False, False, False, True, True]) == [
        *(64.0, 32.0, 16.0),
        *(16.0, 16.0, 32.0),
        *(32.0, 16.0),
    ]


def test_deepspeed_says_when_it_would_end_the_run():
    rule = DeepSpeedRule(2.0, hysteresis=1)
    assert [rule.update(True, 2.0) for _ in range(3)] == [False, True, True]


def test_the_goals_are_met():
    run = loss_scale.simulate("ALSDGC robust", seed=3, steps=20_000, bad_loss=0.005)
    assert run["lost"] + run["bad"] <= 0.007
    assert -1 <= run["final_below"] <= 2
    assert run["floor_hits"] == 0
    torch_run = loss_scale.simulate("torch.amp.GradScaler", seed=3, steps=20_000, bad_loss=0.005)
    assert torch_run["final_bits"] < -50


def test_every_rule_is_in_the_table():
    text = loss_scale.text(loss_scale.measure(seeds=1, steps=300, bad_loss=0.01))
    assert all(name in text for name in SCALE_RULES)
