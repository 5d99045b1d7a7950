"""Split text at commas that stand outside of brackets and quotes. Standard library only."""

from __future__ import annotations

_CLOSING = {"[": "]", "(": ")", "{": "}"}
_QUOTES = "'\""


class UnbalancedError(ValueError):
    """A bracket or a quote is not closed, or closed without having been opened. The message says which."""


def split_top_level(text: str) -> list[str]:
    """Return the parts of `text` between its top-level commas, stripped of surrounding spaces.

    Raises:
        UnbalancedError: a bracket or quote is unbalanced.
    """
    parts, start, open_brackets, quote = [], 0, "", ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _CLOSING:
            open_brackets += character
        elif character in _CLOSING.values():
            if not open_brackets or _CLOSING[open_brackets[-1]] != character:
                raise UnbalancedError(f"{character!r} at position {index + 1} closes nothing")
            open_brackets = open_brackets[:-1]
        elif character == "," and not open_brackets:
            parts.append(text[start:index].strip())
            start = index + 1
    if quote:
        raise UnbalancedError(f"the quote {quote} is not closed")
    if open_brackets:
        raise UnbalancedError(f"{open_brackets[-1]!r} is not closed")
    parts.append(text[start:].strip())
    return parts
