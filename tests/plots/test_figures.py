"""What is in the pictures: series, labels, boundaries and counts, readable at the widths of a paper.

Guards against pictures that are drawn and do not show what they say.
"""

import json

import matplotlib.colors
import numpy as np
import pytest
import torch

import gradscale
from gradscale.plots import style
from gradscale.plots.checkpoint import Checkpoint, ClusterLayer
from gradscale.plots.clusters import chosen, clusters_figure, shares
from gradscale.plots.loss import loss_figure
from gradscale.plots.norms import norms_figure
from gradscale.plots.scales import scales_figure
from gradscale.sweep.grid import Axis, cells_of
from gradscale.sweep.heat_map import heat_map_figure
from gradscale.training.errors import ConfigError
from gradscale.training.records import RunRecord
from tests.plots.checkpoints import save, trained
from tests.plots.readable import check_readable

WIDTHS = (style.COLUMN_WIDTH, style.TEXT_WIDTH)
BLOCK = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "post_attention_layernorm")


def run(tmp_path, label="sgg_adamw", **values):
    empty = {"train_loss": [], "validation_loss": [], "scales": [], "norms": [], "whole_norm": []}
    return RunRecord(folder=tmp_path / label, label=label, **{**empty, **values})


def names(blocks):
    inside = [f"model.layers.{block}.{kind}.weight" for block in range(blocks) for kind in BLOCK]
    return ["model.embed_tokens.weight", *inside, "lm_head.weight"]


