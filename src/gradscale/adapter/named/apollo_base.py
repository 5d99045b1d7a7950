"""AdamW of apollo-torch whose state holds tensors, numbers and names alone. Imports apollo-torch."""

from __future__ import annotations

from typing import Any

from apollo_torch import APOLLOAdamW
from torch import Tensor

_KEPT = ("ortho_matrix", "seed", "svd_count")  # of a projector; the rest is in the param group


class SavableAPOLLOAdamW(APOLLOAdamW):
    """The library's AdamW, which saves its projectors as what is in them.

    The library puts objects of its own into the state, which `torch.load` refuses with `weights_only=True`, as every
    trainer reads checkpoints.
    """

    def _initialize_projector(self, group: dict[str, Any], state: dict[str, Any]) -> Any:
        # Parameters of groups that are added later get no seed from the constructor.
        state.setdefault("seed", 1 + len(self.state))
        return super()._initialize_projector(group, state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        saved: dict[str, Any] = super().state_dict()
        return {**saved, "state": {key: _without_object(state) for key, state in saved["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state as saved by this class or by the library's own."""
        plain = {key: _without_object(state) for key, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": plain})
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param, {})
                if "projector" in state:
                    kept = state["projector"]
                    state["projector"] = self._initialize_projector(group, state)
                    for name, value in kept.items():
                        setattr(state["projector"], name, value)


def _without_object(state: dict[str, Any]) -> dict[str, Any]:
    projector = state.get("projector")
    if projector is None or isinstance(projector, dict):
        return dict(state)
    kept = {name: getattr(projector, name) for name in _KEPT if hasattr(projector, name)}
    # A later projection replaces the matrix, and does not change it; the caller may keep what it was given.
    return {**state, "projector": {n: v.clone() if isinstance(v, Tensor) else v for n, v in kept.items()}}
