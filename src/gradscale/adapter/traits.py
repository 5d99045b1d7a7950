"""What a base optimizer does, found out by letting a twin of it step small tensors.

Nothing is known of a third party's optimizer but its class. Whether a factor can be put on its update, and how, is
measured when it is wrapped, mostly in milliseconds, and never looked up in a list of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.adapter.momentum import dense, is_quantized
from gradscale.adapter.one_tensor import Group, OneTensor
from gradscale.adapter.twin import Course, across, twin_of, twin_options, uncompiled
from gradscale.options import OptionError

_DECAY = 0.1
_STEPS, _MANY_STEPS = 5, 25  # many where the first ones only collect
# Small, so that norms stay below the bounds that some put on them; and gradients are not of size 1.
_WEIGHTS, _OTHER_WEIGHTS, _GRADS = 0.02, 0.06, 0.1
# A matrix is large enough for optimizers that factor only large ones.
_SHAPES = {0: (), 1: (131,), 2: (130, 132), 3: (3, 10, 12), 4: (5, 4, 3, 3), 5: (4, 3, 2, 3, 2)}
_TIGHT, _LOOSE = 1e-5, 2e-2
_QUANTIZED = 0.3  # what rounding to 4 bits may take of a momentum; other state is off by about all of it


WeightDecay = Literal["decoupled", "after", "divided", "fixed", "coupled", "own", "none"]


@dataclass(frozen=True)
class Traits:
    """What was found.

    Attributes:
        elementwise: whether the update of an element depends on that element alone, so that vectors into which an
            engine laid shards of several layers are stepped as the layers would be.
        reads_weights: whether the update depends on the weights (as LAMB's does, by their norm), weight decay aside.
        weight_decay: what is done with `weight_decay`: "decoupled" shrinks the weights by lr x weight_decay, "after"
            does so once the update has been added, "divided" divides by 1 + lr x weight_decay then, "fixed" shrinks
            them by weight_decay, "coupled" adds weight_decay x weights to the gradient. "own" is anything else, which
            is then part of the update; "none" if there is none.
        momentum: key of the state that is a running mean (or sum) of gradients; None if nothing in it is.
    """

    elementwise: bool
    reads_weights: bool
    weight_decay: WeightDecay
    momentum: str | None


def traits_of(base: Optimizer, group: Group) -> Traits:
    """Find out what a base optimizer does with the options of one param group. Nothing of it is changed.

    Args:
        base: the optimizer.
        group: the param group.

    Raises:
        OptionError: no factor can be put on its updates one tensor at a time; the message says why.
    """
    name = f"{type(base).__module__}.{type(base).__qualname__}"
    if any(isinstance(value, Optimizer) for value in vars(base).values()):
        raise OptionError(f"{name} wraps another optimizer: wrap that one instead")
    for dtype in (torch.float64, torch.float32):  # some know no float64, in which small updates are seen best
        try:
            return _Probe(base, group, dtype).traits()
        except OptionError as error:
            raise OptionError(f"{name} cannot be wrapped: {error}") from None
        except Exception as error:
            failure = error
    raise OptionError(
        f"{name} cannot be wrapped: stepping a few small tensors failed with {type(failure).__name__}: {failure}"
    ) from failure


class _Probe:
    def __init__(self, base: Optimizer, group: Group, dtype: torch.dtype) -> None:
        self._base, self._dtype = base, dtype
        self._options = twin_options(base, group)
        self._decays = isinstance(self._options.get("weight_decay"), int | float)
        if self._decays:
            self._options["weight_decay"] = 0.0
        params = group["params"]
        devices = {param.device for param in params if param.device.type != "meta"}
        self._device = next(iter(devices), torch.device("cpu"))
        self._shapes = [_SHAPES[n] for n in sorted({param.dim() for param in params}) if n in _SHAPES] or [_SHAPES[2]]

    def traits(self) -> Traits:
        weights = self._random(1, _WEIGHTS)
        for n_steps in (_STEPS, _MANY_STEPS):
            grads = [self._random(10 + step, _GRADS) for step in range(n_steps)]
            together = self._run(weights, grads)
            if not all(torch.equal(before, after) for before, after in zip(weights, together.weights[-1], strict=True)):
                break
        else:
            raise OptionError(f"it does not move a tensor in {_MANY_STEPS} steps with gradients")
        for share in (0.0, _DECAY):
            at_once, apart = (self._run(weights, grads, decay=share, apart=one_by_one) for one_by_one in (False, True))
            if not _alike(at_once.weights[-1], apart.weights[-1], _TIGHT) or at_once.counted != apart.counted:
                raise OptionError(
                    "its update of one tensor depends on the others, so that it cannot be stepped one tensor at a time"
                )
        others = self._random(2, _OTHER_WEIGHTS)
        elsewhere = self._run(others, grads)
        for before, after, first, second in zip(together.states, elsewhere.states, weights, others, strict=True):
            for key, value in before.items():
                if _follows(value, after.get(key), first, second):
                    raise OptionError(f"its state keeps weights ({key}), which a factor on the update would not reach")
        reads_weights = not all(
            _alike(steps, steps_elsewhere, _LOOSE / 10)
            for steps, steps_elsewhere in zip(together.steps(weights), elsewhere.steps(others), strict=True)
        )
        decay = self._weight_decay(weights, grads, together, 1 if reads_weights else n_steps)
        return Traits(self._elementwise(), reads_weights, decay, self._momentum(weights, grads, together))

    def _random(self, seed: int, scale: float) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        normal = [torch.randn(shape, generator=generator) * scale for shape in self._shapes]
        return [tensor.to(self._device, self._dtype) for tensor in normal]

    def _twin(self, weights: Sequence[Tensor], options: Group) -> Optimizer:
        return twin_of(self._base, weights, options)

    def _run(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Sequence[Tensor]],
        *,
        apart: bool = False,
        decay: float = 0.0,
        enters_gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Course:
        """Step a twin."""
        options = {**self._options, "weight_decay": decay} if self._decays else self._options
        twin = self._twin(weights, options)
        group = twin.param_groups[0]
        alone, cuda = OneTensor(twin), [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), uncompiled():
            torch.manual_seed(0)
            course = []
            for of_step in grads:
                for param, grad in zip(group["params"], of_step, strict=True):
                    param.grad = grad.clone() if enters_gradient is None else enters_gradient(grad, param)
                if apart:
                    for param in group["params"]:
                        alone.step(group, param, param.grad)
                    alone.finish()
                else:
                    twin.step()
                course.append([param.detach().clone() for param in group["params"]])
        params = group["params"]
        counted = {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if isinstance(value, int | float | str) or (isinstance(value, Tensor) and value.numel() == 1)
        }
        return Course(course, [dict(twin.state.get(param, {})) for param in params], counted)

    def _momentum(self, weights: Sequence[Tensor], grads: Sequence[Sequence[Tensor]], course: Course) -> str | None:
        """The key whose tensors are, after some steps, what a decaying sum of the gradients with some decay is."""
        largest = max(range(len(weights)), key=lambda place: weights[place].numel())
        history = torch.stack([of_step[largest].flatten().double() for of_step in grads], dim=1)
        state = course.states[largest]
        for key in state:
            value = dense(state, key)
            if value is not None and value.shape == weights[largest].shape and value.is_floating_point():
                found = value.double().flatten()[:, None]
                share = torch.linalg.lstsq(history, found).solution
                # In the span of the gradients, each of which counts, the last no less than the first.
                fits = _alike([found], [history @ share], _QUANTIZED if is_quantized(state, key) else _LOOSE / 10)
                if fits and bool((share.abs() > 1e-6).all()) and share[-1].abs() >= share[0].abs() * (1 - 1e-3):
                    return key
        return None

    def _elementwise(self) -> bool:
        """Whether a matrix is stepped as its two halves are, as vectors, of other weights beside them."""
        shapes, self._shapes = self._shapes, [_SHAPES[2]]
        try:
            (matrix,), (other,) = self._random(3, _WEIGHTS), self._random(4, _OTHER_WEIGHTS)
            steps = [self._random(20 + step, _GRADS)[0] for step in range(_STEPS)]
            steps = [across(grad, matrix) for grad in steps]
            half = matrix.numel() // 2
            whole = self._run([matrix], [[grad] for grad in steps]).weights[-1][0].flatten()
            cut = self._run(
                [torch.cat([part, other.flatten()[:5]]) for part in (matrix.flatten()[:half], matrix.flatten()[half:])],
                [
                    [torch.cat([part, part[:5] * 7]) for part in (grad.flatten()[:half], grad.flatten()[half:])]
                    for grad in steps
                ],
            ).weights[-1]
        except Exception:
            return False  # it takes no vectors
        finally:
            self._shapes = shapes
        return _alike([whole], [torch.cat([part[:-5] for part in cut])], _TIGHT)

    def _weight_decay(
        self, weights: Sequence[Tensor], grads: Sequence[Sequence[Tensor]], plain: Course, n_steps: int
    ) -> WeightDecay:
        """What weight decay does. Only the first step can be compared where updates depend on the weights."""
        if not self._decays:
            return "none"
        course = self._run(weights, grads, decay=_DECAY)
        if _alike(course.weights[-1], self._run(weights, grads, enters_gradient=self._coupled).weights[-1], _TIGHT):
            return "coupled"
        lr = self._options.get("lr")
        before = [list(weights), *course.weights]
        shares: dict[WeightDecay, tuple[float, list[list[Tensor]]]] = {"fixed": (_DECAY, before)}
        if lr is not None:
            share = float(lr) * _DECAY
            shares["decoupled"] = share, before
            shares["after"] = share / (1 - share), course.weights
        decays = [
            [one - other for one, other in zip(decayed, steps, strict=True)]
            for decayed, steps in zip(course.steps(weights), plain.steps(weights), strict=True)
        ]
        for kind, (share, of) in shares.items():
            if all(_alike(decays[n], [-share * one for one in of[n]], _LOOSE) for n in range(n_steps)):
                return kind if kind == "fixed" else self._half_decayed(kind, weights, grads, plain)
        return "own"

    def _half_decayed(
        self, kind: WeightDecay, weights: Sequence[Tensor], grads: Sequence[Sequence[Tensor]], plain: Course
    ) -> WeightDecay:
        """Tell 1 - x from 1 / (1 + x), which are the same for a small x = lr x weight_decay, by a large one."""
        found = self._run(weights, grads[:1], decay=0.5 / float(self._options["lr"])).weights[0]
        moved = plain.weights[0]
        expected: dict[WeightDecay, list[Tensor]] = {
            "decoupled": [one - 0.5 * start for one, start in zip(moved, weights, strict=True)],
            "after": [0.5 * one for one in moved],
            "divided": [one / 1.5 for one in moved],
        }
        kinds: tuple[WeightDecay, ...] = ("decoupled",) if kind == "decoupled" else ("after", "divided")
        return next((one for one in kinds if _alike(found, expected[one], _LOOSE)), "own")

    def _coupled(self, grad: Tensor, param: Tensor) -> Tensor:
        return with_weight_decay(grad, param, _DECAY, self._options)


def with_weight_decay(grad: Tensor, param: Tensor, weight_decay: float, group: Group) -> Tensor:
    """Return what a base with coupled weight decay makes of a gradient, as a new tensor."""
    return grad.add(param, alpha=-weight_decay if group.get("maximize") else weight_decay)


def _alike(first: Sequence[Tensor], second: Sequence[Tensor], share: float) -> bool:
    """Whether the differences are no more than a share of what is there, tensor by tensor."""
    return all(
        bool((one - other).norm() <= share * max(float(one.norm()), 1e-30))
        for one, other in zip(first, second, strict=True)
    )


def _follows(first: Any, second: Any, weights: Tensor, others: Tensor) -> bool:
    """Whether a state tensor moves with the weights: from what it was with some to what it is with others."""
    if not isinstance(first, Tensor) or first.shape != weights.shape or not first.is_floating_point():
        return False
    if not isinstance(second, Tensor) or second.shape != weights.shape:
        return False
    moved, given = (second - first).double().flatten(), (others - weights).double().flatten()
    along = float(moved @ given) / max(float(given @ given), 1e-30)
    return math.isfinite(along) and abs(along) > 1e-3
