"""Clipping rules of others, written from their formulas, and ZClip's and AutoClip's own packages where installed."""

from __future__ import annotations

import bisect
import importlib
import importlib.metadata
import importlib.util
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gradscale.control import ALSDGC
from gradscale.control.spread import center_and_deviation


@dataclass(frozen=True)
class Answer:
    """What a rule does with one step's gradients: multiply them by a coefficient, or leave the step out."""

    coefficient: float
    skip: bool = False


class ClipRule(Protocol):
    """A rule that sees norm and loss of each step."""

    def __call__(self, norm: float, loss: float) -> Answer:
        """Decide about one step. NaN in the coefficient is what the rule really does to the gradients."""


def clip_to(threshold: float, norm: float) -> Answer:
    """Answer as torch's clip_grad_norm_ does: NaN stays NaN, infinity is multiplied by 0 (which makes NaN of it)."""
    coefficient = threshold / (norm + 1e-6)
    if math.isnan(coefficient) or math.isinf(norm):
        return Answer(math.nan)
    return Answer(min(1.0, coefficient))


class Nothing:
    """No clipping."""

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        return Answer(1.0 if math.isfinite(norm) else math.nan)


class Fixed:
    """A fixed threshold, as `max_grad_norm` of the Trainer."""

    def __init__(self, threshold: float = 1.0) -> None:
        self._threshold = threshold

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        return clip_to(self._threshold, norm)


class ZClip:
    """ZClip (arXiv 2504.02507): mean and variance by EMA, and mean + z0^2/z * std for a norm whose z is above z0."""

    def __init__(self, alpha: float = 0.97, z0: float = 2.5, warmup: int = 25) -> None:
        self._alpha, self._z0, self._warmup = alpha, z0, warmup
        self._first: list[float] = []
        self._mean = self._var = math.nan

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        if len(self._first) < self._warmup:
            self._first.append(norm)
            if len(self._first) == self._warmup:
                self._mean = sum(self._first) / self._warmup
                self._var = sum((one - self._mean) ** 2 for one in self._first) / self._warmup
            return Answer(1.0 if math.isfinite(norm) else math.nan)
        std = math.sqrt(self._var) if self._var >= 0 else math.nan
        z = (norm - self._mean) / (std + 1e-6)
        kept = self._mean + self._z0 * std * self._z0 / z if z > self._z0 else norm
        self._mean = self._alpha * self._mean + (1 - self._alpha) * kept
        self._var = self._alpha * self._var + (1 - self._alpha) * (kept - self._mean) ** 2
        return clip_to(kept, norm) if kept < norm or not math.isfinite(norm) else Answer(1.0)


class AutoClip:
    """AutoClip (arXiv 2007.14469): the threshold is a percentile of all norms so far."""

    def __init__(self, percentile: float = 10.0) -> None:
        self._percentile = percentile
        self._sorted: list[float] = []

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        if math.isfinite(norm):  # a list with NaN cannot be sorted; the original keeps it and is poisoned by it
            bisect.insort(self._sorted, norm)
        if not self._sorted:
            return Answer(math.nan)
        place = self._percentile / 100 * (len(self._sorted) - 1)
        low = math.floor(place)
        high = min(low + 1, len(self._sorted) - 1)
        threshold = self._sorted[low] + (place - low) * (self._sorted[high] - self._sorted[low])
        return clip_to(threshold, norm)


class AdaGC:
    """AdaGC (arXiv 2502.11034): clip to lambda times an EMA of the clipped norms; a fixed threshold in the first steps.

    The paper does it per tensor; here it is done to the whole norm, as the other rules.
    """

    def __init__(self, limit: float = 1.05, beta: float = 0.98, warmup: int = 100, first: float = 1.0) -> None:
        self._limit, self._beta, self._warmup, self._first = limit, beta, warmup, first
        self._steps, self._ema = 0, math.inf

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        self._steps += 1
        if self._steps <= self._warmup:
            answer = clip_to(self._first, norm)
            self._ema = min(self._ema, norm * answer.coefficient)
            return answer
        answer = clip_to(self._limit * self._ema, norm)
        self._ema = self._beta * self._ema + (1 - self._beta) * norm * answer.coefficient
        return answer


