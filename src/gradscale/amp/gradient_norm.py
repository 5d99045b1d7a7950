"""The p-norm of gradients that are spread over ranks, in one pass over them, and their scaling by a number.

Gradients may be ordinary (replicated, as with DDP), DTensors (FSDP2, also on several meshes), or stretches of FSDP1's
flat vectors. What lies on other ranks is added up over the process groups over which a tensor is sharded, once for all
tensors that share the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gradscale.sharding import fsdp1
from gradscale.sharding.view import ParamInfo

Groups = tuple[Any, ...]  # process groups over which a tensor is sharded; none where all of it is here


class GradientNorm:
    """Norms of the gradients of some parameters, and of each of several buckets of them.

    The parameters, not the gradients, say over which ranks to reduce: a rank without a gradient joins all the same.

    Args:
        buckets: lists of parameters; a norm is made of each.
        norm_type: p, above 0; `math.inf` for the largest element.

    Raises:
        UnsupportedShardingError: a parameter belongs to an FSDP1 module that does not exist any more.
    """

    def __init__(self, buckets: Sequence[Iterable[Tensor]], norm_type: float = 2.0) -> None:
        self._buckets = [list(bucket) for bucket in buckets]
        self._norm_type = float(norm_type)
        self._members: dict[Groups, list[tuple[int, Tensor]]] = {}
        for index, bucket in enumerate(self._buckets):
            for param in bucket:
                self._members.setdefault(shard_groups(param), []).append((index, param))

    def covers(self, buckets: Sequence[Sequence[Tensor]]) -> bool:
        """Whether these are the parameters that it was made for."""
        return len(buckets) == len(self._buckets) and all(
            len(mine) == len(theirs) and all(one is other for one, other in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self._buckets, buckets, strict=True)
        )

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Return the norm of each bucket, over all ranks.

        Returns:
            Tensor [buckets], float64 (float32 where the device has none), on the gradients' device. 0 where there is
            no gradient. No host synchronization.
        """
        largest = math.isinf(self._norm_type)
        whole: Tensor | None = None
        for groups, members in self._members.items():
            part = self._local(members)
            for group in groups:
                all_reduce(part, "max" if largest else "sum", group)
            part = part if whole is None else part.to(whole.device)
            whole = part if whole is None else torch.maximum(whole, part) if largest else whole + part
        if whole is None:
            return torch.zeros(len(self._buckets), dtype=torch.float64)
        return whole if largest else whole.pow(1 / self._norm_type)

    def total(self, norms: Tensor) -> Tensor:
        """Return the norm of everything, of no dimensions, from the norms of the buckets."""
        total: Tensor = torch.linalg.vector_norm(norms, self._norm_type)
        return total

    @torch.no_grad()
    def scale_(self, coefficients: Sequence[float]) -> None:
        """Multiply the gradients of each bucket by its coefficient; those of 1 are not touched."""
        for coefficient, bucket in zip(coefficients, self._buckets, strict=True):
            if coefficient == 1.0:
                continue
            for tensors in _alike(gradients(bucket)).values():
                if tensors[0].is_sparse:
                    for tensor in tensors:
                        tensor.mul_(coefficient)
                else:
                    torch._foreach_mul_(tensors, coefficient)

    def _local(self, members: list[tuple[int, Tensor]]) -> Tensor:
        """Sums of |g|^p (or largest |g|) of what lies on this rank, per bucket."""
        largest = math.isinf(self._norm_type)
        device = members[0][1].device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(len(self._buckets), dtype=dtype, device=device)
        buckets: dict[int, list[Tensor]] = {}
        for index, param in members:
            buckets.setdefault(index, []).append(param)
        for index, mine in buckets.items():
            for tensors in _alike(gradients(mine)).values():
                values = [tensor.coalesce()._values() if tensor.is_sparse else tensor for tensor in tensors]
                values = [value for value in values if value.numel()]
                if not values:
                    continue
                # 16-bit gradients: the norm of each would otherwise be rounded to their own few digits.
                narrow = torch.float32 if values[0].dtype in (torch.float16, torch.bfloat16) else None
                norms = torch.stack(torch._foreach_norm(values, self._norm_type, dtype=narrow)).to(device, dtype)
                if largest:
                    # NaN as infinity: a maximum over ranks need not keep NaN, and both mean the same here.
                    norms = torch.where(norms.isnan(), math.inf, norms)
                    sums[index] = torch.maximum(sums[index], norms.amax())
                else:
                    sums[index] += norms.pow(self._norm_type).sum()
        return sums


def shard_groups(param: Tensor) -> Groups:
    """Return the process groups over which a parameter is sharded.

    Raises:
        UnsupportedShardingError: it belongs to an FSDP1 module that does not exist any more.
    """
    if isinstance(param, DTensor):
        mesh = param.device_mesh
        return tuple(
            mesh.get_group(dim)
            for dim, placement in enumerate(param.placements)
            if not placement.is_replicate() and mesh.size(dim) > 1
        )
    if fsdp1.is_flattened(param):
        return fsdp1.view(param, ParamInfo("a parameter", param.shape)).process_groups
    return ()


def gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients that there are, of DTensors the part on this rank (sharing its memory).

    Raises:
        NotImplementedError: a gradient still has to be summed over ranks.
    """
    found = []
    for param in params:
        grad = param.grad
        if isinstance(grad, DTensor):
            if any(placement.is_partial() for placement in grad.placements):
                raise NotImplementedError(f"a gradient is a sum still to be made over ranks: {grad.placements}")
            grad = grad.to_local()
        if grad is not None:
            found.append(grad)
    return found


def all_reduce(tensor: Tensor, op: str, group: Any = None) -> None:
    """Reduce a small tensor in place, wherever it lies.

    Args:
        tensor: on any device.
        op: "sum" or "max".
        group: the process group; None for all ranks.
    """
    kind = dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM
    if tensor.device.type == "cpu" and dist.get_backend(group) == "nccl":  # gradients that FSDP keeps on the host
        moved = tensor.cuda()
        dist.all_reduce(moved, kind, group=group)
        tensor.copy_(moved)
    else:
        dist.all_reduce(tensor, kind, group=group)


def _alike(tensors: Iterable[Tensor]) -> dict[Any, list[Tensor]]:
    """Tensors by what torch's functions on lists want to be the same."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault((tensor.device, tensor.dtype, tensor.is_sparse), []).append(tensor)
    return found
