"""Guards against times booked in the wrong place and state counted twice."""

import time
from types import SimpleNamespace

import pytest
import torch

from gradscale.training.timing import WARM_UP_STEPS, StepTimer, inner_optimizer, state_bytes

ARGS = SimpleNamespace(device=torch.device("cpu"))


def test_the_optimizers_share_of_the_steps():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    timer = StepTimer()
    timer.on_train_begin(ARGS, None, None, optimizer=optimizer)
    optimizer.register_step_pre_hook(lambda *_: time.sleep(0.02))  # within the timer's hooks: 20 ms of optimizer
    for step in range(WARM_UP_STEPS + 3):
        timer.on_step_begin(ARGS, None, None)
        time.sleep(0.5 if step < 1 else 0.02)  # 20 ms of everything else; the warm-up does not count
        param.grad = torch.ones(3)
        optimizer.step()
        timer.on_optimizer_step(ARGS, None, None)
        time.sleep(0.05)  # evaluation, logging, checkpoints
    timer.on_train_end(ARGS, None, None)
    assert timer.steps == 3
    assert 0.12 <= timer.step_seconds < 0.3
    assert 0.06 <= timer.optimizer_seconds < 0.15
    assert timer.optimizer_share == pytest.approx(0.5, abs=0.2)
    assert len(optimizer._optimizer_step_pre_hooks) == 2 and not optimizer._optimizer_step_post_hooks


def test_the_optimizer_below_wrappers():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    # DeepSpeed's is no torch optimizer itself.
    assert inner_optimizer(SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))) is optimizer
    assert inner_optimizer(SimpleNamespace(optimizer=None)) is None
    wrapped = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    wrapped.optimizer = optimizer
    assert inner_optimizer(wrapped) is optimizer and inner_optimizer(None) is None


def test_state_bytes_count_every_storage_once():
    param = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([param])
    assert state_bytes(optimizer) == 0
    param.grad = torch.ones(1000)
    optimizer.step()
    assert state_bytes(optimizer) == 8004  # two moments and the step
    state = optimizer.state[param]
    state["labels"] = {"nested": [torch.zeros(1000, dtype=torch.uint8), state["exp_avg"][:10]]}
    assert state_bytes(optimizer) == 9004
