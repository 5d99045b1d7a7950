"""A bad gradient must not raise from inside the grouping, nor spoil the scales of any layer."""

import warnings

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdamW


def make(values, **options):
    params = [torch.nn.Parameter(torch.randn(6, 7)) for _ in range(3)]
    optimizer = SGGAdamW([("a", params[0]), ("b", params[1]), ("c", params[2])], recluster_interval=2, **options)
    for param in params:
        param.grad = torch.randn(6, 7)
    optimizer.step()
    params[1].grad[2, 3] = values
    return params, optimizer


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("global_mda", ["clusters", "parameters"])
@pytest.mark.parametrize("labels", ["frozen", "live"])
def test_the_layer_waits_and_is_reported(bad, global_mda, labels):
    params, optimizer = make(bad, global_mda=global_mda, labels=labels)
    with pytest.warns(RuntimeWarning, match="momentum of b holds inf or NaN"):
        optimizer.step()
    report = optimizer.grouping_report
    assert report.waiting == ("b",) and [layer.name for layer in report.layers] == ["a", "c"]
    assert optimizer.state[params[1]]["scales"].tolist() == [1.0, 1.0, 1.0]
    for param in (params[0], params[2]):
        assert param.isfinite().all()
        assert optimizer.state[param]["scales"].isfinite().all()
        assert optimizer.state[param]["scales"].tolist() != [1.0, 1.0, 1.0]


def test_other_layers_are_grouped_as_if_the_bad_one_were_not_there():
    params, optimizer = make(float("nan"))
    kept = [params[0].detach().clone(), params[2].detach().clone()]
    alone = [torch.nn.Parameter(param) for param in kept]
    other = SGGAdamW(alone, recluster_interval=2)
    for twin, param in zip(alone, (params[0], params[2]), strict=True):
        other.state[twin] = {key: value.clone() for key, value in optimizer.state[param].items()}
        twin.grad = param.grad.clone()
    other.param_groups[0]["steps"] = optimizer.param_groups[0]["steps"]
    with pytest.warns(RuntimeWarning):
        optimizer.step()
    other.step()
    assert torch.equal(params[0], alone[0]) and torch.equal(params[2], alone[1])


def test_a_warning_that_is_an_error_comes_after_the_step():
    params, optimizer = make(float("nan"))
    before = [param.detach().clone() for param in params]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            optimizer.step()
    assert not torch.equal(params[0], before[0]) and not torch.equal(params[2], before[2])


def test_all_layers_bad():
    param = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = SGGAdamW([param], recluster_interval=1)
    param.grad = torch.full((3, 3), float("nan"))
    with pytest.warns(RuntimeWarning, match="parameter 0"):
        optimizer.step()
    assert optimizer.grouping_report.waiting == ("parameter 0",) and optimizer.grouping_report.layers == ()


def test_zero_momentum_does_not_cluster():
    zero, live = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4, 4))
    optimizer = SGGAdamW([zero, live], recluster_interval=1)
    zero.grad, live.grad = torch.zeros(4, 4), torch.zeros(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        assert optimizer.grouping_report is None
        live.grad = torch.randn(4, 4)
        optimizer.step()
    assert [layer.name for layer in optimizer.grouping_report.layers] == ["parameter 1"]
    assert optimizer.state[zero]["scales"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 3.4e38), (torch.float64, 1e60)])
def test_large_finite_numbers_are_not_called_infinite(dtype, value):
    param = torch.nn.Parameter(torch.zeros(4, 4, dtype=dtype))
    optimizer = SGGAdamW([param], recluster_interval=1, betas=(0.0, 0.0), min_layer_size=0)
    param.grad = torch.full((4, 4), value, dtype=dtype)
    param.grad[0] = -value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.grouping_report.layers[0].counts == (4, 12, 0)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 1e37])
def test_extreme_magnitudes_stay_finite(magnitude):
    param, other = torch.nn.Parameter(torch.randn(20, 20)), torch.nn.Parameter(torch.randn(20, 20))
    optimizer = SGGAdamW([param, other], recluster_interval=1)
    for _ in range(4):
        param.grad, other.grad = torch.randn(20, 20) * magnitude, torch.randn(20, 20)
        optimizer.step()
    for scales in (optimizer.state[p]["scales"] for p in (param, other)):
        assert ((scales >= 0.1) & (scales <= 10)).all()
