"""The parts of a measurement that a wrong number would come from: turns, shared memory, allocations, bytes of state."""

import pytest
import torch

from gradscale.bench import problem
from gradscale.bench.allocations import peak_extra_bytes
from gradscale.bench.clock import Task, interleave, quartiles
from gradscale.bench.problem import EVERYTHING, GRADIENTS, NOTHING, Problem, ShortageError
from gradscale.bench.shapes import WORKLOADS
from gradscale.bench.state import state_bytes, step_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


def test_every_task_has_a_turn_in_every_round_in_an_order_that_rotates():
    calls = []
    tasks = [
        Task(lambda name=name: calls.append(f"prepare {name}"), lambda name=name: calls.append(name), times)
        for name, times in (("a", 2), ("b", 1), ("c", 1))
    ]
    seconds = interleave(tasks, 4, CPU)
    assert [[len(turn) for turn in task] for task in seconds] == [[2] * 4, [1] * 4, [1] * 4]
    assert all(time > 0 for task in seconds for turn in task for time in turn)
    ran = [call for call in calls if not call.startswith("prepare")]
    assert ran == list("aabcbcaacaabaabc")
    assert calls[:5] == ["prepare a", "a", "a", "prepare b", "b"]


def test_quartiles_are_those_of_the_sample():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


@pytest.mark.parametrize(
    ("shared", "params_apart", "grads_apart"),
    [(NOTHING, True, True), (GRADIENTS, True, False), (EVERYTHING, False, False)],
)
def test_contestants_have_the_same_values_and_share_what_is_said(shared, params_apart, grads_apart):
    tensors = Problem(WORKLOADS["tiny"], torch.bfloat16, CPU, shared)
    first, second, third = tensors.params(), tensors.params(), tensors.params()
    assert [tuple(param.shape) for param in first] == list(WORKLOADS["tiny"].shapes)
    for one, other in [*zip(first, second, strict=True), *zip(second, third, strict=True)]:
        assert one is not other and one.requires_grad and one.dtype == torch.bfloat16
        assert one.grad.dtype == torch.bfloat16 and one.grad.any()
        assert torch.equal(one, other) and torch.equal(one.grad, other.grad)
        assert (one.data_ptr() != other.data_ptr()) is params_apart
        assert (one.grad.data_ptr() != other.grad.data_ptr()) is grads_apart


def test_more_is_shared_the_less_memory_there_is():
    def plan(gigabytes):
        available = None if gigabytes is None else gigabytes * 1e9
        return problem.plan(WORKLOADS["llama-1b"], torch.float32, [9, 8, 8], available, together=True)

    # Each of three has 5.4 GB of parameters, as much of gradients, and 8 to 9 bytes of state per parameter.
    levels = {None: NOTHING, 76: NOTHING, 73: GRADIENTS, 65: GRADIENTS, 62: EVERYTHING, 53: EVERYTHING}
    assert {size: plan(size).shared for size in levels} == levels
    with pytest.raises(ShortageError, match=r"llama-1b in float32 needs \d+.\d GB .* 3 optimizers, even .*; 20.0 GB"):
        plan(20)


def test_what_is_held_at_the_worst_moment_is_measured():
    def hold_two_of_three():
        first = torch.empty(3 * MIB, dtype=torch.uint8)
        second = torch.empty(4 * MIB, dtype=torch.uint8)
        del first
        kept.append(torch.empty(2 * MIB, dtype=torch.uint8))
        del second

    kept = [torch.empty(50 * MIB, dtype=torch.uint8)]
    for _ in range(2):  # what is kept from before does not count
        assert peak_extra_bytes(hold_two_of_three, CPU) == 7 * MIB
    assert peak_extra_bytes(lambda: None, CPU) == 0
    assert peak_extra_bytes(lambda: kept[0].add_(kept[0]), CPU) == 0


def test_what_an_operation_holds_inside_is_measured():
    values = torch.zeros(4 * MIB, dtype=torch.uint8)
    # The result of the sum is one number; on the way the mean of 4 Mi squares of 8 bytes is made.
    assert peak_extra_bytes(lambda: values.to(torch.float64).square_().sum(), CPU) >= 32 * MIB


def test_a_storage_that_tensors_share_is_counted_once():
    param = torch.zeros(10, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = torch.optim.SGD([param])
    both = torch.zeros(20)
    optimizer.state[param] = {"labels": torch.zeros(10, dtype=torch.uint8), "a": both[:10], "b": both[10:], "n": 3}
    assert state_bytes(optimizer) == {"labels": 10, "a": 80}
    # Gradient and labels are read; parameter and other state are read and written.
    assert step_bytes(optimizer) == 40 + 10 + 2 * (40 + 80)
