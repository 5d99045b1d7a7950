"""Without groups, and with a factor of 1, against torch's own SGD, Adam and AdamW, option by option."""

from functools import partial

import pytest
import torch

from gradscale.optim.dgs import DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from tests.optim.training import batches, make_model, train

NEUTRAL = {"form": "equation", "beta": 1.0, "sigma": 1.0, "gamma": 0.0}
PAIRS = [
    pytest.param(ours, theirs, id=name)
    for name, ours, theirs in [
        ("SGGAdamW", partial(SGGAdamW, nesterov=False), torch.optim.AdamW),
        ("SGGAdam", partial(SGGAdam, nesterov=False), torch.optim.Adam),
        ("DGSAdamW", partial(DGSAdamW, **NEUTRAL), torch.optim.AdamW),
        ("DGSAdam", partial(DGSAdam, **NEUTRAL), torch.optim.Adam),
    ]
]
OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.1},
    {"lr": torch.tensor(1e-2, dtype=torch.float64)},
    {"lr": 0.0},
]
OPTIONS_OF_SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"maximize": True, "weight_decay": 0.1},
    {"lr": torch.tensor(1e-2, dtype=torch.float64)},
    {"lr": 0.0},
]
TOLERANCE = {torch.float64: (1e-15, 1e-12), torch.float32: (2e-7, 1e-5), torch.bfloat16: (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_matches_torch(ours, theirs, options, dtype):
    compare(ours, theirs, options, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS_OF_SGD, ids=str)
def test_matches_torchs_sgd(options, dtype):
    compare(partial(DGSSGD, **NEUTRAL), torch.optim.SGD, options, dtype)


def compare(ours, theirs, options, dtype):
    """Every step starts from torch's numbers, so that rounding does not feed on itself through the model."""
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 9), (9,), (), (3, 4, 5)]]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    options = {"lr": 1e-2, **options}
    optimizer, reference = ours(params, **options), theirs(twins, foreach=False, **options)
    atol, rtol = TOLERANCE[dtype]
    for _ in range(12):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        optimizer.step()
        reference.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, atol=atol, rtol=rtol)
            with torch.no_grad():
                param.copy_(twin)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_same_defaults_and_training_curve(ours, theirs):
    models = make_model(), make_model()
    optimizer, reference = ours(models[0].parameters()), theirs(models[1].parameters(), foreach=False)
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert optimizer.defaults[name] == reference.defaults[name]
    assert train(models[0], optimizer, batches(30)) == pytest.approx(train(models[1], reference, batches(30)), rel=1e-5)


def test_same_defaults_as_torchs_sgd():
    optimizer, reference = (cls(make_model().parameters()) for cls in (DGSSGD, torch.optim.SGD))
    for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"):
        assert optimizer.defaults[name] == reference.defaults[name]


def test_arguments_without_a_name_stand_where_torchs_do():
    param = torch.nn.Parameter(torch.randn(3, 3))
    for cls, theirs, arguments in [
        (SGGAdamW, torch.optim.AdamW, (1e-2, (0.5, 0.9), 1e-3, 0.1, True)),
        (DGSAdamW, torch.optim.AdamW, (1e-2, (0.5, 0.9), 1e-3, 0.1, True)),
        (DGSAdam, torch.optim.Adam, (1e-2, (0.5, 0.9), 1e-3, 0.1, True)),
        (DGSSGD, torch.optim.SGD, (1e-2, 0.5, 0.0, 0.1, True)),
    ]:
        group, reference = cls([param], *arguments).param_groups[0], theirs([param], *arguments).param_groups[0]
        same = set(group) & set(reference) - {"params"}
        assert len(same) >= 6 and all(group[name] == reference[name] for name in same)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    ],
)
@pytest.mark.parametrize(
    ("ours", "theirs", "cycled"),
    [
        (SGGAdamW, torch.optim.AdamW, "betas"),
        (DGSAdamW, torch.optim.AdamW, "betas"),
        (DGSSGD, torch.optim.SGD, "momentum"),
    ],
)
def test_schedulers_drive_it(ours, theirs, cycled, scheduler):
    rates = []
    for cls in (ours, theirs):
        param = torch.nn.Parameter(torch.randn(3, 3))
        optimizer = cls([param], lr=1e-2)
        schedule = scheduler(optimizer)
        rates.append([])
        for _ in range(8):
            param.grad = torch.randn(3, 3)
            optimizer.step()
            schedule.step()
            rates[-1].append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0][cycled]))
    assert rates[0] == rates[1] and len(set(rates[0])) > 1


def test_overridden_members_have_torchs_names_and_kinds():
    import inspect

    for name, member in vars(torch.optim.Optimizer).items():
        if name.startswith("_") or name == "OptimizerPreHook":
            continue
        ours = inspect.getattr_static(SGGAdamW, name)
        assert type(ours) is type(member) or callable(ours), name
    for name in ("step", "load_state_dict", "add_param_group"):
        theirs = inspect.signature(inspect.unwrap(getattr(torch.optim.AdamW, name))).parameters
        assert list(inspect.signature(inspect.unwrap(getattr(SGGAdamW, name))).parameters) == list(theirs)