def cluster_layer(name="model.layers.0.mlp.up_proj.weight", size=4000, scale=1e-4, **values):
    generator = torch.Generator().manual_seed(size)
    momentum = torch.randn(size, generator=generator) * scale
    edges = (-scale, scale)
    labels = (momentum > edges[0]).to(torch.uint8) + (momentum > edges[1]).to(torch.uint8)
    kept = {"boundaries": edges, "scales": (0.5, 2.0, 0.4), "rate": 1.5e-4, "absolute": False}
    return ClusterLayer(
        name=name, momentum=momentum, labels=labels, **{**kept, "divisor": momentum.abs() + 1e-8, **values}
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_losses_are_lines_with_the_numbers_of_the_log(tmp_path, width):
    first = run(tmp_path, train_loss=[(1, 3.0), (2, 2.5)], validation_loss=[(2, 2.25)])
    others = [run(tmp_path, f"adamw_torch_fused (lr=1e-{i})", train_loss=[(1, 3.5), (2, 3.25)]) for i in range(6)]
    figure = loss_figure([first, *others], width)
    (axes,) = figure.axes
    assert [line.get_xydata().tolist() for line in axes.lines[:2]] == [[[1, 3.0], [2, 2.5]], [[2, 2.25]]]
    assert len(axes.lines) == 8 and axes.get_ylabel() == "loss (nats per token)" and axes.get_yscale() == "linear"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == [
        "sgg_adamw, training",
        "sgg_adamw, validation: 2.2500",
    ]
    assert len({(line.get_color(), line.get_alpha()) for line in axes.lines}) == 8
    check_readable(figure)
    assert (
        loss_figure([run(tmp_path, train_loss=[(1, 2.0), (2, 2.0), (3, 900.0)])], width).axes[0].get_yscale() == "log"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_scales_are_maps_of_the_logarithm_and_every_layer_has_its_row(tmp_path, width):
    layers = {name: {"scales": [0.5, 2.0, 1.0], "counts": [3, 3, 0]} for name in names(4)}
    rows = [{"step": step, "layers": layers} for step in (50, 100, 150)]
    two = {name: {"scales": [4.0, 1.0], "counts": [3, 3]} for name in names(4)}
    runs = [run(tmp_path, scales=rows), run(tmp_path, "sgg_lion", scales=[{"step": 10, "layers": two}])]
    figure = scales_figure(runs, width)
    maps = [[axes.collections[0].get_array() for axes in figure.axes[row : row + 3] if axes.axison] for row in (0, 3)]
    assert [one.shape for one in maps[0]] == [(18, 3)] * 3 and len(maps[1]) == 2
    assert (maps[0][0] == -1).all() and (maps[0][1] == 1).all() and maps[0][2].mask.all()  # no elements
    assert (maps[1][0] == 2).all() and (maps[1][1] == 0).all()
    assert [axes.get_title() for axes in figure.axes[:6]] == ["lowest", "middle", "highest", "lowest", "highest", ""]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][-1] == "lm_head"
    check_readable(figure)
    many = {name: {"scales": [1.0, 1.0], "counts": [1, 1]} for name in names(60)}  # more than lines on a page
    figure = scales_figure([run(tmp_path, scales=[{"step": 1, "layers": many}])], width)
    assert figure.get_figheight() <= style.PAGE_HEIGHT and len(figure.axes[0].get_yticks()) < 100
    check_readable(figure)


@pytest.mark.parametrize("width", WIDTHS)
def test_clusters_are_histograms_with_boundaries_and_bars_at_their_rates(width):
    layers = [cluster_layer(), cluster_layer("lm_head.weight", size=50_000, scale=3e-3)]
    figure = clusters_figure(layers, "sgg_adamw, step 100", width)
    columns = 3 if width > 5 else 2
    assert len(figure.axes) == 2 * columns
    for row, layer in enumerate(layers):
        momentum, rates, *rest = figure.axes[row * columns : (row + 1) * columns]
        edges = [line.get_xdata()[0] for line in momentum.lines]
        assert edges == list(layer.boundaries) and np.all(np.diff(edges) > 0)
        filled = [patch for patch in momentum.patches if patch.get_fill()]
        counts = [patch.get_data().values.sum() for patch in filled]
        assert counts == [int((layer.labels == one).sum()) for one in range(3)]  # no element is outside
        ends = [bar.get_x() + bar.get_width() for bar in rates.patches]
        np.testing.assert_allclose(ends, [layer.rate * scale for scale in layer.scales], rtol=1e-12)
        percent = [float(text.get_text().rpartition(", ")[2].rstrip(" %")) for text in rates.get_yticklabels()]
        np.testing.assert_allclose(percent, shares(layer), atol=0.51)
        assert "momentum" in momentum.get_xlabel() and "lr × scale" in rates.get_xlabel()
        for axes in rest:
            filled = [patch for patch in axes.patches if patch.get_fill()]
            assert sum(patch.get_data().values.sum() for patch in filled) == layer.labels.numel()
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == ["lowest", "middle", "highest"]
    check_readable(figure)


def test_momentum_far_from_the_rest_is_left_out_and_said():
    layer = cluster_layer(size=20_000)
    layer.momentum[0] = 1.0  # ten thousand times the others
    figure = clusters_figure([layer], "x")
    assert "(< 0.1 % outside)" in figure.axes[0].get_title(loc="left")
    assert figure.axes[0].get_xlim()[1] < 1e-3
    with_nan = cluster_layer(size=5000)
    with_nan.momentum[:3] = torch.nan
    filled = [patch for patch in clusters_figure([with_nan], "x").axes[0].patches if patch.get_fill()]
    assert sum(patch.get_data().values.sum() for patch in filled) == 4997


@pytest.mark.parametrize("width", WIDTHS)
def test_clusters_of_real_checkpoints_are_readable(tmp_path, width):
    kinds = {
        "adamw": lambda model: gradscale.SGGAdamW(model.named_parameters(), recluster_interval=3, lr=1e-3),
        "lion": lambda model: gradscale.SGGLion(model.named_parameters(), recluster_interval=3, n_clusters=5, lr=3e-5),
        "absolute": lambda model: gradscale.SGGSGD(
            model.named_parameters(), lr=10.0, momentum=0.9, recluster_interval=3, momentum_sign="absolute"
        ),
        "many": lambda model: gradscale.SGGAdamW(model.named_parameters(), recluster_interval=3, n_clusters=10),
        "layer": lambda model: gradscale.SGGAdam(model.named_parameters(), recluster_interval=3, grouping="gmm"),
    }
    for name, make in kinds.items():
        checkpoint = Checkpoint(save(trained(make)[0], tmp_path / name))
        layers = [checkpoint.read(one) for one in checkpoint.names]
        figure = clusters_figure(layers, f"sgg_{name}, step 6", width, at_peak=name == "lion")
        check_readable(figure)
        assert len(figure.axes) == len(layers) * (3 if width > 5 and name in ("adamw", "many", "layer") else 2)
        assert figure.axes[0].get_xlabel().startswith("|momentum|" if name == "absolute" else "momentum")


def test_layers_are_chosen_evenly():
    assert chosen(list("abc"), 4) == ["a", "b", "c"]
    assert chosen([str(i) for i in range(16)], 4) == ["0", "5", "10", "15"]


def norm_lines(blocks, steps=(10, 20, 30), total=1.0):
    return [
        {
            "step": step,
            "total": total,
            "norms": {name: 0.1 * step * (1 + i % 3) for i, name in enumerate(names(blocks))},
        }
        for step in steps
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_norms_of_a_kind_are_the_root_of_the_sum_of_squares(tmp_path, width):
    lines = norm_lines(3)
    figure = norms_figure([run(tmp_path, norms=lines)], width)
    (axes,) = figure.axes
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(curves) == ["embed_tokens", *BLOCK, "lm_head"] and axes.get_yscale() == "log"
    for kind in BLOCK:
        expected = [
            np.sqrt(sum(norm**2 for name, norm in line["norms"].items() if f".{kind}." in name)) for line in lines
        ]
        np.testing.assert_allclose(curves[kind], expected)
    assert axes.get_ylabel() == "gradient norm (after clipping)"  # nothing says what they were before it
    check_readable(figure)


def test_norms_are_those_before_clipping_where_the_log_says_by_how_much(tmp_path):
    lines = norm_lines(1, total=0.5)
    one = run(tmp_path, norms=lines, whole_norm=[(10, 2.0), (20, 0.5), (30, 0.49999)])
    figure = norms_figure([one], layers=["lm_head"])
    (line,) = figure.axes[0].lines
    logged = [one["norms"]["lm_head.weight"] for one in lines]
    np.testing.assert_allclose(line.get_ydata(), np.array([4.0, 1.0, 1.0]) * logged)
    assert figure.axes[0].get_ylabel() == "gradient norm"
    unknown = run(tmp_path, "other", norms=lines, whole_norm=[(10, 2.0)])
    figure = norms_figure([one, unknown], layers=["lm_head"])
    assert figure.axes[0].get_ylabel() == "gradient norm (after clipping)"
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), logged)  # both the same, so that they compare


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_have_panels_and_layers_that_are_asked_for_have_lines(tmp_path, width):
    runs = [run(tmp_path, label, norms=norm_lines(3)) for label in ("sgg_adamw", "adamw_torch_fused", "sgg_lion")]
    figure = norms_figure(runs, width, layers=["1", "lm_*"])
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["sgg_adamw", "adamw_torch_fused", "sgg_lion"]
    assert [line.get_label() for line in panels[0].lines] == [f"1.{kind}" for kind in BLOCK] + ["lm_head"]
    assert len({(line.get_color(), line.get_linestyle()) for line in panels[0].lines}) == 5
    check_readable(figure)
    with pytest.raises(ConfigError, match="--layers q_prj: no such layer in .*did you mean"):
        norms_figure(runs, layers=["q_prj"])
    with pytest.raises(ConfigError, match="42 layers match, 32 lines can be told apart"):
        norms_figure([run(tmp_path, norms=norm_lines(10))], layers=["*"])


