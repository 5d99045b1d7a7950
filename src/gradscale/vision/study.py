"""A study from the settings to the tables: every model x method x seed is a cell, and finished cells are kept."""

from __future__ import annotations

import sys
from typing import Any

from gradscale.training.files import finite, write_json, write_text
from gradscale.training.settings import resume_command
from gradscale.vision.curve import target_of
from gradscale.vision.images import ImageData
from gradscale.vision.methods import Cell
from gradscale.vision.resnet import title
from gradscale.vision.settings import StudySettings, cell_arguments
from gradscale.vision.sources import load_images
from gradscale.vision.study_folder import (
    FINISHED,
    RESULT,
    SUMMARY,
    TABLES,
    check_study_folder,
    clear_study_folder,
    earlier_record,
    last_checkpoint,
    remove_checkpoints,
)
from gradscale.vision.tables import make_tables

Result = dict[str, Any]
# Of `TrainingArguments`: where a run writes and what it shows, which makes no other run of it.
_NOT_OF_A_RUN = (
    *("output_dir", "disable_tqdm", "report_to", "save_strategy", "save_steps", "save_total_limit"),
    *("dataloader_pin_memory", "dataloader_num_workers"),
)


def run_study(settings: StudySettings) -> int:
    """Run the cells that are missing, print the tables, and return the exit code: 0, or 128 plus the signal.

    Raises:
        ConfigError: a setting or a folder cannot be used. Nothing has been written or deleted then.
        DataError: the data cannot be used.
    """
    output_dir, study = settings.output_dir, settings.study
    check_study_folder(output_dir, resume=settings.resume, overwrite=study.overwrite_output_dir)
    # All of them now: an error in the last cell's options must not wait for the end of the others.
    arguments = {cell: cell_arguments(settings, cell) for cell in settings.cells}
    images = load_images(study.data, validation_fraction=study.validation_fraction)
    if not settings.resume:
        clear_study_folder(output_dir)
    identity = {cell: _identity(settings, cell, images) for cell in settings.cells}
    records = {cell: earlier_record(output_dir / cell.folder, identity[cell]) for cell in settings.cells}
    results = {
        cell: {**record, **target_of(record["curve"], study.target_accuracy)}
        for cell, record in records.items()
        if record.get("status") in FINISHED
    }
    _announce(settings, images, len(results))

    for number, cell in enumerate(settings.cells, start=1):
        if cell in results:
            continue
        result, signal = _run(settings, cell, arguments[cell], images, records[cell], identity[cell])
        if result["status"] in FINISHED:
            results[cell] = result
            print(f"[{number:>{len(str(len(arguments)))}}/{len(arguments)}] {_line(cell, result)}", flush=True)
        if signal is not None:
            print(_stopped(settings, cell, result, missing=len(arguments) - len(results)), file=sys.stderr)
            return 128 + signal

    results = {cell: results[cell] for cell in settings.cells}
    tables = make_tables(
        results,
        models=settings.models,
        methods=settings.methods,
        seeds=len(study.seeds),
        data=images.name,
        target=study.target_accuracy,
        weight_decay=settings.trainer.get("weight_decay", 0.0),
    )
    write_json(output_dir / SUMMARY, {"data": images.description, "cells": list(results.values())})
    markdown = "\n\n".join(table.markdown for table in tables)
    write_text(output_dir / TABLES, f"{images.description}\n\n{markdown}\n")
    text = "\n\n".join(table.text for table in tables)
    print(f"\n{text}\n\nEverything is in {output_dir}", flush=True)
    return 0


def _run(
    settings: StudySettings, cell: Cell, arguments: Any, images: ImageData, record: Result, identity: Result
) -> tuple[Result, int | None]:
    """Run one cell; return its result and the signal that came while it ran."""
    from gradscale.training.interrupt import Interrupt
    from gradscale.vision.cell import run_cell

    folder = settings.output_dir / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(folder) if record else None
    if checkpoint is None:
        remove_checkpoints(folder)  # of other settings, or half-written
    about = {
        "model": cell.model,
        "table": cell.method.table,
        "method": cell.method.name,
        "reset": cell.reset,
        "seed": cell.seed,
    }
    seconds = float(record.get("seconds") or 0.0) if checkpoint is not None else 0.0
    # From now on the folder says what it holds, whatever ends the run.
    write_json(folder / RESULT, {**about, "status": "running", "seconds": seconds, "settings": identity})
    with Interrupt() as interrupt:
        result = run_cell(
            cell.model,
            arguments,
            images,
            target_accuracy=settings.study.target_accuracy,
            checkpoint=checkpoint,
            interrupt=interrupt,
        )
    result = {**about, **result, "seconds": seconds + result["seconds"], "settings": identity}
    write_json(folder / RESULT, result)
    if result["status"] in FINISHED:
        remove_checkpoints(folder)
    return result, interrupt.signal


def _identity(settings: StudySettings, cell: Cell, images: ImageData) -> Result:
    """Return what makes two runs the same, as JSON holds it. The target is none of it: the curve answers for any."""
    method = cell.method
    shared = {name: value for name, value in settings.trainer.items() if name not in _NOT_OF_A_RUN}
    if method.weight_decay is not None:
        shared["weight_decay"] = method.weight_decay
    identity: Result = finite(
        {
            "data": images.fingerprint,
            "optim": method.optim,
            "options": method.options(cell.reset),
            "learning_rate": method.learning_rate,
            **{name: value if isinstance(value, (dict, list)) else str(value) for name, value in shared.items()},
        }
    )
    return identity


def _announce(settings: StudySettings, images: ImageData, finished: int) -> None:
    print(f"data: {images.description}")
    models = ", ".join(f"{title(model)} ({' and '.join(resets)} reset)" for model, resets in settings.models.items())
    kept = f", {finished} of them finished already" if finished else ""
    print(
        f"{len(settings.cells)} runs{kept}: {models}; methods: {len(settings.methods)}; seeds: "
        f"{', '.join(map(str, settings.study.seeds))}; {settings.trainer['max_steps']:,} steps each, into "
        f"{settings.output_dir}",
        flush=True,
    )


def _line(cell: Cell, result: Result) -> str:
    diverged = " (diverged)" if result["status"] == "diverged" else ""
    steps, goal = result["steps_to_target"], f"{result['target_accuracy']:g} %"
    target = f"{goal} not reached" if steps is None else f"{goal} after {steps:,} iterations"
    return f"{cell.title}: {result['accuracy']:.2f} %{diverged}, {target}, {result['seconds']:.1f} s"


def _stopped(settings: StudySettings, cell: Cell, result: Result, *, missing: int) -> str:
    where = "" if result["status"] in FINISHED else f" in {cell.title} after step {result['global_step']}"
    return f"\nstopped{where}; {missing} runs are missing. Continue with:\n  {resume_command(settings.command)}"
