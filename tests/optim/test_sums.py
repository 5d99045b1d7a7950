"""Sums over gradients are read once, in one pass, and are those of the eager path to float64's last digits."""

import pytest
import torch
import torch._inductor.compile_fx as inductor

from gradscale.optim.kernels import sums
from gradscale.optim.kernels.sums import sums_compiled, sums_eagerly


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(sums, "_CODE", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_weight", [False, True])
def test_compiled_sums_are_the_eager_ones(dtype, with_weight):
    torch.manual_seed(0)
    for shape in [(700, 300), (11,), (3, 2, 5), ()]:
        tensors = [torch.randn(shape).to(dtype) for _ in range(1 + with_weight)]
        found = sums_compiled(tensors)
        assert len(found) == (3 if with_weight else 1)
        for one, other in zip(found, sums_eagerly(tensors), strict=True):
            assert one.dtype == torch.float64 and one.shape == ()
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
    (code,) = sums._CODE.values()
    assert code is not None  # it was compiled, and once for all shapes


def test_every_kind_of_tensor_is_compiled_however_many_there_are():
    """torch.compile gives up after eight kinds for one piece of code."""
    for _ in range(3):
        sums._CODE.clear()
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            sums_compiled([torch.ones(9, dtype=dtype)])
        assert len(sums._CODE) == 4 and None not in sums._CODE.values()


def test_sums_by_hand():
    grad, weight = torch.tensor([[0.5, -0.25]]), torch.tensor([[3.0, 4.0]])
    assert [float(one) for one in sums_compiled([grad, weight])] == [0.75, 25.0, 0.3125]


def test_gaps_in_memory_are_not_summed():
    wide = torch.full((4, 6), 100.0)
    wide[:, ::2] = 1.0
    assert float(sums_compiled([wide[:, ::2]])[0]) == 12.0


def test_what_is_not_finite_is_seen():
    for bad in (float("inf"), float("nan")):
        total = float(sums_compiled([torch.tensor([1.0, bad, 2.0])])[0])
        assert total == bad or total != total


def test_without_a_compiler_sums_are_eager(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(inductor, "compile_fx", broken)
    assert float(sums_compiled([torch.tensor([1.0, -2.0])])[0]) == 3.0
    assert list(sums._CODE.values()) == [None]


def test_wrong_code_is_not_used(monkeypatch):
    inner = inductor.compile_fx_inner

    def forgets_the_last_elements(*arguments, **options):
        output = inner(*arguments, **options)
        call = output.current_callable
        output.current_callable = lambda given: call(
            [x - x // 16 if isinstance(x, int) and x > 16 else x for x in given]
        )
        return output

    monkeypatch.setattr(inductor, "compile_fx_inner", forgets_the_last_elements)
    assert float(sums_compiled([torch.ones(1000)])[0]) == 1000.0
