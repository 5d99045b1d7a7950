"""Give `TrainingArguments` a field `alsdgc`, so that every parser made from it has `--alsdgc`.

Parsers (transformers', TRL's and those of users) read `dataclasses.fields`, so a real field has to be there before they
are made; a subclass that is defined later inherits it and its place in `__init__`. The generated `__init__` of classes
that exist already is wrapped.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any, Optional, Union

NAME = "alsdgc"
_HELP = (
    "Adaptive gradient clipping and loss scaling by gradscale: robust, faithful, or options like "
    "'robust,window=64'. It takes the place of max_grad_norm."
)
# As transformers spells its own fields that may be a mapping in a file: parsers take the text.
_TYPE = Optional[Union[dict[str, Any], str]]  # noqa: UP007, UP045


def add_field(arguments: type[Any]) -> None:
    """Add the field to a dataclass and to its subclasses. Calling it again changes nothing.

    Raises:
        TypeError: `arguments` is not a dataclass.
    """
    if not dataclasses.is_dataclass(arguments):
        raise TypeError(f"{arguments!r} is not a dataclass")
    if NAME in arguments.__dataclass_fields__:
        return
    # Keyword only: no positional argument of a class or its subclasses may move.
    declared = dataclasses.field(default=None, metadata={"help": _HELP}, kw_only=True)
    holder: Any = dataclasses.make_dataclass("_Holder", [(NAME, _TYPE, declared)])
    field = holder.__dataclass_fields__[NAME]
    setattr(arguments, NAME, None)
    arguments.__annotations__[NAME] = _TYPE
    for cls in (arguments, *_descendants(arguments)):
        if "__dataclass_fields__" in vars(cls):
            cls.__dataclass_fields__[NAME] = field
            if "__init__" in vars(cls):
                cls.__init__ = _taking_it(cls.__init__)


def _descendants(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _taking_it(construct: Any) -> Any:
    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if NAME in kwargs or NAME not in vars(self):
            setattr(self, NAME, kwargs.pop(NAME, None))  # before __post_init__, which reads it
        construct(self, *args, **kwargs)

    signature = inspect.signature(construct)
    parameters = list(signature.parameters.values())
    extra = inspect.Parameter(NAME, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_TYPE)
    last = parameters[-1:] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    rest = parameters[: len(parameters) - len(last)]
    __init__.__signature__ = signature.replace(parameters=[*rest, extra, *last])  # type: ignore[attr-defined]
    return __init__
