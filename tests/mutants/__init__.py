"""Plausible wrong answers to every exercise, as patches to the masters' solutions."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replaces `old` by `new` in the exercise's answer cell; `says` is part of the diagnosis."""

    exercise: str
    old: str
    new: str
    says: str
