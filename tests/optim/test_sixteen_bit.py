"""Options for 16-bit training: the dtype of the moments, and Kahan summation."""

import io

import pytest
import torch

from gradscale.optim.dgs import DGSSGD, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdamW
from gradscale.options import OptionError

KERNELS = ["compiled", "eager"]
KINDS = [
    pytest.param(SGGAdamW, {"moments_dtype": "float32", "n_clusters": 1}, id="SGGAdamW"),
    pytest.param(DGSSGD, {"form": "importance", "importance_decay": 0.9}, id="DGSSGD"),
    pytest.param(DGSAdamW, {"moments_dtype": "float32", "form": "normalized"}, id="DGSAdamW"),
]


def quadratic(dtype, steps, cls=SGGAdamW, **options):
    """Minimize a quadratic from afar, with steps far below what a 16-bit number of that size can resolve."""
    torch.manual_seed(0)
    target = torch.randn(40, 30) * 0.1
    param = torch.nn.Parameter(torch.full((40, 30), 4.0).to(dtype))
    options = {"recluster_interval": 10, **options} if cls is SGGAdamW else options
    optimizer = cls([param], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(steps):
        param.grad = (param.detach().float() - target).to(dtype)
        optimizer.step()
    return param.detach().float(), optimizer, param


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "own"), KINDS)
def test_kahan_sum_keeps_steps_that_rounding_would_lose(cls, own, dtype, kernel):
    options = {"cls": cls, "kernel": kernel, **own}
    exact, _, _ = quadratic(torch.float32, 300, **options)
    kept, optimizer, param = quadratic(dtype, 300, kahan_sum=True, **options)
    assert (exact - 4.0).abs().min() > 0.1
    # Within a unit in the last place of the parameter itself (2^-7 of 4 in bfloat16), though 300 steps were added.
    torch.testing.assert_close(kept, exact, atol=2 ** (-5 if dtype == torch.bfloat16 else -8), rtol=0)
    state = optimizer.state[param]
    assert state["compensation"].dtype == dtype and state["compensation"].abs().max() > 0
    if dtype == torch.bfloat16:
        lost, _, _ = quadratic(dtype, 300, **options)
        assert (lost - 4.0).abs().max() == 0  # every single step was rounded away


@pytest.mark.parametrize("kernel", KERNELS)
def test_kahan_sum_changes_nothing_for_wide_parameters(kernel):
    plain, _, _ = quadratic(torch.float32, 20, kernel=kernel)
    summed, optimizer, param = quadratic(torch.float32, 20, kernel=kernel, kahan_sum=True)
    assert torch.equal(plain, summed) and "compensation" not in optimizer.state[param]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "choice", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float16, "auto", torch.float32),
        (torch.float16, "bfloat16", torch.bfloat16),
    ],
)
def test_moments_are_kept_in_the_dtype_asked_for(dtype, choice, expected, kernel):
    value, optimizer, param = quadratic(dtype, 12, kernel=kernel, moments_dtype=choice)
    state = optimizer.state[param]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == expected
    assert value.isfinite().all() and state["scales"].dtype == torch.float32
    assert (state["scales"] != 1).any()


def test_a_saved_run_goes_on_bit_for_bit():
    options = {"kahan_sum": True, "kernel": "eager"}
    expected, _, _ = quadratic(torch.bfloat16, 30, **options)
    _, first, param = quadratic(torch.bfloat16, 17, **options)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = torch.nn.Parameter(param.detach().clone())
    second = SGGAdamW([again], lr=1e-3, weight_decay=0.0, recluster_interval=10, **options)
    second.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(0)
    target = torch.randn(40, 30) * 0.1
    for _ in range(13):
        again.grad = (again.detach().float() - target).bfloat16()
        second.step()
    assert torch.equal(again.detach().float(), expected)


def test_state_without_compensation_loads_and_starts_at_zero():
    _, plain, param = quadratic(torch.bfloat16, 12)
    again = torch.nn.Parameter(param.detach().clone())
    summed = SGGAdamW([again], recluster_interval=10, kahan_sum=True)
    state = plain.state_dict()
    state["param_groups"][0]["kahan_sum"] = True
    summed.load_state_dict(state)
    assert summed.state[again]["compensation"].abs().max() == 0
    assert torch.equal(summed.state[again]["labels"], plain.state[param]["labels"])
    assert not summed._ungrouped


@pytest.mark.parametrize(
    ("option", "value"), [("moments_dtype", "fp32"), ("kahan_sum", "yes"), ("kernel", "triton"), ("kernel", None)]
)
def test_wrong_values_are_refused(option, value):
    with pytest.raises(OptionError, match=option):
        SGGAdamW([torch.nn.Parameter(torch.ones(2, 2))], **{option: value})
