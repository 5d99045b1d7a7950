"""Typed option kinds: one definition serves constructors, `--optim_args` and the documentation.

Standard library only: the registry is read before torch is imported.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast


class OptionError(ValueError):
    """An option that is unknown, given twice, malformed or out of range. The message names it and what is allowed."""


class Kind(Protocol):
    """What values an option takes."""

    @property
    def allowed(self) -> str:
        """The allowed values in words, to follow "expected "."""

    def check(self, value: Any) -> Any:
        """Return the value in its canonical Python type (never NumPy's: state has to load under `weights_only`).

        Raises:
            ValueError: it is not allowed. The message may be empty, or name the part that is wrong.
        """


def _is_number(value: Any) -> bool:
    # bool is an int in Python; an option that takes a number never means True. NumPy's numbers are registered here.
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Real:
    """A finite real number in [low, high], without the ends that are marked open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    @property
    def allowed(self) -> str:  # noqa: D102
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        if math.isinf(self.high):
            return f"a finite number {'above' if self.low_open else 'of at least'} {self.low:g}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"

    def check(self, value: Any) -> float:  # noqa: D102
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError
        if value < self.low or value > self.high:
            raise ValueError
        if (self.low_open and value == self.low) or (self.high_open and value == self.high):
            raise ValueError
        return float(value)


@dataclass(frozen=True)
class Integer:
    """An integer in [low, high]."""

    low: int
    high: int | None = None

    @property
    def allowed(self) -> str:  # noqa: D102
        return (
            f"an integer of at least {self.low}" if self.high is None else f"an integer from {self.low} to {self.high}"
        )

    def check(self, value: Any) -> int:  # noqa: D102
        if not _is_integer(value) or value < self.low or (self.high is not None and value > self.high):
            raise ValueError
        return int(value)


@dataclass(frozen=True)
class Flag:
    """True or False."""

    allowed: str = "true or false"

    def check(self, value: Any) -> bool:  # noqa: D102
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # NumPy's, by name
            raise ValueError
        return bool(value)


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    @property
    def allowed(self) -> str:  # noqa: D102
        return "one of " + ", ".join(repr(name) for name in self.names)

    def check(self, value: Any) -> str:  # noqa: D102
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value


@dataclass(frozen=True)
class Pair:
    """Two real numbers; `ordered` asks for first <= second."""

    item: Real
    ordered: bool = False

    @property
    def allowed(self) -> str:  # noqa: D102
        order = " in ascending order" if self.ordered else ""
        return f"two values{order}, like [a,b], each {self.item.allowed}"

    def check(self, value: Any) -> tuple[float, float]:  # noqa: D102
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError
        first, second = (self._item(value, index) for index in (0, 1))
        if self.ordered and first > second:
            raise ValueError
        return first, second

    def _item(self, value: Any, index: int) -> float:
        try:
            return self.item.check(value[index])
        except ValueError:
            raise ValueError(f" at index {index}: {value[index]}") from None


@dataclass(frozen=True)
class Triple:
    """Three real numbers; the third may be left out, and is then `last`."""

    item: Real
    last: float

    @property
    def allowed(self) -> str:  # noqa: D102
        return f"two or three values, like [a,b] or [a,b,c], each {self.item.allowed}"

    def check(self, value: Any) -> tuple[float, float, float]:  # noqa: D102
        if not isinstance(value, list | tuple) or len(value) not in (2, 3):
            raise ValueError
        first, second, third = (self.item.check(number) for number in (*value, self.last)[:3])
        return first, second, third


@dataclass(frozen=True)
class Maybe:
    """None, or what another kind allows."""

    kind: Kind

    @property
    def allowed(self) -> str:  # noqa: D102
        return f"None or {self.kind.allowed}"

    def check(self, value: Any) -> Any:  # noqa: D102
        return None if value is None else self.kind.check(value)


AUTO = "auto"  # a value that is found out when the optimizer is made


@dataclass(frozen=True)
class Auto:
    """The word "auto", or what another kind allows."""

    kind: Kind

    @property
    def allowed(self) -> str:  # noqa: D102
        return f"{AUTO!r} or {self.kind.allowed}"

    def check(self, value: Any) -> Any:  # noqa: D102
        return AUTO if value == AUTO else self.kind.check(value)


@dataclass(frozen=True)
class Interval:
    """A number of steps (an integer >= 1) or a fraction of the run (a float strictly between 0 and 1)."""

    allowed: str = "a number of steps (an integer of at least 1) or a fraction of the run (strictly between 0 and 1)"

    def check(self, value: Any) -> int | float:  # noqa: D102
        if _is_integer(value) and value >= 1:
            return int(value)
        if _is_number(value) and not _is_integer(value) and 0 < value < 1:
            return float(value)
        raise ValueError


DEFERRED = "deferred"  # a run length that will be known before the first step


@dataclass(frozen=True)
class Off:
    """None or False: a switch of torch's optimizers that has nothing to switch here."""

    allowed: str = "None or False (see the option kernel)"

    def check(self, value: Any) -> None:  # noqa: D102
        if value is not None and value is not False:
            raise ValueError


@dataclass(frozen=True)
class RunLength:
    """Optimizer steps of the whole run: an integer >= 1, None (not needed) or "deferred" (will be set later)."""

    allowed: str = "a number of steps (an integer of at least 1), None or 'deferred'"

    def check(self, value: Any) -> int | str | None:  # noqa: D102
        if value is None or value == DEFERRED:
            return cast("str | None", value)
        return Integer(1).check(value)


@dataclass(frozen=True)
class Option:
    """One option: its kind, its default and one line of help; `invalid` is torch's own word for a wrong value."""

    kind: Kind
    default: Any
    help: str
    invalid: str = ""


def check_option(name: str, value: Any, option: Option) -> Any:
    """Return `value` in canonical type.

    Raises:
        OptionError: the value is of the wrong type or out of range.
    """
    try:
        return option.kind.check(value)
    except ValueError as error:
        detail = f". {option.invalid}{str(error) or f': {value}'}" if option.invalid else ""
        raise OptionError(f"{name}={value!r} is not allowed: expected {option.kind.allowed}{detail}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest of `names`, or nothing when none is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def check_options(values: Mapping[str, Any], options: Mapping[str, Option], *, owner: str) -> dict[str, Any]:
    """Check every value against its option.

    Args:
        values: option name to value.
        options: the options that `owner` takes.
        owner: what takes them, for messages.

    Raises:
        OptionError: an option is unknown, of the wrong type or out of range.
    """
    checked = {}
    for name, value in values.items():
        if name not in options:
            hint = nearest(name, options)
            raise OptionError(
                f"unknown option {name}={value!r} of {owner}{hint or '.'} Its options: {', '.join(options)}"
            )
        checked[name] = check_option(name, value, options[name])
    return checked
