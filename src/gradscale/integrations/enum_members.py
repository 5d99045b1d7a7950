"""Add members to an existing string enum (Python 3.10 to 3.13). Standard library only."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

StrEnum = TypeVar("StrEnum", bound=Enum)


def add_member(cls: type[StrEnum], name: str, value: str) -> StrEnum:
    """Give the string enum `cls` a member `name = value` and return it.

    The member is a real one: `cls(value)`, `cls[name]`, `cls.name`, iteration, `in`, pickling, copying and JSON treat
    it like those in the class body. A value that `cls` has already is returned as it is, so a second call changes
    nothing.

    Args:
        cls: an enum with `str` mixed in, as in `class Names(str, Enum)`.
        name: attribute name of the member.
        value: its value.

    Raises:
        TypeError: `cls` is not an enum of strings.
        ValueError: `name` stands for something else in `cls`.
    """
    if not (isinstance(cls, type) and issubclass(cls, Enum) and issubclass(cls, str)):
        raise TypeError(f"{cls!r} is not an enum of strings")
    known = cls._value2member_map_.get(value)
    if known is not None:
        return known
    if hasattr(cls, name):  # a member, or a method, its own or inherited
        raise ValueError(f"{cls.__name__}.{name} exists already, so it cannot become a member of value {value!r}")
    # Enum offers no way to add a member; these are the fields that EnumMeta fills, the same in 3.10 to 3.13.
    member = str.__new__(cls, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = cls
    member._sort_order_ = len(cls._member_names_)
    type.__setattr__(cls, name, member)  # 3.10 reads the map instead; EnumMeta's own __setattr__ guards members
    cls._member_map_[name] = member
    cls._value2member_map_[value] = member
    cls._member_names_.append(name)  # last: iteration sees only a complete member
    return member
