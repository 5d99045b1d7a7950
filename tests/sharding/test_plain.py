"""Parameters that an engine has sharded must never be treated as whole ones: their statistics would be wrong."""

import pytest
import torch

from gradscale.optim.sgg_adam import SGGAdamW
from gradscale.sharding.plain import UnsupportedShardingError, plain_segments
from gradscale.sharding.segment import Segment


def test_a_whole_parameter_is_one_segment():
    param = torch.nn.Parameter(torch.randn(3, 5))
    assert plain_segments(param, {param}) == (Segment(shape=(3, 5), offset=0, start=0, length=15),)


def _flattened_by_fsdp1(optimizer):
    flat = optimizer.param_groups[0]["params"][0]
    flat._fsdp_flattened = True
    flat.grad = torch.randn_like(flat)


def _replaced_by_zero(optimizer):
    flat = torch.nn.Parameter(torch.randn(15))
    flat.grad = torch.randn(15)
    optimizer.param_groups[0]["params"] = [flat]


def _partitioned_by_zero3(optimizer):
    param = optimizer.param_groups[0]["params"][0]
    param.ds_id = 0
    param.grad = torch.randn_like(param)


@pytest.mark.parametrize("engine", [_flattened_by_fsdp1, _replaced_by_zero, _partitioned_by_zero3])
def test_tensors_of_engines_are_refused_before_anything_changes(engine):
    optimizer = SGGAdamW([torch.nn.Parameter(torch.randn(3, 5))], recluster_interval=1)
    engine(optimizer)
    param = optimizer.param_groups[0]["params"][0]
    before = param.detach().clone()
    with pytest.raises(UnsupportedShardingError, match="Train on one process or with DDP"):
        optimizer.step()
    assert torch.equal(param, before) and not optimizer.state


def test_dtensor_is_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        param = torch.nn.Parameter(distribute_tensor(torch.randn(4, 4), mesh, [Shard(0)]))
        optimizer = SGGAdamW([param])
        param.grad = distribute_tensor(torch.randn(4, 4), mesh, [Shard(0)])
        with pytest.raises(UnsupportedShardingError, match="FSDP2"):
            optimizer.step()
    finally:
        dist.destroy_process_group()
