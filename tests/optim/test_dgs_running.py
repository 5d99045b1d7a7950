"""The running importance: what it is, what resets it, and what becomes of it without a gradient."""

import pytest
import torch

from gradscale.optim.dgs import DGSSGD
from gradscale.optim.dgs_scaler import HISTORY, IMPORTANCE
from tests.optim.kinds import DGSS
from tests.optim.pencil import near, step, tensor

# The running importance by hand, with rho = 1/2: A is 2 x 1/2 = 1 after the first gradient, of a weight of 1/2.
RUNNING = {
    "none": ({}, (0.5 * 1.0 + 0.5 * 4.0, 0.5 * 0.5 + 0.5)),
    "soft": ({"reset_every": 2, "reset_decay": 0.25}, (0.125 * 1.0 + 0.5 * 4.0, 0.125 * 0.5 + 0.5)),
    "hard": ({"reset_every": 2, "reset": "hard"}, (0.5 * 4.0, 0.5)),
    "spike": ({"reset_spike": 1.9, "reset": "hard"}, (0.5 * 4.0, 0.5)),
    "no spike": ({"reset_spike": 2.0, "reset": "hard"}, (0.5 * 1.0 + 0.5 * 4.0, 0.5 * 0.5 + 0.5)),
}


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("kernel", ["eager", "compiled"])
def test_the_running_importance_by_hand(name, kernel):
    options, (average, weight) = RUNNING[name]
    param = torch.nn.Parameter(torch.zeros(2, 1))
    optimizer = DGSSGD([param], lr=1.0, form="importance", importance_decay=0.5, eps=0.5, kernel=kernel, **options)
    step(optimizer, [[2.0], [-2.0]])
    near(param[:, 0], -2.0 / 2.5, 2.0 / 2.5, rel=1e-6)
    step(optimizer, [[4.0], [4.0]])
    near(param[:, 0], -2.0 / 2.5 - 4.0 / (average / weight + 0.5), 2.0 / 2.5 - 4.0 / (average / weight + 0.5), rel=1e-6)
    state = optimizer.state[param]
    assert state[IMPORTANCE].flatten().tolist() == pytest.approx([average, average])
    assert state[HISTORY].tolist()[:2] == pytest.approx([weight, average])


@pytest.mark.parametrize("cls", DGSS)
def test_a_parameter_without_a_gradient_takes_no_part(cls):
    """Its importance, what is known of its layer and its momentum wait, and the sum leaves it out."""
    options = {"importance_decay": 0.5, "reset_every": 3, "reset_spike": 1.5}
    one, other = torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(2, 5))
    optimizer = cls([one, other], form="normalized", **options)
    for number in range(8):
        one.grad = torch.randn(3, 3) * 3.0 ** (number == 5)
        other.grad = None if number in (2, 5, 6) else torch.randn(2, 5)
        before = {key: value.clone() for key, value in optimizer.state[other].items()}
        optimizer.step()
        if other.grad is None:
            for key, value in before.items():
                value, now = (value[:2], optimizer.state[other][key][:2]) if key == HISTORY else (value, value)
                assert torch.equal(value, now), key
        for param in (one, other):  # so that M is the mean of the importances at all times
            state = optimizer.state[param]
            torch.testing.assert_close(state[HISTORY][1], state[IMPORTANCE].mean())
    weights = [optimizer.state[param][HISTORY][0].item() for param in (one, other)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_sum_leaves_out_what_has_no_gradient(decay):
    one, other = tensor(1.0), tensor(1.0)
    optimizer = DGSSGD([one, other], lr=0.1, form="equation", importance_decay=decay)
    step(optimizer, [2.0], [6.0])
    near(one, 1 - 0.2 / (1 + 4))
    start = one.item()
    step(optimizer, [2.0], None)
    near(one, start - 0.2 / (1 + 1))


@pytest.mark.parametrize("cls", DGSS)
def test_resets_count_the_optimizers_steps_whoever_has_gradients(cls):
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = cls(params, importance_decay=0.5, reset_every=4, reset="hard")
    for number in range(1, 9):
        params[0].grad = torch.ones(2, 2)
        params[1].grad = torch.ones(2, 2) if number % 2 == 0 else None
        optimizer.step()
        # A hard reset leaves the weight of one gradient.
        assert (optimizer.state[params[0]][HISTORY][0].item() == 0.5) == (number in (1, 4, 8))
    assert optimizer.state[params[1]][HISTORY][0].item() == 0.5
    assert optimizer.param_groups[0]["steps"] == 8
