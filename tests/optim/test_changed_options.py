"""Options that are switched on between two steps, as users of torch do by writing to param groups.

Guards against state that is missing then, after the step has been counted.
"""

import pytest
import torch

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdamW
from tests.optim.small_models import FEW, make, run
from tests.optim.training import through_a_file

CHANGES = {
    "momentum": (DGSSGD, {"momentum": 0.9}, "momentum_buffer"),
    "importance": (DGSSGD, {"importance_decay": 0.5, "reset_every": 2}, "importance"),
    "importance, lars": (DGSLARS, {"importance_decay": 0.5}, "importance_history"),
    "amsgrad": (DGSAdamW, {"amsgrad": True}, "max_exp_avg_sq"),
    "amsgrad, SGG": (SGGAdamW, {"amsgrad": True}, "max_exp_avg_sq"),
    "more clusters": (SGGAdamW, {"n_clusters": 4}, "scales"),
    "labels": (SGGAdamW, {"labels": "frozen"}, "labels"),
}


@pytest.mark.parametrize("kernel", ["eager", "compiled"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_option_switched_on_in_mid_run_counts_from_then_on(name, kernel):
    kind, changes, key = CHANGES[name]
    options = {"labels": "live", "recluster_interval": 2} if kind is SGGAdamW else {"recluster_interval": None}
    options = {option: value for option, value in options.items() if value is not None}
    if kind is not SGGAdamW:
        torch.manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in FEW]
        optimizer = kind(params, lr=1e-3, form="normalized", kernel=kernel)
    else:
        params, optimizer = make(kind, shapes=FEW, kernel=kernel, **options)
    run(params, optimizer, range(3))
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0].update(changes)
    run(params, optimizer, range(3, 7))
    assert all(key in optimizer.state[param] for param in params if param.dim() > 1)
    assert {int(optimizer.state[param]["step"]) for param in params} == {7}
    assert all(bool((one != other).any()) for one, other in zip(before, params, strict=True))
    if name == "more clusters":
        assert len(optimizer.grouping_report.layers[0].scales) == 4
    # What a new optimizer with these options loads is the same state.
    other = kind([torch.nn.Parameter(param.detach().clone()) for param in params], lr=1e-3)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    run(other.param_groups[0]["params"], other, range(7, 9))
    run(params, optimizer, range(7, 9))
    for one, two in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-7)


def test_a_mistyped_keyword_names_the_class_and_the_nearest_option():
    with pytest.raises(TypeError, match=r"DGSLARS\(\) got an unexpected keyword argument 'fom', did you mean 'form'"):
        DGSLARS([torch.nn.Parameter(torch.zeros(2))], fom="full")
