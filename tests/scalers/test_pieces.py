"""An element left out of all pieces would be counted nowhere; one in two of them, twice."""

import pytest
import torch

from gradscale.scalers.pieces import pieces

LAYOUTS = {
    "contiguous": lambda: torch.arange(24.0).view(4, 6),
    "transposed": lambda: torch.arange(24.0).view(4, 6).t(),
    "channels last": lambda: torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every other column": lambda: torch.arange(48.0).view(4, 12)[:, ::2],
    "every other row": lambda: torch.arange(48.0).view(8, 6)[::2],
    "gaps in three dimensions": lambda: torch.arange(240.0).view(4, 6, 10)[:, ::2, ::2],
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.empty(0, 3),
}


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
@pytest.mark.parametrize("name", LAYOUTS)
def test_pieces_are_views_of_every_element_once(name, size):
    tensor = LAYOUTS[name]()
    found = [piece for (piece,) in pieces(size, tensor)]
    assert all(piece.numel() <= size for piece in found)
    assert sorted(torch.cat([piece.flatten() for piece in found]).tolist()) == sorted(tensor.flatten().tolist())
    for piece in found:
        piece.neg_()
    assert torch.equal(tensor, -LAYOUTS[name]())


@pytest.mark.parametrize("other", [lambda t: t.contiguous(), lambda t: t.t().contiguous().t()])
@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("name", ["contiguous", "transposed", "every other column", "every other row"])
def test_tensors_of_other_layouts_are_cut_alike(name, size, other):
    tensor = LAYOUTS[name]()
    twin = other(tensor + 0.5)
    for left, right in pieces(size, tensor, twin):
        assert torch.equal(left + 0.5, right)
