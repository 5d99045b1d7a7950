"""The cost model speaks of the code that is there, and docs/speed.md shows what it computes."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradscale
from gradscale.bench import cost_model
from gradscale.bench.cost_model import H100, Layout, cost, ring
from gradscale.bench.shapes import WORKLOADS, Workload
from gradscale.bench.state import state_bytes, step_bytes
from gradscale.doctor.memory import COUNTS
from gradscale.scalers import histogram, sgg
from gradscale.scalers.occupied import Occupied

PAGE = (Path(__file__).parent.parent.parent / "docs" / "speed.md").read_text()
FEW_NUMBERS_PER_LAYER = 0.02  # bytes per parameter of the small model here


def test_the_page_shows_the_table_that_the_model_computes():
    assert cost_model.table() in PAGE


def test_the_counts_are_those_that_a_grouping_sends():
    assert cost_model.COUNTS == COUNTS
    # docs/engines.md gives this layer count and size for the LLaMA of 1.34 billion parameters.
    assert cost(WORKLOADS["llama-1b"], 2, Layout(), H100).sent == 44_391_080


@pytest.mark.parametrize("labels", ["frozen", "live"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layout_has_the_bytes_of_the_optimizer(labels, dtype):
    params = [torch.zeros(200, 300, dtype=dtype, requires_grad=True) for _ in range(2)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = gradscale.SGGAdamW(params, labels=labels)
    optimizer.step()
    number = sum(param.numel() for param in params)
    moment = optimizer.state[params[0]]["exp_avg"].itemsize
    layout = Layout(dtype.itemsize, dtype.itemsize, moment, 1 if labels == "frozen" else 0)
    assert sum(state_bytes(optimizer).values()) / number == pytest.approx(layout.state, abs=FEW_NUMBERS_PER_LAYER)
    assert step_bytes(optimizer) / number == pytest.approx(layout.step, abs=FEW_NUMBERS_PER_LAYER)


def test_the_bytes_per_parameter_that_the_page_names_are_those_of_the_layouts():
    """(float32, bfloat16, bfloat16 with float32 moments, with Kahan's summation) x (frozen, live)."""
    frozen = [Layout(), Layout(2, 2, 2), Layout(2, 2, 4), Layout(2, 2, 2, compensation=2)]
    live = [Layout(label=0), Layout(2, 2, 2, 0), Layout(2, 2, 4, 0), Layout(2, 2, 2, 0, compensation=2)]
    assert [layout.step for layout in frozen] == [29, 15, 23, 19]
    assert [layout.step for layout in live] == [28, 14, 22, 18]
    for layouts in (frozen, live):
        for layout in layouts:
            assert f"| {layout.state} | {layout.step} | {layout.grouping} |" in PAGE


def test_every_rank_has_its_share_of_the_elements_and_all_of_the_statistics():
    model = Workload("", "", ((1000, 1000),) * 10)
    one, eight = cost(model, 1, Layout(), H100), cost(model, 8, Layout(), H100)
    assert (one.parameters, one.state, one.step, one.sent) == (10e6, 90e6, 290e6, 0)
    assert (eight.parameters, eight.state, eight.step) == (1.25e6, 11.25e6, 36.25e6)
    assert one.grouping - eight.grouping == pytest.approx((10e6 - 1.25e6) * 13)
    assert eight.sent == ring(10 * 65_281 * 4, 8) == pytest.approx(2 * 7 / 8 * 2_611_240)
    assert one.amortized(500) > 1 and one.amortized(1000) - 1 == pytest.approx((one.amortized(500) - 1) / 2)


def test_the_statistics_of_a_layer_move_about_what_the_model_says_at_most():
    counts = torch.stack([histogram.count_values(torch.randn(100_000) * 10**-index)[0] for index in range(32)])
    histogram.bin_values(counts.device)  # once per process
    with _Moved() as moved:
        occupied = Occupied.of(counts)
        occupied.center()
        sgg.mda_over_clusters([sgg.group_layers(occupied, 3)])
    assert 0.8 * cost_model.STATISTICS_BYTES < moved.bytes / 32 <= 1.1 * cost_model.STATISTICS_BYTES


class _Moved(TorchDispatchMode):
    """Adds up what tensor operations read and write. Of what is looked up in, only the results count."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("gather", "searchsorted", "index"):
            args = args[1:]
        if not any(item.alias_info is not None and not item.alias_info.is_write for item in func._schema.returns):
            self.bytes += sum(item.nbytes for item in tree_leaves((args, out)) if isinstance(item, torch.Tensor))
        return out
