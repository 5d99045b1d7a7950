"""The folder of a command and of its runs: where they write, what they may delete, where they resume."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json

RUN = "run.json"  # one run: settings, status and results
SUMMARY = "summary.json"  # one command: all its runs
SCALES = "scales.jsonl"
NORMS = "gradient_norms.jsonl"
STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"  # in a checkpoint of one process or of DDP
PLOTS = tuple(f"{name}.{kind}" for name in ("loss", "scales", "norms", "clusters") for kind in ("png", "svg"))

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What a run writes, and hence may delete: nothing else in the folder is ours.
_FILES: tuple[str, ...] = (
    RUN,
    SUMMARY,
    SCALES,
    NORMS,
    STATE,
    "training_args.bin",
    "config.json",
    "generation_config.json",
    *PLOTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", "*_results.json")
BASE = "base"  # the frozen model below an adapter, where it was made at random
_ADAPTER = ("adapter_model.safetensors", "README.md", "adapter_config.json")


def default_output_dir(config: str) -> str:
    """Return the folder of a command that names none, after its YAML file."""
    return str(Path("runs") / Path(config).stem)


def run_folders(output_dir: Path, optimizers: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each optimizer's run: `output_dir`, or one folder per optimizer in it."""
    return {name: output_dir if len(optimizers) == 1 else output_dir / name for name in optimizers}


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, by step. The Trainer's state is the last thing that it writes."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found) if (path / STATE).is_file()]


def check_output_folder(output_dir: Path, optimizers: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than what is to be resumed or overwritten.

    Args:
        output_dir: folder of the command.
        optimizers: names of its runs.
        resume: whether earlier runs are continued.
        overwrite: whether earlier runs may be deleted.

    Raises:
        ConfigError: `output_dir` is a file, or is not empty and neither `resume` nor `overwrite` is asked for.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir={str(output_dir)!r} is a file, expected a folder")
    # Folders alone are what a run leaves that failed before its first file.
    if resume or not output_dir.is_dir() or all(path.is_dir() for path in output_dir.rglob("*")):
        return
    ours = _runs(output_dir, optimizers)
    if overwrite and ours:
        return
    if not ours:
        raise ConfigError(f"output_dir={str(output_dir)!r} is not empty and holds no run: set another output_dir")
    raise ConfigError(
        f"output_dir={str(output_dir)!r} already holds a run: continue it with --resume_from_checkpoint last, "
        "set another --output_dir, or delete it with --overwrite_output_dir"
    )


def clear_output_folder(output_dir: Path, optimizers: Sequence[str]) -> None:
    """Delete the earlier runs in `output_dir`, and nothing that no run wrote."""
    if not output_dir.is_dir():
        return
    for folder in _runs(output_dir, optimizers):
        for path in folder.glob("checkpoint-*"):
            if _CHECKPOINT.fullmatch(path.name):
                shutil.rmtree(path)
        for pattern in (*_FILES, *_PATTERNS):
            for path in folder.glob(pattern):
                path.unlink()
        if (folder / _ADAPTER[-1]).is_file():  # without it a README.md is not PEFT's
            for name in _ADAPTER:
                (folder / name).unlink(missing_ok=True)
        if (folder / BASE / "config.json").is_file():
            shutil.rmtree(folder / BASE)
        for path in (folder / "runs").glob("*/events.out.tfevents.*"):
            path.unlink()
        for path in [*(folder / "runs").glob("*"), folder / "runs", folder]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _runs(output_dir: Path, optimizers: Sequence[str]) -> list[Path]:
    """Return the run folders in `output_dir`, which comes last, or nothing where it holds no run.

    A folder in it is a compared run's only if it is named after its optimizer: the folders of other commands, which
    may stand beside, are none of ours.
    """
    compared = [
        folder
        for folder in output_dir.iterdir()
        if (record := read_json(folder / RUN)) is not None
        and folder.name == record.get("optim")
        or folder.name in optimizers
        and find_checkpoints(folder)
    ]
    own = any((output_dir / name).is_file() for name in (RUN, SUMMARY)) or find_checkpoints(output_dir)
    return [*compared, output_dir] if own or compared else []


def resume_points(resume: str | None, output_dir: Path, folders: dict[str, Path]) -> dict[str, Path | None]:
    """Return the checkpoint that each run continues from, None for a run from the start.

    Args:
        resume: None, "last", or a checkpoint folder (a single run's), or `output_dir`.
        output_dir: folder of the command.
        folders: folder of each optimizer's run.

    Raises:
        ConfigError: there is no such checkpoint; nothing has been loaded yet.
    """
    if resume is None:
        return {name: None for name in folders}
    path = Path(resume).expanduser()
    if resume == "last" or path.resolve() == output_dir.resolve():
        points = {name: next(reversed(find_checkpoints(folder)), None) for name, folder in folders.items()}
        records = [read_json(folder / RUN) or {} for folder in folders.values()]
        finished = any(record.get("status") in ("finished", "diverged") for record in records)
        if not any(points.values()) and not finished:
            raise ConfigError(
                f"resume_from_checkpoint: there is no complete checkpoint in output_dir={str(output_dir)!r}"
            )
        return points
    if len(folders) > 1:
        raise ConfigError(
            f"resume_from_checkpoint={resume!r}: with compare_optim every run continues from its own last checkpoint "
            "under output_dir; give 'last'"
        )
    checkpoint = _checkpoint(path, resume)
    return {name: checkpoint for name in folders}


def _checkpoint(path: Path, resume: str) -> Path:
    if not path.is_dir():
        raise ConfigError(f"resume_from_checkpoint={resume!r}: there is no such folder")
    if not (path / STATE).is_file():
        inside = find_checkpoints(path)
        hint = f", did you mean {str(inside[-1])!r}?" if inside else f" (it has no {STATE})"
        raise ConfigError(f"resume_from_checkpoint={resume!r} is not a checkpoint of a Trainer{hint}")
    if not any((path / name).is_file() for name in ("scheduler.pt", "optimizer.pt", "latest")):
        raise ConfigError(
            f"resume_from_checkpoint={resume!r} holds no optimizer (save_only_model): it cannot be resumed"
        )
    return path
