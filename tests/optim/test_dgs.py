"""DGS by hand: steps that a reader can check with a pencil, and what each option is there for."""

import math

import pytest
import torch

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.dgs_scaler import HISTORY, IMPORTANCE
from tests.optim.kinds import DGSS
from tests.optim.pencil import near, step, tensor

# I = 0.5 and 0.25; with gamma = 1 / n = 1/2 their sum is 0.375, and G = 0.5 + 0.375 = 0.875.
GOLDEN = {
    "equation": (2 / 0.875, 2 / 0.875),
    "importance": (1 / (0.5 + 0.125), 1 / (0.25 + 0.125)),
    "full": (2 / ((0.5 + 0.125) * 0.875), 2 / ((0.25 + 0.125) * 0.875)),
    # M = 0.375. The second, 0.375 / (0.25 + 0.125 * 0.375) = 1.26, is above the bound.
    "normalized": (0.375 / (0.5 + 0.125 * 0.375), 1.2),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_a_step_by_hand(form):
    param = tensor(1.0, 2.0)
    optimizer = DGSSGD([param], lr=0.1, form=form, beta=2.0, sigma=0.5, eps=0.125, factor_bounds=(0.1, 1.2))
    step(optimizer, [0.5, -0.25])
    first, second = GOLDEN[form]
    near(param, 1.0 - 0.1 * first * 0.5, 2.0 + 0.1 * second * 0.25)


@pytest.mark.parametrize("cls", [DGSAdam, DGSAdamW])
@pytest.mark.parametrize("form", GOLDEN)
def test_the_factor_multiplies_adams_update(cls, form):
    """Whose first one is the sign of the gradient, but for an eps that is too small to see."""
    param = tensor(1.0, 2.0)
    options = {"beta": 2.0, "sigma": 0.5, "factor_bounds": (0.1, 1.2), "eps": 1e-30, "weight_decay": 0.0}
    step(cls([param], lr=0.1, form=form, importance_eps=0.125, **options), [0.5, -0.25])
    first, second = GOLDEN[form]
    near(param, 1.0 - 0.1 * first, 2.0 + 0.1 * second)


@pytest.mark.parametrize("form", GOLDEN)
def test_the_factor_multiplies_what_leaves_the_buffer_of_lars(form):
    param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    options = {"beta": 2.0, "sigma": 0.5, "eps": 0.125, "factor_bounds": (0.1, 1.2), "momentum": 0.5}
    optimizer = DGSLARS([param], lr=0.1, form=form, trust_coefficient=0.01, **options)
    step(optimizer, [[0.5, -0.25]])
    first, second = GOLDEN[form]
    ratio = 0.01 * 5 / math.hypot(0.5, 0.25)
    near(param[0], 3.0 - 0.1 * first * ratio * 0.5, 4.0 + 0.1 * second * ratio * 0.25)


def test_vectors_take_no_trust_ratio():
    param = tensor(3.0, 4.0)
    step(DGSLARS([param], lr=0.1, form="equation", gamma=0.0, trust_coefficient=0.01), [0.5, -0.25])
    near(param, 3.0 - 0.05, 4.0 + 0.025)


def test_the_trust_ratio_is_that_of_plain_lars_with_weight_decay():
    param = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    options = {"form": "equation", "gamma": 0.0, "momentum": 0.5, "weight_decay": 0.1}
    optimizer = DGSLARS([param], lr=1.0, trust_coefficient=0.01, **options)
    step(optimizer, [[0.0, 2.0]])
    ratio = 0.01 * 5 / (2 + 0.1 * 5)
    near(param[0], 3.0 - ratio * 0.3, 4.0 - ratio * 2.4)
    before = [3.0 - ratio * 0.3, 4.0 - ratio * 2.4]
    step(optimizer, [[0.0, 0.0]])  # no gradient has no direction to trust: the ratio is 1
    near(param[0], before[0] * 0.9 - 0.5 * ratio * 0.3, before[1] * 0.9 - 0.5 * ratio * 2.4)


def test_importance_is_that_of_the_gradient_without_weight_decay():
    param = tensor(1.0, 1.0)
    step(DGSSGD([param], lr=0.1, form="importance", weight_decay=0.5, eps=0.25), [0.5, 0.0])
    near(param, 1 - 0.1 * (0.5 + 0.5) / (0.5 + 0.25), 1 - 0.1 * 0.5 / 0.25)


def test_the_decoupled_weight_decay_is_not_scaled():
    moved, decayed = tensor(4.0), tensor(4.0)
    for param, weight_decay in ((moved, 0.0), (decayed, 0.5)):
        step(DGSAdamW([param], lr=0.1, form="importance", importance_eps=0.5, weight_decay=weight_decay), [0.25])
    assert moved.item() == pytest.approx(4 - 0.1 / 0.75)
    assert moved.item() - decayed.item() == pytest.approx(0.1 * 0.5 * 4)


def test_the_weight_decay_of_adam_enters_the_gradient_and_is_scaled():
    param = tensor(4.0)
    step(DGSAdam([param], lr=0.1, form="importance", importance_eps=0.5, weight_decay=0.5), [-0.25])
    near(param, 4 - 0.1 * 1.0 / (0.25 + 0.5), rel=1e-7)  # the sign of -0.25 + 0.5 x 4; and I is 0.25


@pytest.mark.parametrize("cls", [DGSAdam, DGSAdamW])
def test_eps_is_both_unless_there_are_two(cls):
    """Adam's first update is 0.25 / (0.25 + eps), and the factor 1 / (0.25 + eps)."""
    one, two = tensor(1.0), tensor(1.0)
    step(cls([one], lr=0.01, form="importance", eps=0.5, weight_decay=0.0), [0.25])
    step(cls([two], lr=0.01, form="importance", eps=0.5, importance_eps=0.125, weight_decay=0.0), [0.25])
    near(one, 1 - 0.01 * 0.25 / 0.75 / 0.75)
    near(two, 1 - 0.01 * 0.25 / 0.75 / 0.375)


def test_without_momentum_the_algorithm_is_a_sign_step():
    param = torch.nn.Parameter(torch.randn(5, 5))
    before, grad = param.detach().clone(), torch.randn(5, 5)
    param.grad = grad
    DGSSGD([param], lr=0.125, form="importance", eps=1e-30).step()
    torch.testing.assert_close(param.detach(), before - 0.125 * grad.sign())


def test_each_group_has_its_own_gamma():
    params = [tensor(1.0, 1.0), tensor(1.0), tensor(1.0)]
    groups = [
        {"params": params[0], "gamma": 0.25},
        {"params": params[1], "gamma": 0.0},
        {"params": params[2], "gamma": None},
    ]
    step(DGSSGD(groups, lr=0.1, form="equation", sigma=0.5), [1.0, -2.0], [100.0], [4.0])
    total = 0.5 + 0.25 * 3 + 0.0 * 100 + 4 / 4  # 4 elements in the optimizer, whatever their group
    near(params[0], 1 - 0.1 / total, 1 + 0.2 / total)
    near(params[1], 1 - 10 / total)
    near(params[2], 1 - 0.4 / total)


def test_frozen_parameters_are_not_counted():
    trained, frozen = tensor(1.0, 1.0), tensor(1.0, 1.0, 1.0)
    frozen.requires_grad_(False)
    step(DGSSGD([trained, frozen], lr=0.1, form="equation"), [1.0, -3.0], None)
    near(trained, 1 - 0.1 / (1 + 2), 1 + 0.3 / (1 + 2))


def test_sigma_and_beta_are_those_of_the_group():
    params = [tensor(1.0), tensor(1.0)]
    groups = [{"params": params[0], "sigma": 0.5}, {"params": params[1], "sigma": 2.0, "beta": 3.0}]
    step(DGSSGD(groups, lr=0.1, form="equation"), [1.0], [3.0])
    near(params[0], 1 - 0.1 * 1.0 / (0.5 + 2.0))
    near(params[1], 1 - 0.1 * 3.0 * 3.0 / (2.0 + 2.0))


def test_forms_can_be_mixed():
    params = [tensor(1.0), tensor(1.0), torch.nn.Parameter(torch.tensor([[1.0, 1.0]], dtype=torch.float64))]
    forms = ("equation", "importance", "normalized")
    groups = [{"params": param, "form": form} for param, form in zip(params, forms, strict=True)]
    step(DGSSGD(groups, lr=0.1, eps=0.5, sigma=0.25), [1.0], [0.5], [[2.0, 1.0]])
    near(params[0], 1 - 0.1 / (0.25 + 4.5 / 4))
    near(params[1], 1 - 0.1 * 0.5 / 1.0)
    near(params[2][0], 1 - 0.1 * 1.5 / 2.75 * 2, 1 - 0.1 * 1.5 / 1.75)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_unscaled_parameters_count_in_the_sum_and_are_stepped_by_their_base(decay):
    scaled, unscaled = tensor(1.0), tensor(1.0)
    groups = [{"params": scaled}, {"params": unscaled, "scaled": False}]
    optimizer = DGSSGD(groups, lr=0.1, form="equation", sigma=0.5, importance_decay=decay)
    step(optimizer, [1.0], [3.0])
    near(scaled, 1 - 0.1 / (0.5 + (1 + 3) / 2))
    near(unscaled, 1 - 0.3)
    step(optimizer, [0.0], [0.0])
    near(unscaled, 1 - 0.3)
    if decay:  # half of the past is left, of a weight of 3/4
        assert optimizer.state[unscaled][IMPORTANCE].item() == pytest.approx(0.75)
        assert optimizer.state[unscaled][HISTORY].tolist()[:2] == pytest.approx([0.75, 0.75])


def test_target_modules_choose_what_is_scaled_and_not_what_counts():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)).double()
    optimizer = DGSSGD(model.parameters(), lr=0.1, form="equation", module=model, target_modules=["0"])
    before = [param.item() for param in model.parameters()]
    step(optimizer, [[1.0]], [[2.0]])
    near(model[0].weight[0], before[0] - 0.1 / (1 + 1.5))
    near(model[1].weight[0], before[1] - 0.2)


