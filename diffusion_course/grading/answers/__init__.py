"""The right answers: every chapter's exercises with their oracles. A sandbox never sees this."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from diffusion_course.grading.exercise import Exercise, Written


@cache
def chapters() -> dict[str, tuple[Exercise | Written, ...]]:
    """Chapter number -> its exercises, in order: what the files chapter_NN.py hold."""
    names = sorted(module.name for module in iter_modules(__path__))
    return {
        name.removeprefix("chapter_"): import_module(f"{__name__}.{name}").EXERCISES
        for name in names
    }


def find(name: str) -> Exercise | Written:
    """The exercise with this id, such as "01.2". Raises: ValueError for another name."""
    known = {exercise.id: exercise for group in chapters().values() for exercise in group}
    if name not in known:
        raise ValueError(f"exercise must be one of {', '.join(known)}, got {name!r}")
    return known[name]
