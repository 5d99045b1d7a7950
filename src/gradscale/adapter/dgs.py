"""DGS on any optimizer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscale.adapter.adapted import Adapted
from gradscale.adapter.rescale import Factor, Rescaled
from gradscale.optim.dgs_scaler import IMPORTANCE, DGSScaler
from gradscale.optim.kernels.update_pass import NUMBERS
from gradscale.optim.members import Member, local_state
from gradscale.optim.rule import arithmetic_dtype
from gradscale.optim.sgd_rules import SGDRule
from gradscale.optim.step_numbers import StepNumbers, reads_gradients
from gradscale.sharding.dtensor import local_part

_NO_TRUST_RATIO = SGDRule()


class DGS(Adapted):
    """DGS on top of another optimizer: what that adds to an element is multiplied by the factor of its importance.

        w_i <- (1 - decay) w_i + factor_i u_i        u: the update of the base, without decoupled weight decay

    The factors are those of `DGSSGD`, of the gradient as it comes into `step()`. The base is stepped one tensor at a
    time: a copy of that tensor and its factors are all that is kept besides. What the base does is found out when it
    is wrapped (`traits`): what its weight decay is, which stays as it is where it shrinks the weights themselves, and
    whether one tensor's update depends on others, which is refused.

    `param_groups` and `state` are the base's. Options of a group stand in it with the prefix `dgs_`, for example
    `torch.optim.SGD([{"params": params, "dgs_gamma": 0.1}])`. In `state_dict()` so does what DGS keeps. It loads what
    the plain base has saved.

    Under DDP any base works, under FSDP1 and ZeRO those that are elementwise, under FSDP2 those that step shards as
    they step whole layers, which is tried in the first step.

    Args:
        base_optimizer: the optimizer, made of the parameters to train. It must not be stepped apart from this one.
        form, beta, sigma, gamma, eps, importance_decay, reset, reset_decay, reset_every, reset_spike,
            factor_bounds: see `DGSSGD`.
        module: the model, for names of parameters in messages.

    Raises:
        OptionError: (a ValueError) an option is out of range, or two contradict each other, or the base cannot be
            wrapped: its update of a tensor depends on other tensors (Prodigy), its state keeps weights (schedule-free
            optimizers), it wraps another one (Lookahead), or its `step` needs a closure (LBFGS).
    """

    prefix = "dgs_"
    scaler = DGSScaler()
    waits = True

    def __init__(
        self,
        base_optimizer: Optimizer,
        *,
        form: Literal["equation", "importance", "full", "normalized"] = "full",
        beta: float = 1.0,
        sigma: float = 1.0,
        gamma: float | None = None,
        eps: float = 1e-8,
        importance_decay: float = 0.0,
        reset: Literal["soft", "hard"] = "soft",
        reset_decay: float = 0.1,
        reset_every: int | None = None,
        reset_spike: float | None = None,
        factor_bounds: tuple[float, float] = (0.1, 10.0),
        module: nn.Module | None = None,
    ) -> None:
        options = {
            "form": form,
            "beta": beta,
            "sigma": sigma,
            "gamma": gamma,
            "eps": eps,
            "importance_decay": importance_decay,
            "reset": reset,
            "reset_decay": reset_decay,
            "reset_every": reset_every,
            "reset_spike": reset_spike,
            "factor_bounds": factor_bounds,
        }
        super().__init__(base_optimizer, options, module)

    def _take(self, together: list[Member], turns: list[tuple[Member, Tensor]], clock: int, *, last: bool) -> None:
        for member in together:
            self._own.of(member)
        numbers: StepNumbers | None = None
        if reads_gradients(together, _NO_TRUST_RATIO, self.scaler):
            numbers = StepNumbers(together, _NO_TRUST_RATIO, self.scaler, self._kernel)
            # DeepSpeed has taken away the gradients of earlier calls.
            away = [(member.param, grad) for member, grad in turns if member.param.grad is None]
            for param, grad in away:
                param.grad = grad
            try:
                numbers.fill(self._own.states, clock)
            finally:
                for param, _ in away:
                    param.grad = None
        self._update(turns, lambda member, grad: Rescaled(lambda: self._factor(member, local_part(grad), numbers)))

    def _factor(self, member: Member, grad: Tensor, numbers: StepNumbers | None) -> Factor:
        """Return the factors of the part of a tensor that is here."""
        dtype = arithmetic_dtype(grad)
        grad = grad.to(dtype)
        if not member.view.flat:
            return self._of_layer(member, 0, grad, local_state(self._own.of(member)), dtype, numbers)
        factors, kept = torch.ones_like(grad), self._own.of(member).get(IMPORTANCE)  # ones are of padding
        for row, segment in enumerate(member.scaled):
            place = slice(segment.start, segment.start + segment.length)
            state = {} if kept is None else {IMPORTANCE: kept[place]}
            factors[place] = self._of_layer(member, row, grad[place], state, dtype, numbers)
        return factors

    def _of_layer(
        self, member: Member, row: int, grad: Tensor, state: Any, dtype: torch.dtype, numbers: StepNumbers | None
    ) -> Factor:
        known = () if numbers is None else numbers.extras[id(member.param), row][NUMBERS].to(dtype).unbind()[1:]
        plan, constants = self.scaler.plan(member.group), self.scaler.constants(member.group)
        return self.scaler.factor(grad, None, state, dtype, plan, constants, known, 1.0)
