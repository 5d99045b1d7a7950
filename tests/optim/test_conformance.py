"""What users of torch.optim.Optimizer rely on, whatever the optimizer."""

import copy
import warnings

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdamW
from tests.optim.kinds import EVERY, NAMES
from tests.optim.training import batches, make_model, same_weights, train

every = pytest.mark.parametrize("name", NAMES)


@every
def test_closure_runs_once_with_gradients_enabled_and_its_loss_is_returned(name):
    param = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = EVERY[name]([param])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss > 0 and optimizer.step() is None


@every
@pytest.mark.parametrize("maximize", [False, True])
def test_goes_the_right_way(name, maximize):
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    optimizer = EVERY[name]([weight], lr=0.005, maximize=maximize)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = weight.square().mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values == sorted(values, reverse=not maximize)


@every
def test_gradients_are_never_modified(name):
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in [(4, 4), (4,), ()]]
    optimizer = EVERY[name](params, maximize=True, weight_decay=0.3)
    for _ in range(3):
        grads = [torch.randn_like(param) for param in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(params, grads, strict=True))


@pytest.mark.parametrize(
    ("name", "options"), [("SGGAdamW", {"labels": "live"}), *((name, {}) for name in NAMES)], ids=str
)
def test_layout_of_parameters_does_not_change_the_numbers(name, options):
    def run(make):
        torch.manual_seed(3)
        param = torch.nn.Parameter(make(torch.randn(6, 8)))
        optimizer = EVERY[name]([param], lr=1e-2, **options)
        for _ in range(5):
            param.grad = torch.randn(6, 8)
            optimizer.step()
        return param.detach().clone()

    plain = run(lambda tensor: tensor)
    assert torch.equal(plain, run(lambda tensor: tensor.t().contiguous().t()))
    assert torch.equal(plain, run(lambda tensor: torch.stack([tensor, tensor], dim=-1)[..., 0]))