def test_parameters_added_later_count_from_then_on():
    first, second = tensor(1.0), tensor(1.0)
    optimizer = DGSSGD([first], lr=0.1, form="equation", importance_decay=0.5)
    step(optimizer, [2.0])
    near(first, 1 - 0.2 / 3)
    optimizer.add_param_group({"params": second, "importance_decay": 0.75})
    start = first.item()
    step(optimizer, [0.5], [4.0])
    total = 1 + ((0.25 * 2 + 0.5 * 0.5) / 0.75 + 4) / 2
    near(first, start - 0.05 / total)
    near(second, 1 - 0.4 / total)


def test_lazy_parameters_count_with_the_size_they_get():
    module = torch.nn.LazyLinear(1, bias=False)
    optimizer = DGSSGD(module.parameters(), lr=0.125, form="equation")
    module(torch.tensor([[2.0, 4.0]])).backward()
    before = module.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before - 0.125 * torch.tensor([[2.0, 4.0]]) / 4)


def test_nothing_is_kept_that_is_not_asked_for():
    for cls in DGSS:
        param = torch.nn.Parameter(torch.randn(3, 3))
        optimizer = cls([param])
        param.grad = torch.randn(3, 3)
        optimizer.step()
        moments = {"exp_avg", "exp_avg_sq"} if issubclass(cls, DGSAdamW) else {"momentum_buffer"}
        assert set(optimizer.state[param]) == {"step"} | (set() if cls is DGSSGD else moments)


@pytest.mark.parametrize("cls", DGSS)
def test_learning_rates_change_between_steps(cls):
    results = []
    for rate in (1e-3, torch.tensor(1e-3), torch.tensor(1e-3, dtype=torch.float64)):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        optimizer = cls([param], lr=rate)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            param.grad = torch.randn(3, 3, dtype=torch.float64)
            optimizer.step()
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1.25e-4)
        results.append(param.detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=0)
