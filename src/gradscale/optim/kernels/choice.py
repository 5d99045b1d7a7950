"""Which of the two ways a pass runs: `kernel="auto"`, "compiled" or "eager"."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscale.optim.kernels.compiled import KernelUnavailableError, prepare
from gradscale.optim.kernels.eager import run_eagerly
from gradscale.optim.kernels.strips import Strip
from gradscale.optim.kernels.update_pass import UpdatePass
from gradscale.optim.rule import arithmetic_dtype

# Elements on this rank from which on compiling (some 5 s, 2 s from torch's cache) is repaid within a run of a thousand
# steps: an eager step takes 3 ns per element longer. See docs/speed.md.
COMPILE_FROM = 2_000_000
_INDEXED_ON_GPUS = 2**31 - 1  # elements; the code generated for a tensor of usual size counts in 32 bits
_CACHED = 64  # constants; a step needs one or two per param group


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
        self._constants: dict[tuple[object, ...], tuple[tuple[float, ...], Tensor]] = {}

    def weigh(self, numel: int) -> None:
        """Take note of how many elements a step updates on this rank."""
        self._large = self._large or numel >= COMPILE_FROM

    def prepare(
        self, update: UpdatePass, strip: Strip, constants: tuple[float, ...]
    ) -> tuple[Callable[..., Any], Sequence[Any]]:
        """Return a function and the arguments with which it runs a pass on a strip. Nothing has changed yet.

        Args:
            update: the pass.
            strip: the strip.
            constants: see `constants_of`.

        Raises:
            KernelUnavailableError: kernel="compiled", and no compiler works here.
        """
        if strip.contiguous and self._is_compiled(strip.param):
            try:
                return prepare(update, strip, self._as_tensor(constants, strip.param))
            except KernelUnavailableError as error:
                self._fall_back(error)
        return run_eagerly, (update, strip, constants)

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
            stacklevel=8,
        )

    def _is_compiled(self, param: Tensor) -> bool:
        if self._unavailable or self.choice == "eager" or not (self._large or self.choice == "compiled"):
            return False
        if param.is_cpu:
            return True
        return param.numel() <= _INDEXED_ON_GPUS and (param.is_cuda or self.choice == "compiled")

    def _as_tensor(self, constants: tuple[float, ...], param: Tensor) -> Tensor:
        # By identity: a step asks with the same tuple for every tensor of a param group.
        key = (id(constants), param.dtype, param.device)
        known = self._constants.get(key)
        if known is None:
            if len(self._constants) >= _CACHED:
                self._constants.clear()
            # From pageable memory: the copy to a GPU does not wait for it.
            tensor = torch.tensor(constants, dtype=arithmetic_dtype(param)).to(param.device, non_blocking=True)
            known = self._constants[key] = (constants, tensor)
        return known[1]
