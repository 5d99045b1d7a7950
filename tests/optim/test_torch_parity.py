"""SGG without groups against torch's own Adam and AdamW, option by option."""

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from tests.optim.training import batches, make_model, train

PAIRS = [(SGGAdamW, torch.optim.AdamW), (SGGAdam, torch.optim.Adam)]
OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.1},
    {"lr": torch.tensor(1e-2, dtype=torch.float64)},
    {"lr": 0.0},
]
TOLERANCE = {torch.float64: (1e-15, 1e-12), torch.float32: (2e-7, 1e-5), torch.bfloat16: (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_matches_torch(ours, theirs, options, dtype):
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


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    ],
)
def test_schedulers_drive_it(scheduler):
    rates = []
    for cls in (SGGAdamW, torch.optim.AdamW):
        param = torch.nn.Parameter(torch.randn(3, 3))
        optimizer = cls([param], lr=1e-2)
        schedule = scheduler(optimizer)
        rates.append([])
        for _ in range(8):
            param.grad = torch.randn(3, 3)
            optimizer.step()
            schedule.step()
            rates[-1].append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
    assert rates[0] == rates[1]


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