def heat_map(axes, width):
    results = {}
    for index, cell in enumerate(cells_of(axes)):
        status = "diverged" if index == 1 else "finished"
        results[cell] = None if index == 2 else {"status": status, "validation_loss": 3 + 0.01 * index}
    return heat_map_figure(axes, results, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_heat_maps_have_a_number_or_a_word_in_every_cell(width):
    rates = Axis("learning_rate", ("1e-5", "1e-4", "1e-3", "1e-2", "1e-1"))
    batches = Axis("per_device_train_batch_size", ("128", "256", "512", "1024", "2048", "4096"))
    figure = heat_map([rates, batches], width)
    panel = figure.axes[0]
    texts = [text.get_text() for text in panel.texts]
    assert (
        texts[:4] == ["3.000", *(("diverged", "missing") if width > 5 else ("div.", "–")), "3.030"] and len(texts) == 30
    )
    assert panel.images[0].get_array().shape == (5, 6) and panel.images[0].get_array().mask.sum() == 2
    assert panel.get_ylabel() == "learning_rate" and figure.get_supxlabel() == "per_device_train_batch_size"
    check_readable(figure)
    long = Axis("optim_args", ("n_clusters=2,recluster_interval=0.05", "n_clusters=3,recluster_interval=0.05"))
    check_readable(heat_map([rates, long], width))
    figure = heat_map(
        [Axis("lr", ("1e-4", "1e-3")), batches, Axis("optim", ("sgg_adamw", "adamw_torch")), Axis("seed", ("1", "2"))],
        width,
    )
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels][:2] == ["optim=sgg_adamw, seed=1", "optim=sgg_adamw, seed=2"] and len(
        panels
    ) == 4
    check_readable(figure)


def test_colours_and_lines_are_told_apart_and_the_palette_is_okabe_and_itos():
    looks = [tuple(style.line(index).values()) for index in range(32)]
    assert len(set(looks)) == 32 and len({line for _, line in looks[:4]}) == 4
    assert {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"} <= set(style.COLOURS)
    assert all(matplotlib.colors.is_color_like(colour) for colour in style.COLOURS)


def test_the_same_figure_makes_the_same_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        style.save(loss_figure([run(tmp_path, train_loss=[(1, 3.0), (2, 2.5)])]), tmp_path / folder / "loss")
    for name in ("loss.png", "loss.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_style_leaves_that_of_its_caller_alone():
    before = json.dumps(dict(matplotlib.rcParams), default=str)
    loss_figure([])
    assert json.dumps(dict(matplotlib.rcParams), default=str) == before
