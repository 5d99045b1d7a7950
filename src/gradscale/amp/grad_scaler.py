"""`torch.amp.GradScaler` with ALSDGC deciding about the loss scale, and about clipping where it is asked to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from gradscale.amp.clipping import Clipper, ranks_of
from gradscale.amp.gradient_norm import all_reduce
from gradscale.control import ALSDGC, Decision

_LISTED = ("growth_factor", "backoff_factor", "growth_interval")


class GradScaler(torch.amp.GradScaler):
    """A gradient scaler for any place that takes torch's, with a scale that bad data does not ruin.

    The four calls are torch's: make it, `scale(loss).backward()`, `step(optimizer)`, `update()`. In addition

    * a loss that is not finite skips the step and leaves the scale alone: no smaller scale would have helped;
    * what an overflow, and how many good steps, do to the scale is the controller's to say;
    * `clip_grad_norm_(optimizer)`, between `backward()` and `step()`, clips at the controller's threshold;
    * with several ranks, all of them skip the same steps and have the same scale, whether gradients are replicated
      (DDP) or sharded (FSDP, as with `ShardedGradScaler`).

    A skipped step changes nothing in the optimizer. Whether a step of one of several optimizers is skipped for a
    gradient that is not finite is decided for each of them, as in torch; a bad loss skips all.

    Args:
        device: "cuda", "cpu", or another device type.
        init_scale: scale to begin with; 65536 unless the controller says otherwise.
        growth_factor: of the controller that is made here.
        backoff_factor: of the controller that is made here.
        growth_interval: of the controller that is made here.
        enabled: False makes scaling a no-op; clipping still works, and bad steps are still skipped where it is used.
        controller: decides; must manage a loss scale where `enabled`. None: the robust one.
        process_group: ranks that decide together, one small reduction per optimizer and step. None: all ranks, if there
            are several; False: this rank decides alone, which is safe only if the caller keeps ranks alike.

    Attributes:
        controller: the ALSDGC that decides.
        decision: about the step that is under way once it is known, else about the last one; None before the first.

    Raises:
        ValueError: the controller manages no loss scale, or options for a new controller came along with one.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float | None = None,
        growth_factor: float | None = None,
        backoff_factor: float | None = None,
        growth_interval: int | None = None,
        enabled: bool = True,
        *,
        controller: ALSDGC | None = None,
        process_group: Any = None,
    ) -> None:
        given = {"growth_factor": growth_factor, "backoff_factor": backoff_factor, "growth_interval": growth_interval}
        given = {name: value for name, value in given.items() if value is not None}
        super().__init__(device, enabled=enabled)
        enabled = self._enabled  # torch turns it off where the device is missing
        if controller is None:
            scale = 2.0**16 if init_scale is None else init_scale
            controller = ALSDGC("robust", loss_scale=scale if enabled else None, **given)  # type: ignore[arg-type]
        elif given or (init_scale is not None and init_scale != controller.loss_scale):
            names = [*(["init_scale"] if init_scale is not None else []), *given]
            raise ValueError(f"give {', '.join(names)} to the controller, ALSDGC(loss_scale=..., ...), not beside it")
        elif enabled and controller.loss_scale is None:
            raise ValueError("the controller manages no loss scale: make it with ALSDGC(loss_scale=65536.0, ...)")
        self.controller = controller
        self.decision: Decision | None = None
        self._process_group = process_group
        self._clippers: dict[bool, Clipper] = {}
        self._loss: Tensor | None = None  # sum over the calls of scale() since the last update()
        self._lr: float | None = None
        self._decided = False  # whether `decision` is about the step under way
        self._clipped: set[int] = set()  # optimizers that it took into account
        self._reduce_later = False
        self._seen: dict[int, Tensor] = {}  # optimizer: gradients not finite, loss; on the device
        self._read: dict[int, tuple[bool, float]] = {}  # the same on the host
        if enabled:
            self._init_scale = self._managed_scale()
            for name in _LISTED:
                # Shown by torch's own getters, and saved; the controller does not read them here.
                setattr(self, f"_{name}", given.get(name, controller.options[name].default))

    def scale(self, outputs: Any) -> Any:
        """Return the loss (or losses) times the scale. What it is given counts as this step's unscaled loss."""
        return super().scale(self._watched(outputs))

    def observe_loss(self, loss: Tensor) -> None:
        """Add a loss that `scale()` does not see to this step's loss.

        Args:
            loss: unscaled; of several elements the mean counts.
        """
        if loss.numel():
            mean = loss.detach().float().mean()
            self._loss = mean if self._loss is None else self._loss + mean.to(self._loss.device)

    def clip_grad_norm_(self, *optimizers: torch.optim.Optimizer, per_group: bool = False) -> Decision:
        """Unscale gradients, clip them at the controller's threshold, and decide whether the step is to be skipped.

        Call it after `backward()` and before `step()`, once per `update()`, with all optimizers whose gradients belong
        to the norm.

        Args:
            optimizers: at least one.
            per_group: a threshold for each param group instead of one for all.

        Raises:
            RuntimeError: it was called before in this step.
        """
        if not optimizers:
            raise ValueError("clip_grad_norm_() needs an optimizer")
        if self._decided:
            raise RuntimeError("clip_grad_norm_() has been called already: give it all optimizers at once")
        found = None
        if self._enabled:
            # Without a reduction of its own: the norm, the loss and what was found travel together.
            self._reduce_later = True
            try:
                for optimizer in optimizers:
                    if self._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY:
                        self.unscale_(optimizer)
            finally:
                self._reduce_later = False
            found = torch.stack([self._seen[id(optimizer)][0] for optimizer in optimizers]).sum()
        clipper = self._clippers.setdefault(
            per_group,
            Clipper(self.controller, self.controller.norm_type, group=self._process_group, per_group=per_group),
        )
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._lr = float(groups[0].get("lr", math.nan))
        decision = clipper.clip_([g["params"] for g in groups], loss=self._loss, found_inf=found, lr=self._lr)
        self._clipped.update(map(id, optimizers))
        self.follow(decision)
        return decision

    @property
    def norm(self) -> float:
        """Norm before the last clipping; NaN where there was none."""
        return next((clipper.norm for clipper in self._clippers.values() if not math.isnan(clipper.norm)), math.nan)

    def follow(self, decision: Decision) -> None:
        """Take a decision of the controller about the step under way: `step()` and `update()` do what it says."""
        self.decision, self._decided = decision, True
        if self._enabled and decision.skip:
            for state in self._per_optimizer_states.values():
                for found in state["found_inf_per_device"].values():
                    found.fill_(1.0)  # read by fused optimizers too

    def found_inf(self) -> Tensor | None:
        """Return how many optimizers have gradients that are not finite, on the device; None before `unscale_()`."""
        return torch.stack([seen[0] for seen in self._seen.values()]).sum() if self._seen else None

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Step the optimizer with unscaled gradients, unless they or the loss say that it should be skipped."""
        if not self._enabled and self._decided and self.decision is not None and self.decision.skip:
            return None
        return super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """End the step: ask the controller, unless clipping has already, and set the scale for the next one.

        Args:
            new_scale: sets the scale by hand, within the controller's bounds.
        """
        if self._enabled:
            scale, _ = self._check_scale_growth_tracker("update")
            if new_scale is not None:
                super().update(new_scale)
                self._adopt(self.get_scale())
            else:
                if not self._decided:
                    found, loss = self._on_host()
                    self.decision = self.controller.observe(norm=None, loss=loss, found_inf=found, lr=self._lr)
                scale.fill_(self._managed_scale())
            self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
        self._decided = False
        self._clipped.clear()
        self._loss = None
        self._seen.clear()
        self._read.clear()

    def set_growth_factor(self, new_factor: float) -> None:
        """Refuse: the controller grows the scale."""
        raise _fixed("growth_factor", new_factor)

    def set_backoff_factor(self, new_factor: float) -> None:
        """Refuse: the controller lowers the scale."""
        raise _fixed("backoff_factor", new_factor)

    def set_growth_interval(self, new_interval: int) -> None:
        """Refuse: the controller grows the scale."""
        raise _fixed("growth_interval", new_interval)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's entries, so that its own scaler can continue, and the controller's state."""
        state = super().state_dict()
        return {**state, "controller": self.controller.state_dict()} if self._enabled else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or, with its scale alone, of torch's.

        Raises:
            ValueError: the controller's state is damaged or does not fit. Nothing has changed then.
            RuntimeError: the state is that of a scaler that was not enabled.
        """
        if not self._enabled:
            return
        if "controller" in state_dict:
            self.controller.load_state_dict(state_dict["controller"])
        elif state_dict:
            self._adopt(float(state_dict["scale"]))
        now = {"scale": self._managed_scale(), "_growth_tracker": 0}
        super().load_state_dict({**super().state_dict(), **now} if state_dict else {})

    def _watched(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            self.observe_loss(outputs)
            return outputs
        if isinstance(outputs, list | tuple):
            for one in outputs:
                self._watched(one)
            return outputs
        return (self._watched(one) for one in outputs) if isinstance(outputs, Iterable) else outputs

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """Unscale as torch does, then let all ranks find the same. The one place that every path goes through."""
        # FSDP may keep gradients in float16; so does ShardedGradScaler.
        allowed = allow_fp16 or (self._process_group is not None and self._process_group is not False)
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allowed)
        device = found_inf.device
        count = sum((one.to(device) for one in found.values()), torch.zeros_like(found_inf))
        loss = torch.zeros_like(found_inf) if self._loss is None else self._loss.to(device)
        numbers = torch.stack([count, loss])
        ranks = ranks_of(self._process_group)
        if ranks > 1:
            if not found:
                found[device] = found_inf  # all of this optimizer's gradients are on other ranks
            if not self._reduce_later:
                all_reduce(numbers, "sum", self._process_group)
                numbers[1] /= ranks
        bad = ((numbers[0] > 0) | ~numbers[1].isfinite()).float()
        if self._decided and self.decision is not None and self.decision.skip:
            bad.fill_(1.0)
        for one in found.values():
            one.copy_(bad)
        self._seen[id(optimizer)] = numbers
        rate = optimizer.param_groups[0].get("lr") if optimizer.param_groups else None
        self._lr = None if rate is None else float(rate)
        return found

    def _maybe_opt_step(
        self, optimizer: torch.optim.Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        if self._decided and self.decision is not None and self.decision.skip:
            return None
        if id(optimizer) not in self._clipped:  # otherwise the decision knew its gradients
            found, loss = self._numbers(optimizer)
            if found or not math.isfinite(loss):
                return None
        result: float | None = optimizer.step(*args, **kwargs)
        return result

    def _numbers(self, optimizer: torch.optim.Optimizer) -> tuple[bool, float]:
        """Whether a gradient of an optimizer is not finite, and the loss; one transfer from the device at most."""
        if id(optimizer) not in self._read:
            count, loss = self._seen[id(optimizer)].tolist()
            self._read[id(optimizer)] = (not count == 0, loss)
        return self._read[id(optimizer)]

    def _on_host(self) -> tuple[bool, float | None]:
        unread = [key for key in self._seen if key not in self._read]
        if not self._seen:
            raise AssertionError("No inf checks were recorded prior to update.")
        if unread:
            numbers = torch.stack([self._seen[key] for key in unread]).tolist()
            for key, (count, loss) in zip(unread, numbers, strict=True):
                self._read[key] = (not count == 0, loss)
        values = list(self._read.values())
        return any(found for found, _ in values), None if self._loss is None else values[-1][1]

    def _managed_scale(self) -> float:
        scale = self.controller.loss_scale
        assert scale is not None  # checked by the constructor
        return scale

    def _adopt(self, scale: float) -> None:
        """Let the controller go on from another loss scale."""
        state = self.controller.state_dict()
        state["rules"]["loss_scale"]["scale"] = scale
        self.controller.load_state_dict(state)


def _fixed(name: str, value: float) -> ValueError:
    return ValueError(f"{name}={value!r} cannot be set here: the controller was made with its own, ALSDGC({name}=...)")
