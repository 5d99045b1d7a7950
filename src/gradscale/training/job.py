"""`gradscale train` from the settings to the summary: the main run and those compared with it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from gradscale.data.examples import DocumentExamples
from gradscale.data.source import DataError
from gradscale.data.stream import TokenStream
from gradscale.training.datasets import Blocks, load_blocks, open_source
from gradscale.training.errors import ConfigError
from gradscale.training.files import read_json, write_json
from gradscale.training.model import check_model_files, load_tokenizer
from gradscale.training.output_folder import (
    RUN,
    SUMMARY,
    check_output_folder,
    clear_output_folder,
    resume_points,
    run_folders,
)
from gradscale.training.settings import Settings, resume_command, training_arguments
from gradscale.training.summary import format_scales, format_summary

# Keys that change nothing in what is trained.
_NO_MATTER = ("overwrite_output_dir", "plot", "log_gradient_norms")


def run_job(settings: Settings) -> int:
    """Run what the settings ask for and return the exit code: 0, or 128 plus the signal that stopped it.

    Raises:
        ConfigError: a setting, a file or a folder cannot be used. Nothing has been written or deleted then.
        DataError: the data cannot be used.
    """
    arguments, output_dir = settings.train, settings.output_dir
    folders = run_folders(output_dir, settings.optimizers)
    points = resume_points(settings.resume, output_dir, folders)
    check_output_folder(
        output_dir,
        settings.optimizers,
        resume=settings.resume is not None,
        overwrite=arguments.overwrite_output_dir,
    )
    check_model_files(arguments)
    source = open_source(arguments)
    # All of them now: an error in the second run's options must not wait for the end of the first.
    trainer_arguments = {name: training_arguments(settings, name, folder) for name, folder in folders.items()}
    main = trainer_arguments[settings.optimizers[0]]
    if arguments.log_gradient_norms:
        _check_engine(main)
    is_main_process = main.process_index == 0

    with main.main_process_first(local=True, desc="tokenizer and data"):
        tokenizer = load_tokenizer(arguments, source)
        blocks = load_blocks(arguments, source, tokenizer)
    if is_main_process:
        print(_describe(source.description, blocks, len(tokenizer)), flush=True)
        if settings.resume is None and arguments.overwrite_output_dir:
            clear_output_folder(output_dir, settings.optimizers)

    results: list[dict[str, Any]] = []
    fingerprint = _fingerprint(settings)
    for name, folder in folders.items():
        finished = _finished(folder, fingerprint) if settings.resume is not None else None
        if finished is not None:
            results.append(finished)
            continue
        result = _run(settings, name, trainer_arguments[name], blocks, tokenizer, points[name])
        result["settings"] = fingerprint
        if is_main_process:
            write_json(folder / RUN, result)
        if result["status"] == "interrupted":
            if is_main_process:
                print(_how_to_resume(settings, folder, result["global_step"]), file=sys.stderr)
            return 128 + int(result["signal"])
        results.append(result)

    if is_main_process:
        write_json(output_dir / SUMMARY, {"runs": results})
        print(f"\n{format_summary(results)}")
        for result in results:
            if result.get("scales"):
                print(f"\n{format_scales(result)}")
        if arguments.plot:
            _plot(output_dir)
        print(f"\nEverything is in {output_dir}", flush=True)
    return 0


def _check_engine(trainer_arguments: Any) -> None:
    from gradscale.integrations.gradient_norms import refuse_deepspeed

    try:
        refuse_deepspeed(trainer_arguments)
    except ValueError as error:
        raise ConfigError(f"log_gradient_norms: {error}") from None


def _run(
    settings: Settings, name: str, trainer_arguments: Any, blocks: Blocks, tokenizer: Any, checkpoint: Path | None
) -> dict[str, Any]:
    from gradscale.training.interrupt import Interrupt
    from gradscale.training.run import train

    if trainer_arguments.process_index == 0:
        where = f" from {checkpoint}" if checkpoint is not None else ""
        print(f"\n{name}: training{where} into {trainer_arguments.output_dir}", flush=True)
    with Interrupt() as interrupt:
        result = train(
            settings.train,
            trainer_arguments,
            blocks=blocks,
            tokenizer=tokenizer,
            checkpoint=checkpoint,
            interrupt=interrupt,
        )
    result["signal"] = interrupt.signal
    return result


def _fingerprint(settings: Settings) -> dict[str, Any]:
    """Return what makes two runs the same, as JSON holds it."""
    ours = {name: value for name, value in vars(settings.train).items() if name not in _NO_MATTER}
    theirs = {
        name: value for name, value in settings.trainer.items() if name not in ("output_dir", "dataloader_pin_memory")
    }
    return {
        **ours,
        **{name: value if isinstance(value, (dict, list)) else str(value) for name, value in theirs.items()},
    }


def _finished(folder: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of a run that is complete with these settings, so that resuming does not train it again."""
    record = read_json(folder / RUN)
    if not isinstance(record, dict) or record.get("status") not in ("finished", "diverged"):
        return None
    return record if record.get("settings") == fingerprint else None


def _describe(description: str, blocks: Blocks, vocabulary: int) -> str:
    held_out = "none" if blocks.validation is None else _size(blocks.validation)
    return f"data: {description}; training {_size(blocks.train)}, validation {held_out}, vocabulary {vocabulary:,}"


def _size(data: Any) -> str:
    if isinstance(data, TokenStream):
        return "streamed"
    if isinstance(data, DocumentExamples):
        return f"{len(data):,} documents of {data.tokens_per_example:,.0f} tokens each"
    return f"{len(data) * data.block_size:,} tokens"


def _how_to_resume(settings: Settings, folder: Path, step: int) -> str:
    command = resume_command(settings.command)
    return f"\nstopped after step {step}; the checkpoint is in {folder}. Continue with:\n  {command}"


def _plot(output_dir: Path) -> None:
    """Draw, or say in one line why not: the results are there without the picture."""
    try:
        from gradscale.plots.draw import draw
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'gradscale[plot]')", file=sys.stderr)
        return
    with contextlib.suppress(ConfigError, DataError):
        for path in draw([output_dir], output_dir, ("loss", "scales", "norms")).files:
            print(f"plot: {path}")
