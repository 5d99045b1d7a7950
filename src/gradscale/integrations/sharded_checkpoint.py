"""Let FSDP's sharded checkpoints of another optimizer, such as plain AdamW's, load into one of ours.

`torch.distributed.checkpoint` loads into the state that an optimizer has, and fails on what the checkpoint lacks. What
a checkpoint of another optimizer lacks is left out of that state while it is loaded; the optimizer then says so, as it
does for any other kind of checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = "load_fsdp_optimizer"


def patch_sharded_loading(module: ModuleType) -> None:
    """Wrap accelerate's `load_fsdp_optimizer` where a module has imported it. Calling it again changes nothing."""
    load = getattr(module, _NAME, None)
    if load is None or getattr(load, "_gradscale", False):
        return

    @functools.wraps(load)
    def load_fsdp_optimizer(
        fsdp_plugin: Any,
        accelerator: Any,
        optimizer: Any,
        model: Any,
        input_dir: Any,
        optimizer_index: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # The folder that accelerate reads; a FULL_STATE_DICT is a file and brings what it has.
        folder = Path(input_dir)
        if folder.name != f"optimizer_{optimizer_index}":
            folder = folder / f"optimizer_{optimizer_index}"
        with _only_state_in(folder, optimizer):
            return load(fsdp_plugin, accelerator, optimizer, model, input_dir, optimizer_index, *args, **kwargs)

    load_fsdp_optimizer._gradscale = True  # type: ignore[attr-defined]  # our own mark
    setattr(module, _NAME, load_fsdp_optimizer)


@contextmanager
def _only_state_in(folder: Path, optimizer: Any) -> Iterator[None]:
    """While this lasts, `state_dict()` of one of our optimizers leaves out what a sharded checkpoint does not have."""
    from gradscale.integrations.callback import find_attribute
    from gradscale.optim.scaled import ScaledOptimizer

    inner = find_attribute(optimizer, "grouping_report")
    if not isinstance(inner, ScaledOptimizer) or not (folder / ".metadata").is_file():
        yield
        return
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    keys = FileSystemReader(folder).read_metadata().state_dict_metadata
    handle = inner.register_state_dict_post_hook(lambda _, state_dict: _leave_out(state_dict, list(keys)))
    try:
        yield
    finally:
        handle.remove()


def _leave_out(state_dict: dict[str, Any], keys: list[str]) -> None:
    """Take out of a state dict what is not among the keys of a checkpoint. In place.

    Keys are `optimizer.state.<parameter>.<name>`; those of param groups have a parameter, or the number of the group,
    before the name, and may go on below it.
    """
    state = {key.rpartition(".")[2] for key in keys if ".param_groups." not in key}
    below = [key.partition(".param_groups.")[2] for key in keys if ".param_groups." in key]
    options = {key.rpartition(".")[2] for key in below}
    options |= {key.split(".")[1] for key in below if key.partition(".")[0].isdigit()}
    state_dict["state"] = {
        param: {name: value for name, value in saved.items() if name in state}
        for param, saved in state_dict["state"].items()
    }
    state_dict["param_groups"] = [
        {name: value for name, value in group.items() if name in options or name == "params"}
        for group in state_dict["param_groups"]
    ]