@every
@pytest.mark.parametrize("shape", [(0,), (0, 4), (), (1,), (4,), (1, 4), (1, 1, 1, 1), (3, 1), (1, 200000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_shapes(name, shape, dtype):
    param = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = EVERY[name]([param], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            param.grad = torch.randn(shape, dtype=dtype)
            optimizer.step()
    assert param.isfinite().all() and param.shape == shape
    optimizer.load_state_dict(optimizer.state_dict())


def test_groups_keep_their_own_options():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(9, 9)) for _ in range(4)]
    optimizer = SGGAdamW(
        [
            {"params": params[0], "lr": 0.0},
            {"params": [params[1]], "n_clusters": 2, "recluster_interval": 2, "betas": [0.5, 0.9]},
            {"params": params[2], "n_clusters": 1, "weight_decay": 0.5},
        ],
        recluster_interval=3,
    )
    optimizer.add_param_group({"params": params[3], "recluster_interval": 1, "labels": "live"})
    start = params[0].detach().clone()
    seen = {}
    for step in range(1, 7):
        for param in params:
            param.grad = torch.randn(9, 9)
        optimizer.step()
        seen[step] = [layer.name for layer in optimizer.grouping_report.layers]
    assert torch.equal(params[0], start)
    names = [f"parameter {i}" for i in range(4)]
    assert seen[1] == seen[5] == [names[3]] and seen[2] == seen[4] == [names[1], names[3]]
    assert seen[3] == [names[0], names[3]] and seen[6] == [names[0], names[1], names[3]]
    assert optimizer.state[params[1]]["scales"].shape == (2,) and "scales" not in optimizer.state[params[2]]
    assert "labels" not in optimizer.state[params[3]] and optimizer.param_groups[1]["betas"] == (0.5, 0.9)


@every
def test_parameters_of_several_dtypes_in_one_group(name):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    params = [torch.nn.Parameter(torch.randn(8, 8).to(dtype)) for dtype in dtypes]
    before = [param.detach().clone() for param in params]
    optimizer = EVERY[name](params, lr=5e-2)
    for _ in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    for param, dtype, start in zip(params, dtypes, before, strict=True):
        assert param.dtype == dtype and param.isfinite().all() and not torch.equal(param, start)


@every
def test_step_hooks_run(name):
    param = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = EVERY[name]([param])
    order = []
    optimizer.register_step_pre_hook(lambda *_: order.append("pre"))
    optimizer.register_step_post_hook(lambda *_: order.append("post"))
    param.grad = torch.randn(3, 3)
    optimizer.step()
    assert order == ["pre", "post"]


@every
def test_no_gradients_is_a_no_op_and_zero_gradients_move_nothing(name):
    param = torch.nn.Parameter(torch.randn(3, 3))
    before = param.detach().clone()
    optimizer = EVERY[name]([param], weight_decay=0.0)
    optimizer.step()
    assert torch.equal(param, before) and not optimizer.state
    param.grad = torch.zeros(3, 3)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(param, before)


def test_named_parameters_and_names_from_the_model():
    model = make_model()
    for optimizer in (
        SGGAdamW(model.named_parameters(), recluster_interval=1),
        SGGAdamW(model.parameters(), recluster_interval=1, module=model),
    ):
        train(model, optimizer, batches(1))
        assert [layer.name for layer in optimizer.grouping_report.layers] == ["0.weight", "1.weight", "3.weight"]


def test_tied_parameters_are_one_layer():
    model = make_model()
    model[3].weight = model[0].weight = torch.nn.Parameter(torch.randn(40, 12))
    model[3] = torch.nn.Sequential(torch.nn.Linear(24, 12), model[3])
    optimizer = SGGAdamW(model.parameters(), recluster_interval=1, module=model)
    train(model, optimizer, batches(1))
    names = [layer.name for layer in optimizer.grouping_report.layers]
    assert names == ["0.weight", "1.weight", "3.0.weight"]


@every
def test_grad_scaler_skips_without_a_trace(name):
    model = make_model()
    optimizer = EVERY[name](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    train(model, optimizer, batches(2))
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    report = optimizer.grouping_report
    scaler.scale(model(next(batches(1))).sum()).backward()
    model[1].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {int(one["step"]) for one in optimizer.state.values()} == {2} and optimizer.grouping_report is report
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for index, one in state["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in one.items())


@every
def test_gradients_unscaled_by_a_grad_scaler_are_those_of_a_run_without(name):
    models = make_model(), make_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizers = [EVERY[name](model.parameters(), lr=1e-3) for model in models]
    for batch in batches(3):
        for model, optimizer, scale in zip(models, optimizers, (lambda loss: loss, scaler.scale), strict=True):
            optimizer.zero_grad()
            scale(model(batch).square().mean()).backward()
        optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
    assert same_weights(*models)


@every
def test_two_runs_are_the_same_bit_for_bit(name):
    models = make_model(), make_model()
    for model in models:
        train(model, EVERY[name](model.parameters(), lr=1e-2), batches(6))
    assert same_weights(*models)


def test_the_clock_counts_steps_whoever_has_gradients():
    a, b = torch.nn.Parameter(torch.randn(5, 5)), torch.nn.Parameter(torch.randn(5, 5))
    optimizer = SGGAdamW([a, b], recluster_interval=3)
    grouped = []
    for step in range(1, 13):
        a.grad = torch.randn(5, 5) if step <= 5 else None  # frozen after five steps
        b.grad = torch.randn(5, 5) if step % 2 else None
        if a.grad is None and b.grad is None:
            b.grad = torch.randn(5, 5)
        optimizer.step()
        if optimizer.grouping_report and optimizer.grouping_report.step not in grouped:
            grouped.append(optimizer.grouping_report.step)
        assert not grouped or grouped[-1] == step - step % 3
    assert grouped == [3, 6, 9, 12]
    optimizer.add_param_group({"params": torch.nn.Parameter(torch.randn(2, 2))})
    assert optimizer.param_groups[1]["steps"] == 12
    optimizer.param_groups[1]["params"][0].grad = torch.randn(2, 2)
    for _ in range(2):
        optimizer.step()
    del optimizer.param_groups[0]
    optimizer.step()
    assert optimizer.grouping_report.step == 15


def test_each_layer_is_compared_with_the_whole_model_whatever_its_interval():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(30, 30)) for _ in range(2)]
    groups = [{"params": params[:1], "recluster_interval": 2}, {"params": params[1:], "recluster_interval": 3}]
    optimizer = SGGAdamW(groups, scale_decay=0.0)
    together = SGGAdamW([torch.nn.Parameter(param.detach().clone()) for param in params], recluster_interval=2)
    for _ in range(2):
        for i, param in enumerate(params):
            param.grad = torch.randn(30, 30) * 100**i
            together.param_groups[0]["params"][i].grad = param.grad.clone()
        optimizer.step()
        together.step()
    assert optimizer.grouping_report.global_mda == together.grouping_report.global_mda
    assert [layer.name for layer in optimizer.grouping_report.layers] == ["parameter 0"]
    assert optimizer.state[params[1]]["scales"].tolist() == [1.0, 1.0, 1.0]


@every
def test_foreign_keys_in_the_state_are_left_alone(name):
    param = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = EVERY[name]([param])
    optimizer.state["note"] = 1
    param.grad = torch.randn(3, 3)
    optimizer.step()
    assert optimizer.state["note"] == 1


def test_lazy_parameters():
    module = torch.nn.LazyLinear(3)
    optimizer = SGGAdamW(module.parameters(), recluster_interval=1)
    module(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.grouping_report.layers[0].numel == 12


@every
def test_meta_parameters_step_without_groups(name):
    param = torch.nn.Parameter(torch.randn(3, 3, device="meta"))
    optimizer = EVERY[name]([param])
    for _ in range(2):
        param.grad = torch.randn(3, 3, device="meta")
        optimizer.step()
    assert optimizer.grouping_report is None


@every
def test_meta_parameters_change_nothing_for_those_beside_them(name):
    meta = torch.nn.Parameter(torch.randn(3, 3, device="meta"))
    params = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    for param, others in zip(params, ([meta], []), strict=True):
        optimizer = EVERY[name]([*others, param], lr=1e-2)
        torch.manual_seed(1)
        for _ in range(3):
            meta.grad = torch.randn(3, 3, device="meta")
            param.grad = torch.randn(3, 3)
            optimizer.step()
    assert torch.equal(*params) and not torch.equal(params[0], torch.ones(3, 3))


@every
def test_compiled_step_is_the_eager_one(name):
    models = make_model(), make_model()
    optimizers = [EVERY[name](model.parameters(), lr=1e-2) for model in models]
    step = torch.compile(optimizers[1].step, backend="eager")
    for batch in batches(3):
        train(models[0], optimizers[0], [batch])
        for param, twin in zip(models[0].parameters(), models[1].parameters(), strict=True):
            twin.grad = param.grad.clone()
        step()
    assert same_weights(*models)


@pytest.mark.parametrize(
    ("name", "option", "value"), [("SGGAdamW", "n_clusters", 4), ("DGSSGD", "gamma", 0.5), ("DGSAdam", "sigma", 0.25)]
)
def test_printing(name, option, value):
    text = repr(EVERY[name](make_model().parameters(), **{option: value}))
    assert text.startswith(f"{name} (") and f"    {option}: {value}\n" in text
