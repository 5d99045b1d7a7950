"""Which of the two ways a pass runs: `kernel="auto"`, "compiled" or "eager"."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradscale.optim.kernels.compiled import KernelUnavailableError, prepare
from gradscale.optim.kernels.constants import Constants
from gradscale.optim.kernels.eager import run_eagerly
from gradscale.optim.kernels.from_host import FromHost, is_in_parts, run_from_host
from gradscale.optim.kernels.recipe import Recipe
from gradscale.optim.kernels.strips import Strip
from gradscale.optim.kernels.sums import sums_compiled, sums_eagerly
from gradscale.optim.kernels.update_pass import UpdatePass
from gradscale.optim.kernels.update_sums import Stretch, update_sums
from gradscale.optim.members import Member
from gradscale.optim.rule import State

# Elements on this rank from which on compiling (some 5 s, 2 s from torch's cache) is repaid within a run of a thousand
# steps: an eager step takes 3 ns per element longer. See docs/speed.md.
COMPILE_FROM = 2_000_000
_INDEXED_ON_GPUS = 2**31 - 1  # elements; the code generated for a tensor of usual size counts in 32 bits

Run = tuple[Callable[[Any], Any], Any]  # a function and its argument


class StepKernel:
    """Runs passes compiled where that is chosen and possible, else eagerly. Both give the same within rounding."""

    def __init__(self, choice: str, owner: str) -> None:
        """Make it.

        Args:
            choice: "auto", "compiled" or "eager".
            owner: name of the optimizer, for messages.
        """
        self.choice = choice
        self._owner = owner
        self._large = False
        self._unavailable = False

    def weigh(self, numels: Iterable[int]) -> None:
        """Take note of how many elements each tensor has that a step updates on this rank."""
        self._large = self._large or sum(numels) >= COMPILE_FROM

    def recall(
        self, update: UpdatePass, member: Member, state: State, constants: Constants, extras: Mapping[str, Tensor]
    ) -> Run | None:
        """Return what `prepare` would for a member that is one strip; None if it has not done so before.

        Args:
            update: the pass.
            member: the member.
            state: its state.
            constants: see `constants_of`.
            extras: per-layer tensors of this step alone.
        """
        recipe = member.recipes.get(update)
        if recipe is None or self._unavailable:
            return None
        arguments = recipe.arguments(constants, member.param, state, extras)
        return None if arguments is None else (recipe.call, arguments)

    def prepare(
        self, update: UpdatePass, strip: Strip, constants: Constants, whole: tuple[Member, State] | None
    ) -> Run:
        """Return a function and the argument with which it runs a pass on a strip. Nothing has changed yet.

        Args:
            update: the pass.
            strip: the strip.
            constants: see `constants_of`.
            whole: the member and its state, if it is one strip, to be recalled in later steps.

        Raises:
            KernelUnavailableError: kernel="compiled", and no compiler works here.
        """
        away = is_in_parts(strip)
        if strip.contiguous and self._compiles(strip.param, strip.grad):
            try:
                prepared = prepare(update, strip, constants)
            except KernelUnavailableError as error:
                self._fall_back(error)
            else:
                if away:
                    return run_from_host, FromHost(update, strip, constants, prepared)
                if whole is not None and (strip.grad is None or strip.grad is whole[0].param.grad):
                    member, state = whole
                    moment = next(iter(update.moments), None)
                    member.recipes[update] = Recipe.of(prepared, strip, member.param, state, moment)
                return prepared.code.call, prepared.arguments()
        if away:
            return run_from_host, FromHost(update, strip, constants, None)
        return run_eagerly, (update, strip, constants)

    def sums(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return sums over a gradient, see `sums_eagerly`."""
        return sums_compiled(tensors) if self._compiles(tensors[0], None) else sums_eagerly(tensors)

    def update_sums(self, stretch: Stretch) -> list[Tensor]:
        """Return sums over an update, see `update_sums`."""
        return update_sums(stretch, compiled=self._compiles(stretch.tensors[0], None))

    def _fall_back(self, error: KernelUnavailableError) -> None:
        if self.choice == "compiled":
            raise KernelUnavailableError(
                f"{self._owner}: kernel='compiled' cannot be had here ({error}). kernel='eager' needs no compiler"
            ) from error
        self._unavailable = True
        warnings.warn(
            f"{self._owner} steps without compiled code, which is slower: {error}. kernel='eager' chooses this "
            "without a warning",
            RuntimeWarning,
            stacklevel=9,
        )

    def _compiles(self, param: Tensor, grad: Tensor | None) -> bool:
        if self._unavailable or self.choice == "eager" or not (self._large or self.choice == "compiled"):
            return False
        if is_traceable_wrapper_subclass(param) or is_traceable_wrapper_subclass(grad):
            return False  # generated code reads memory, and theirs is not where a tensor of their shape has it
        if param.is_cpu:
            return True
        return param.numel() <= _INDEXED_ON_GPUS and (param.is_cuda or self.choice == "compiled")
