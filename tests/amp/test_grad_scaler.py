"""`GradScaler` in plain loops: the four calls with every optimizer, skipped steps, bad data, state, torch's own states.

Guards against a scale that bad data ruins, an optimizer that a skipped step changes (a counter, a moment, a grouping),
and a state that torch's own scaler, or `weights_only`, cannot read.
"""

import copy
import io
import math

import pytest
import torch

import gradscale
from gradscale import ALSDGC, GradScaler

OPTIMIZERS = {
    "SGGAdamW": lambda params: gradscale.SGGAdamW(params, lr=1e-2, recluster_interval=2),
    "SGGAdam": lambda params: gradscale.SGGAdam(params, lr=1e-2, recluster_interval=2),
    "DGSSGD": lambda params: gradscale.DGSSGD(params, lr=1e-2, momentum=0.9, importance_decay=0.5),
    "DGSLARS": lambda params: gradscale.DGSLARS(params, lr=1e-2, importance_decay=0.5),
    "DGSAdam": lambda params: gradscale.DGSAdam(params, lr=1e-2, importance_decay=0.5),
    "DGSAdamW": lambda params: gradscale.DGSAdamW(params, lr=1e-2, importance_decay=0.5),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=False, fused=False),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def loss_of(net, seed, factor=1.0):
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    return net(inputs).square().mean() * factor


def step(net, optimizer, scaler, seed, factor=1.0, poison=False):
    optimizer.zero_grad()
    scaler.scale(loss_of(net, seed, factor)).backward()
    if poison:
        net[0].weight.grad[1, 1] = math.inf
    scaler.step(optimizer)
    scaler.update()


def everything(net, optimizer):
    return copy.deepcopy((net.state_dict(), optimizer.state_dict()))


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def test_four_calls_train_as_without_a_scaler(make):
    nets = [model(), model()]
    plain, scaled = (make(net.parameters()) for net in nets)
    scaler = GradScaler("cpu", init_scale=2.0**12)  # a power of two: nothing is rounded
    for seed in range(5):
        plain.zero_grad()
        loss_of(nets[0], seed).backward()
        plain.step()
        step(nets[1], scaled, scaler, seed)
    assert equal(*(everything(net, optimizer) for net, optimizer in zip(nets, (plain, scaled), strict=True)))
    assert scaler.controller.steps == 5 and scaler.controller.skipped == 0


@pytest.mark.parametrize("bad", ["overflow", "nan loss", "nan loss alone", "outlier"])
def test_a_skipped_step_changes_nothing_in_the_optimizer(make, bad):
    net = model()
    optimizer = make(net.parameters())
    scaler = GradScaler("cpu", controller=ALSDGC(loss_scale=2.0**10, warmup_steps=8, window=16, reseed_span=16))
    for seed in range(12 if bad == "outlier" else 3):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, seed)).backward()
        if bad == "outlier":
            scaler.clip_grad_norm_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    before, skipped = everything(net, optimizer), scaler.controller.skipped
    optimizer.zero_grad()
    if bad == "nan loss":
        scaler.scale(loss_of(net, 3, math.nan)).backward()
    elif bad == "nan loss alone":
        scaler.scale(loss_of(net, 3) + math.nan).backward()  # the gradients are finite
    else:
        scaler.scale(loss_of(net, 3, 1e4 if bad == "outlier" else 1.0)).backward()
    if bad == "overflow":
        net[0].weight.grad[1, 1] = math.inf
    if bad == "outlier":
        assert scaler.clip_grad_norm_(optimizer).reason == "outlier"
    scaler.step(optimizer)
    scaler.update()
    assert equal(everything(net, optimizer), before)
    assert scaler.controller.skipped == skipped + 1 and scaler.decision.skip
    step(net, optimizer, scaler, 4)
    assert not equal(everything(net, optimizer), before)


def test_bad_losses_leave_the_scale_alone_and_overflows_lower_it():
    net = model()
    optimizer = OPTIMIZERS["SGGAdamW"](net.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**14)
    for seed in range(30):
        step(net, optimizer, scaler, seed, factor=math.nan if seed % 2 else 1.0)
    assert scaler.get_scale() == 2.0**14 and scaler.controller.summary()["skipped"] == {"non-finite loss": 15}
    for seed in range(4):
        step(net, optimizer, scaler, seed, poison=True)
    assert scaler.get_scale() < 2.0**14 and scaler.get_scale() == scaler.controller.loss_scale
    assert all(param.isfinite().all() for param in net.parameters())


def test_unscaling_twice_is_an_error_as_in_torch():
    net = model()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    scaler = GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already"):
        scaler.step(optimizer)
    scaler.update()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()


@pytest.mark.parametrize("unscaled_before", [False, True])
def test_clipping_is_at_the_controllers_threshold_of_unscaled_gradients(unscaled_before):
    net, plain = model(), model()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    scaler = GradScaler("cpu", controller=ALSDGC(loss_scale=2.0**10, warmup_threshold=0.01))
    scaler.scale(loss_of(net, 0)).backward()
    if unscaled_before:
        scaler.unscale_(optimizer)
    decision = scaler.clip_grad_norm_(optimizer)
    loss_of(plain, 0).backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    assert decision.threshold == 0.01 and scaler.norm == pytest.approx(norm.item(), rel=1e-6)
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-9)
    with pytest.raises(RuntimeError, match="all optimizers at once"):
        scaler.clip_grad_norm_(optimizer)


