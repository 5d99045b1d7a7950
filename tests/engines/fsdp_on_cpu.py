"""Lets accelerate and the Trainer shard on CPU with gloo. For tests only.

accelerate turns FSDP on for accelerators alone: on CPU, `Accelerator(cpu=True, fsdp_plugin=...)` silently runs DDP. The
sharding itself is torch's and works on gloo, so it is enough that accelerate takes the ranks for those of GPUs.
"""

import functools

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def relabel_cpu_ranks():
    """From now on, in this process, ranks on CPU count as ranks on GPU; their device stays the CPU."""
    construct = PartialState.__init__
    if getattr(construct, "_relabels", False):
        return

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
            self.device = torch.device("cpu")  # FSDP1 knows the CPU without an index only

    __init__._relabels = True
    PartialState.__init__ = __init__
