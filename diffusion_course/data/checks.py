"""Checks of arguments, shared by the files of this folder."""

import operator
from collections.abc import Iterable


def one_of(argument: str, given, allowed: Iterable[str]) -> str:
    """`given`, if it is one of the allowed names; ValueError with the list of them if not."""
    allowed = tuple(allowed)
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}, got {given!r}")
    return given


def integer(argument: str, given, minimum: int, maximum: int | None = None) -> int:
    """`given` as an int, if it is a whole number in [minimum, maximum]; ValueError if not."""
    rule = f"at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    # True is an int to Python; as a size or a seed it is a slip.
    too_large = number is not None and maximum is not None and number > maximum
    if isinstance(given, bool) or number is None or number < minimum or too_large:
        raise ValueError(f"{argument} must be a whole number {rule}, got {given!r}")
    return number