def test_each_param_group_is_clipped_at_a_threshold_of_its_own():
    net = model()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    scaler = GradScaler(
        "cpu", controller=ALSDGC(loss_scale=1.0, warmup_steps=4, window=8, reseed_span=8, reseed_after=8)
    )
    for factor in [1.0] * 6 + [100.0]:
        optimizer.zero_grad()
        scaler.scale(loss_of(net, 0)).backward()
        for param in net[2].parameters():
            param.grad.mul_(factor)
        before = [param.grad.clone() for param in net.parameters()]
        decision = scaler.clip_grad_norm_(optimizer, per_group=True)
        after = [param.grad for param in net.parameters()]
        scaler.step(optimizer)
        scaler.update()
    assert len(decision.group_thresholds) == 2
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    norm = torch.nn.utils.get_total_norm(after[2:]).item()
    assert norm == pytest.approx(decision.group_thresholds[1], rel=1e-4) and norm < 2


def test_of_several_optimizers_only_the_one_with_an_overflow_is_skipped():
    nets = [model(), model()]
    optimizers = [OPTIMIZERS["SGGAdamW"](net.parameters()) for net in nets]
    scaler = GradScaler("cpu", init_scale=1024.0)
    before = [everything(*pair) for pair in zip(nets, optimizers, strict=True)]
    for net in nets:
        scaler.scale(loss_of(net, 0)).backward()
    nets[1][0].weight.grad[0, 0] = math.nan
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    same = [equal(everything(*pair), one) for pair, one in zip(zip(nets, optimizers, strict=True), before, strict=True)]
    assert same == [False, True]
    assert scaler.controller.steps == 1 and scaler.controller.skipped == 1


def test_state_round_trips_under_weights_only_and_continues_bit_for_bit():
    def run(steps, state=None, start=0):
        net = model()
        optimizer = OPTIMIZERS["SGGAdamW"](net.parameters())
        scaler = GradScaler("cpu", init_scale=256.0, growth_interval=3)
        if state is not None:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
        scales = []
        for seed in range(start, steps):
            step(net, optimizer, scaler, seed, poison=seed in (4, 7))
            scales.append(scaler.get_scale())
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, file)
        file.seek(0)
        return scales, torch.load(file, weights_only=True)

    scales, state = run(12)
    first, middle = run(6)
    rest, end = run(12, middle, 6)
    assert first + rest == scales and len(set(scales)) > 2
    assert equal(end, state)


def test_states_of_torchs_scaler_and_of_this_one_are_exchanged():
    theirs = torch.amp.GradScaler("cpu", init_scale=512.0)
    ours = GradScaler("cpu")
    ours.load_state_dict(theirs.state_dict())
    assert ours.get_scale() == ours.controller.loss_scale == 512.0
    net = model()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    step(net, optimizer, ours, 0)
    ours.load_state_dict({**theirs.state_dict(), "scale": 64.0})
    assert ours.get_scale() == 64.0
    theirs.load_state_dict(ours.state_dict())
    assert theirs.get_scale() == 64.0
    with pytest.raises(RuntimeError, match="empty"):
        ours.load_state_dict({})


def test_a_scale_set_by_hand_is_the_controllers_too():
    net = model()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    scaler = GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    scaler.step(optimizer)
    scaler.update(128.0)
    step(net, optimizer, scaler, 1)
    assert scaler.get_scale() == scaler.controller.loss_scale == 128.0


def test_losses_in_lists_are_scaled_and_seen():
    scaler = GradScaler("cpu", init_scale=8.0)
    losses = [torch.tensor(1.0), (torch.tensor(2.0), torch.tensor(3.0))]
    assert scaler.scale(losses) == [torch.tensor(8.0), (torch.tensor(16.0), torch.tensor(24.0))]
    assert [value.item() for value in scaler.scale(iter([torch.tensor(4.0)]))] == [32.0]
    assert scaler._loss.item() == 10.0


def test_disabled_it_does_not_scale_but_still_clips_and_skips():
    net = model()
    optimizer = OPTIMIZERS["SGGAdamW"](net.parameters())
    scaler = GradScaler("cpu", enabled=False)
    step(net, optimizer, scaler, 0)
    before = everything(net, optimizer)
    loss = scaler.scale(loss_of(net, 1, math.nan))
    loss.backward()
    assert scaler.clip_grad_norm_(optimizer).skip
    scaler.step(optimizer)
    scaler.update()
    assert equal(everything(net, optimizer), before) and scaler.state_dict() == {}
    step(net, optimizer, scaler, 2, factor=1.0)


def test_fp16_autocast_on_cpu_learns_and_survives_a_scale_that_is_too_high():
    net = model()
    optimizer = OPTIMIZERS["SGGAdamW"](net.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**24)  # gradients in float16 overflow at first
    losses = []
    for seed in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(net, seed % 4)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert 0 < scaler.controller.skipped < 20 and losses[-1] < 0.5 * losses[0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="manages no loss scale"):
        GradScaler("cpu", controller=ALSDGC())
    with pytest.raises(ValueError, match="give growth_factor to the controller"):
        GradScaler("cpu", growth_factor=4.0, controller=ALSDGC(loss_scale=1.0))
    with pytest.raises(ValueError, match="growth_interval=7"):
        GradScaler("cpu").set_growth_interval(7)
    with pytest.raises(ValueError, match="needs an optimizer"):
        GradScaler("cpu").clip_grad_norm_()
    scaler = GradScaler("cpu")
    state = scaler.state_dict()
    state["controller"]["mode"] = "faithful"
    with pytest.raises(ValueError, match="mode"):
        scaler.load_state_dict(state)
