"""Parameters that an engine has sharded must never be treated as whole ones: their statistics would be wrong."""

import gc
import importlib
import weakref

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdamW
from gradscale.sharding.engines import view
from gradscale.sharding.roster import Roster
from gradscale.sharding.view import Segment, UnsupportedShardingError


def test_an_untouched_parameter_is_one_whole_segment():
    param = torch.nn.Parameter(torch.randn(3, 5))
    group, roster = {"params": [param]}, Roster()
    roster.add_group(group, [("w", param)])
    found = view(param, group, 0, 0, roster)
    assert found.segments == (Segment("w", torch.Size([3, 5]), 0, 15, 0),) and not found.flat


def _flattened_by_fsdp1(optimizer):
    flat = optimizer.param_groups[0]["params"][0]
    flat._fsdp_flattened = True
    flat.grad = torch.randn_like(flat)


def _replaced_by_a_vector(optimizer):
    flat = torch.nn.Parameter(torch.randn(15))
    flat.grad = torch.randn(15)
    optimizer.param_groups[0]["params"] = [flat]


def _replaced_by_zero_without_its_buffer(optimizer):
    optimizer.original = optimizer.param_groups[0]["params"][0]
    optimizer.original._hp_mapping = None
    _replaced_by_a_vector(optimizer)


def _partitioned_by_zero3(optimizer):
    param = optimizer.param_groups[0]["params"][0]
    param.ds_id = 0
    param.grad = torch.randn_like(param)


def _replaced_by_no_sub_group_of_zero3(optimizer):
    optimizer.original = optimizer.param_groups[0]["params"][0]
    optimizer.original.ds_id = 0
    _replaced_by_a_vector(optimizer)


def _put_where_nothing_was(optimizer):
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.randn(3, 5)))


@pytest.mark.parametrize(
    "engine",
    [
        _flattened_by_fsdp1,
        _replaced_by_a_vector,
        _replaced_by_zero_without_its_buffer,
        _partitioned_by_zero3,
        _replaced_by_no_sub_group_of_zero3,
        _put_where_nothing_was,
    ],
)
def test_tensors_that_are_not_understood_are_refused_before_anything_changes(engine):
    if engine is _flattened_by_fsdp1:
        importlib.import_module("torch.distributed.fsdp")  # as it is where FSDP1 has flattened anything
    optimizer = SGGAdamW([torch.nn.Parameter(torch.randn(3, 5))], recluster_interval=1)
    optimizer.param_groups[0]["params"][0].grad = torch.randn(3, 5)
    engine(optimizer)
    param = optimizer.param_groups[0]["params"][0]
    before = param.detach().clone()
    with pytest.raises(UnsupportedShardingError, match="Train on one process, with DDP, FSDP or DeepSpeed ZeRO"):
        optimizer.step()
    assert torch.equal(param, before) and not optimizer.state


def test_replaced_parameters_are_freed_and_keep_their_names():
    model = torch.nn.Linear(4, 3, bias=False)
    optimizer = SGGAdamW(model.parameters(), recluster_interval=1, module=model)
    gone = weakref.ref(model.weight)
    new = torch.nn.Parameter(torch.randn(3, 4))
    new.grad = torch.randn(3, 4)
    model.weight = None
    optimizer.param_groups[0]["params"] = [new]
    gc.collect()
    assert gone() is None
    optimizer.step()
    assert [layer.name for layer in optimizer.grouping_report.layers] == ["weight"]


def test_groups_may_be_removed():
    params = [torch.nn.Parameter(torch.randn(3, 3)) for _ in range(3)]
    optimizer = SGGAdamW([{"params": [param]} for param in params], recluster_interval=1)
    del optimizer.param_groups[0]
    params[2].grad = torch.randn(3, 3)
    optimizer.step()
    assert [layer.name for layer in optimizer.grouping_report.layers] == ["parameter 2"]
