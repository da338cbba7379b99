"""The right answers: every chapter's exercises with their oracles. A sandbox never sees this."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from diffusion_course.grading.exercise import Exercise, Written


@cache
def chapters() -> dict[str, tuple[Exercise | Written, ...]]:
    """Chapter number -> the exercises that its file chapter_NN.py defines, in order."""
    names = sorted(m.name for m in iter_modules(__path__) if m.name.startswith("chapter_"))
    return {name.removeprefix("chapter_"): _defined_in(name) for name in names}


def _defined_in(name: str) -> tuple[Exercise | Written, ...]:
    values = vars(import_module(f"{__name__}.{name}")).values()
    return tuple(value for value in values if isinstance(value, Exercise | Written))


def find(name: str) -> Exercise | Written:
    """The exercise with this id, such as "01.2". Raises: ValueError for another name."""
    known = {exercise.id: exercise for group in chapters().values() for exercise in group}
    if name not in known:
        raise ValueError(f"exercise must be one of {', '.join(known)}, got {name!r}")
    return known[name]
