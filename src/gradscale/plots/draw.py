"""Drawing what folders hold: which pictures they give, and what is missing for those that are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from gradscale.plots import style
from gradscale.plots.clusters import MOST_LAYERS, chosen, clusters_figure
from gradscale.plots.folders import Source, look_into
from gradscale.plots.layers import matching, short_name
from gradscale.plots.loss import loss_figure
from gradscale.plots.norms import norms_figure
from gradscale.plots.scales import scales_figure
from gradscale.sweep.heat_map import heat_map_figure
from gradscale.sweep.report import REPORT, read_report
from gradscale.training.errors import ConfigError
from gradscale.training.output_folder import NORMS, OPTIMIZER, SCALES, STATE
from gradscale.training.records import RunRecord

PICTURES = ("loss", "scales", "clusters", "norms", "heatmap")
_FEW = 4  # layers, where none are asked for
# What is missing in a folder that does not give a picture, and what makes that.
_MISSING = {
    "loss": f"no logged loss ({STATE}): runs of a Trainer write one",
    "scales": f"no groupings ({SCALES}): `gradscale train` with an sgg_ optimizer writes them",
    "clusters": f"no checkpoint with an {OPTIMIZER}: train with an sgg_ optimizer and --save_strategy steps",
    "norms": f"no gradient norms ({NORMS}): `gradscale train --log_gradient_norms` or GradientNormCallback write them",
    "heatmap": f"no results of a sweep ({REPORT}): `gradscale sweep` writes them",
}


@dataclass
class Drawn:
    """What was written.

    Attributes:
        files: the pictures.
        remarks: what was chosen and left out, a line each.
    """

    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def draw(
    folders: Sequence[Path],
    into: Path,
    what: Iterable[str] = PICTURES,
    *,
    required: bool = False,
    width: float = style.TEXT_WIDTH,
    layers: Sequence[str] | None = None,
) -> Drawn:
    """Draw what folders hold, as PNG and SVG, into the folder `into`.

    Args:
        folders: of runs, of all runs of one command, of checkpoints and of sweeps.
        into: made if it is missing.
        what: names in `PICTURES`.
        required: whether every folder has to give every one of them, or only what it has.
        width: of a picture, inches.
        layers: patterns of layers in "clusters" and "norms"; None chooses a few, and draws kinds of layers.

    Raises:
        ConfigError: a folder is missing or damaged, holds nothing that can be drawn, or not what is required. Nothing
            has been written.
    """
    sources, wanted, drawn = look_into(folders), set(what), Drawn()
    if required:
        _check(sources, wanted)
    runs = list({run.folder: run for source in sources for run in source.runs}.values())
    figures: dict[str, Figure] = {}
    losses = [run for run in runs if _has_losses(run)]
    if "loss" in wanted and losses:
        figures["loss"] = loss_figure(losses, width)
    if "scales" in wanted and any(run.scales for run in runs):
        figures["scales"] = scales_figure([run for run in runs if run.scales], width)
    if "clusters" in wanted:
        _add_clusters(figures, sources, width, layers, drawn.remarks, required=required)
    if "norms" in wanted and any(run.norms for run in runs):
        figures["norms"] = norms_figure([run for run in runs if run.norms], width, layers=layers)
    sweeps = [source.folder for source in sources if source.is_sweep] if "heatmap" in wanted else []
    for number, folder in enumerate(sweeps, start=1):
        name = "heat_map" if len(sweeps) == 1 else f"heat_map_{number}"
        figures[name] = heat_map_figure(*read_report(folder), width)
    if figures:
        into.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        drawn.files += style.save(figure, into / name)
    return drawn


def _check(sources: Sequence[Source], wanted: set[str]) -> None:
    for source in sources:
        has = {
            "loss": any(map(_has_losses, source.runs)),
            "scales": any(run.scales for run in source.runs),
            "clusters": bool(source.checkpoints),
            "norms": any(run.norms for run in source.runs),
            "heatmap": source.is_sweep,
        }
        for name in PICTURES:
            if name in wanted and not has[name]:
                raise ConfigError(f"--what {name}: {str(source.folder)!r} has {_MISSING[name]}")


def _has_losses(run: RunRecord) -> bool:
    return bool(run.train_loss or run.validation_loss)


def _add_clusters(
    figures: dict[str, Figure],
    sources: Sequence[Source],
    width: float,
    layers: Sequence[str] | None,
    remarks: list[str],
    *,
    required: bool,
) -> None:
    """Add a figure per checkpoint that has clusters. Of the runs of one folder, some may be of other optimizers."""
    if not any(source.checkpoints for source in sources):
        return
    # Here, not above: the other pictures are drawn without loading torch.
    from gradscale.plots.checkpoint import Checkpoint, NoClusters, OtherOptimizer

    found: list[tuple[str, Checkpoint]] = []
    for source in sources:
        refused: list[NoClusters] = []
        for label, path in source.checkpoints:
            try:
                found.append((label, Checkpoint(path)))
            except NoClusters as error:
                refused.append(error)
        if required and len(refused) == len(source.checkpoints):
            raise refused[0]
        remarks += [f"no clusters: {error}" for error in refused if not isinstance(error, OtherOptimizer)]
    for label, checkpoint in found:
        names = checkpoint.names if layers is None else matching(checkpoint.names, layers, repr(str(checkpoint.folder)))
        some = chosen(names, _FEW if layers is None else MOST_LAYERS)
        title = label if checkpoint.step is None else f"{label}, step {checkpoint.step}"
        if len(some) < len(names):
            remarks.append(
                f"clusters of {title}: {len(some)} of {len(names)} layers ({', '.join(map(short_name, some))}); "
                "others with --layers"
            )
        stem = "clusters" if len(found) == 1 else f"clusters_{re.sub(r'[^0-9A-Za-z.+-]+', '_', label).strip('_')}"
        while stem in figures:
            stem += "_"
        read = [checkpoint.read(name) for name in some]
        figures[stem] = clusters_figure(read, title, width, at_peak=checkpoint.schedule_has_ended)