class SkipStep:
    """OLMo-core's skip-step rule: skip where loss or norm is more than 6 standard deviations above its last 128."""

    def __init__(self, sigmas: float = 6.0, window: int = 128) -> None:
        self._sigmas, self._window = sigmas, window
        self._norms: deque[float] = deque(maxlen=window + 1)
        self._losses: deque[float] = deque(maxlen=window + 1)

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        self._norms.append(norm)
        self._losses.append(loss)
        if len(self._norms) < max(2, self._window // 2):
            return Answer(1.0 if math.isfinite(norm) else math.nan)
        fine = self._usual(self._losses) and self._usual(self._norms)
        return Answer(1.0, skip=not fine)

    def _usual(self, values: deque[float]) -> bool:
        *before, last = values
        mean = sum(before) / len(before)
        std = math.sqrt(sum((one - mean) ** 2 for one in before) / max(1, len(before) - 1))
        return last <= mean + self._sigmas * std  # false with NaN, as long as one is in the window


class Guard:
    """A guard by median and MAD: clip to median + 6 MAD of the last 128 norms that it did not clip."""

    def __init__(self, factor: float = 6.0, window: int = 128) -> None:
        self._factor = factor
        self._norms: deque[float] = deque(maxlen=window)

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        if not math.isfinite(norm):
            return Answer(1.0, skip=True)
        if len(self._norms) >= 20:
            median, deviation = center_and_deviation(self._norms)
            threshold = median + self._factor * deviation / 1.4826
            if norm > threshold:
                return clip_to(threshold, norm)
        self._norms.append(norm)
        return Answer(1.0)


class Ours:
    """The controller of this package."""

    def __init__(self, mode: str = "robust", lr: float = 1e-3) -> None:
        self._controller, self._lr = ALSDGC(mode), lr

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        decision = self._controller.observe(norm=norm, loss=loss, lr=self._lr)
        return Answer(decision.coefficient(norm), decision.skip)


class Installed:
    """A clipper that wants a model: it gets one of a single parameter whose gradient is the norm."""

    def __init__(self, make: Callable[[Any], Callable[[], Any]]) -> None:
        import torch

        self._torch = torch
        self._model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        self._clip = make(self._model)

    def __call__(self, norm: float, loss: float) -> Answer:  # noqa: D102
        weight = self._model.weight
        weight.grad = self._torch.full_like(weight, norm)
        self._clip()
        applied = float(weight.grad)
        return Answer(applied / norm if norm else 1.0)


def _zclip_package(model: Any) -> Callable[[], Any]:
    package = importlib.import_module("zclip").ZClip

    clipper = package(max_grad_norm=None)  # its own threshold of 1.0 beside it would be a fixed one
    return lambda: clipper.step(model)


def _autoclip_package(model: Any) -> Callable[[], Any]:
    clip = importlib.import_module("autoclip.torch").QuantileClip

    clipper = clip(model.parameters(), quantile=0.1, global_threshold=True)
    return lambda: clipper.step()


_PACKAGES: dict[str, tuple[str, Callable[[Any], Callable[[], Any]]]] = {
    "ZClip": ("zclip", _zclip_package),
    "AutoClip(10)": ("autoclip", _autoclip_package),
}
_FORMULAS: dict[str, tuple[Callable[[], ClipRule], str]] = {
    "none": (Nothing, "no clipping"),
    "fixed 1.0": (Fixed, "torch.nn.utils.clip_grad_norm_"),
    "ZClip": (ZClip, "formula of arXiv 2504.02507"),
    "AutoClip(10)": (AutoClip, "formula of arXiv 2007.14469"),
    "AdaGC": (AdaGC, "formula of arXiv 2502.11034, of the whole norm"),
    "OLMo skip-step": (SkipStep, "rule of OLMo-core's SkipStepOptimizer"),
    "median/MAD guard": (Guard, "median + 6 MAD of what was not clipped"),
    "ALSDGC faithful": (lambda: Ours("faithful"), "this package, lr 1e-3"),
    "ALSDGC robust": (Ours, "this package"),
}


def clip_rules(*, packages: bool = True) -> dict[str, tuple[Callable[[], ClipRule], str]]:
    """Return what makes each rule and where it is from, by name. ZClip and AutoClip are their packages if installed."""
    rules = dict(_FORMULAS)
    for name, (package, make) in _PACKAGES.items():
        if packages and importlib.util.find_spec(package) is not None:
            version = importlib.metadata.version(package)
            rules[name] = (lambda make=make: Installed(make)), f"the package {package} {version}"  # type: ignore[misc]
    return rules
