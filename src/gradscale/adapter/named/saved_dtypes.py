"""State in float32 of 16-bit parameters, which torch's `load_state_dict` rounds to their dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def keep_saved_dtypes(base: Optimizer | None, state_dict: Mapping[str, Any]) -> None:
    """Give tensors of a base's state the values that were saved, where loading has rounded them.

    For bases that compute in float32 whatever the dtype of the parameter, and keep their state so: Adafactor and CAME.

    Args:
        base: the base, which has loaded the state.
        state_dict: the state.
    """
    assert base is not None
    for saved_group, group in zip(state_dict["param_groups"], base.param_groups, strict=True):
        for key, param in zip(saved_group["params"], group["params"], strict=True):
            state = base.state.get(param, {})
            for name, saved in state_dict["state"].get(key, {}).items():
                loaded = state.get(name)
                if isinstance(saved, Tensor) and isinstance(loaded, Tensor) and saved.dtype != loaded.dtype:
                    state[name] = saved.detach().to(loaded.device, copy=True)
