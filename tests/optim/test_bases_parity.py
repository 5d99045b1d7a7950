"""SGG on SGD, Lion and LAMB without scales, against the optimizers of torch and pytorch-optimizer, and their state."""

import copy
import warnings
from functools import partial

import pytest
import pytorch_optimizer
import torch

from gradscale.optim.sgg_lamb import SGGLamb
from gradscale.optim.sgg_lion import SGGLion
from gradscale.optim.sgg_sgd import SGGSGD
from tests.optim.training import batches, make_model, train

MOMENTUM = {"momentum": 0.9}
NESTEROV = {"momentum": 0.9, "nesterov": True}
# Our class, and its base of another library, with the options that make it the same.
PEERS = [
    *(
        pytest.param(partial(SGGSGD, **own), partial(torch.optim.SGD, foreach=False, **own), id=f"sgd {own}")
        for own in ({}, MOMENTUM, NESTEROV, {"weight_decay": 0.1, **MOMENTUM}, {"maximize": True})
    ),
    *(
        pytest.param(partial(SGGLion, **own), partial(pytorch_optimizer.Lion, foreach=False, **own), id=f"lion {own}")
        for own in ({}, {"weight_decay": 0.1, "betas": (0.95, 0.98)}, {"maximize": True})
    ),
    # Theirs corrects neither moment. The trust ratio takes out any factor of a direction, so without weight decay the
    # two are one. (Decay that is in the ratio is called coupled there.)
    pytest.param(
        partial(SGGLamb, weight_decay=0.0, eps=1e-30, adapt_vectors=True),
        partial(pytorch_optimizer.Lamb, weight_decouple=False, adam_debias=True, eps=1e-30, foreach=False),
        id="lamb",
    ),
]


@pytest.mark.parametrize("scales", ["one cluster", "fixed at 1"])
@pytest.mark.parametrize(("ours", "theirs"), PEERS)
def test_without_scales_it_is_its_base(ours, theirs, scales):
    more = {"n_clusters": 1} if scales == "one cluster" else {"scale_bounds": (1, 1), "recluster_interval": 2}
    torch.manual_seed(0)
    # Weights of a norm below 10, at which theirs bounds it.
    params = [torch.nn.Parameter(torch.randn(shape) * 0.3) for shape in [(7, 9), (9,), (3, 4, 5)]]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizer, reference = ours(params, lr=1e-2, **more), theirs(twins, lr=1e-2)
    # torch rounds a product and the sum that it enters at once, of weight decay and of Nesterov's momentum.
    group, rounded = optimizer.param_groups[0], scales != "one cluster" or not isinstance(optimizer, SGGSGD)
    exact = not (rounded or group["weight_decay"] or group["nesterov"])
    for _ in range(8):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        optimizer.step()
        reference.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, atol=0 if exact else 2e-7, rtol=0 if exact else 2e-6)
    if scales != "one cluster":
        assert len(optimizer.grouping_report.layers) == 2


def test_lamb_with_weight_decay_is_the_librarys_once_moments_need_no_correction():
    params = [torch.nn.Parameter(torch.randn(12, 7) * 0.3), torch.nn.Parameter(torch.randn(5, 4, 3) * 0.3)]
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    options = {"lr": 1e-2, "betas": (0.5, 0.5), "weight_decay": 0.3, "eps": 1e-6}
    optimizer = SGGLamb(params, n_clusters=1, **options)
    reference = pytorch_optimizer.Lamb(twins, weight_decouple=False, adam_debias=True, foreach=False, **options)
    for step in range(40):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param) * 0.1
            twin.grad = param.grad.clone()
        optimizer.step()
        reference.step()
        for param, twin in zip(params, twins, strict=True):
            if step > 25:  # 1 - 0.5^25 is 1 in float32
                torch.testing.assert_close(param, twin, atol=2e-7, rtol=5e-6)
            with torch.no_grad():
                param.copy_(twin)


def test_nesterov_and_plain_groups_of_one_optimizer():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(9, 8)) for _ in range(3)]
    groups = [{"params": params[:1], **NESTEROV}, {"params": params[1:2], **MOMENTUM}, {"params": params[2:]}]
    optimizer = SGGSGD(groups, lr=1e-2, recluster_interval=1, scale_bounds=(1, 1), weight_decay=0.1)
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    groups = [{"params": twins[:1], **NESTEROV}, {"params": twins[1:2], **MOMENTUM}, {"params": twins[2:]}]
    reference = torch.optim.SGD(groups, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        optimizer.step()
        reference.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, atol=2e-7, rtol=2e-6)
    assert len(optimizer.grouping_report.layers) == 3


def test_state_of_the_librarys_lion_loads_with_a_message():
    model, other = make_model(), make_model()
    theirs = pytorch_optimizer.Lion(model.parameters(), lr=1e-3)
    train(model, theirs, batches(4))
    other.load_state_dict(model.state_dict())
    optimizer = SGGLion(other.parameters(), lr=1e-3, recluster_interval=100)
    with pytest.warns(UserWarning, match="no groups for 3 layers"):
        optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))  # as torch, loading does not copy
    train(model, theirs, batches(6, start=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(other, optimizer, batches(6, start=4))
    for param, twin in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, twin, atol=1e-6, rtol=1e-6)


def test_state_of_lamb_without_a_count_of_steps_is_refused():
    """Its bias correction would start anew, with steps that are ten times too long."""
    model = make_model()
    theirs = pytorch_optimizer.Lamb(model.parameters(), lr=1e-3)
    train(model, theirs, batches(2))
    optimizer = SGGLamb(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="has no step"):
        optimizer.load_state_dict(theirs.state_dict())
    assert not optimizer.state
