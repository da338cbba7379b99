"""How an exercise is written down: the right function, and each mistake as a change of it.

The right function carries the name that the student's must have. A mistake is a message, and
below it, indented, what makes the mistake: edits of the right function's text, one on a line,
``old -> new``; or another body, ``return …``, which may call the functions of the chapter's file,
and in which `right` is what the right function returns::

    that is a variance: what multiplies noise is a standard deviation
        np.sqrt(variance) -> variance
    the two arguments are exchanged
        return mix(b, a)
    one half is missing
        return 2 * right

What is `old` must stand exactly once below the function's ``def``. A line that is indented
further goes on with the one above it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part


def exercise(
    head: str, oracle: Callable[..., Any], *parts: Part, mistakes: str, **others: Any
) -> Exercise:
    """The exercise with this right function, whose name is the student's too.

    Args:
      head: id and title, as in the text: "01.2 · The table of ᾱ".
      oracle: the right function, in NumPy.
      parts: see `Part`.
      mistakes: see above.
      others: `section` of `Exercise`, and its `library`, `rtol` and `atol` where the defaults
        don't fit.
    """
    name, title = head.split(" · ")
    known = read_mistakes(oracle, mistakes)
    return Exercise(name, title, oracle.__name__, parts, oracle, known, **others)


def along(axis: int, levels, like):
    """Levels that change along this axis of `like`, as if they had its length: a common slip."""
    if like.shape[axis] not in (1, len(levels)):
        levels = np.resize(levels, like.shape[axis])
    shape = [1] * like.ndim
    shape[axis] = -1
    return levels.reshape(shape)


@dataclass(frozen=True)
class Mistake:
    """The right function with something wrong: it is called like it.

    Attributes:
      message: what it means.
      oracle: the right function.
      changes: lines of a table, as above.
    """

    message: str
    oracle: Callable[..., Any]
    changes: tuple[str, ...]

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    @cached_property
    def _function(self) -> Callable[..., Any]:
        name = self.oracle.__name__
        head, body = _text(self.oracle)
        for change in self.changes:
            old, arrow, new = f"{change} ".partition(" -> ")
            if not arrow and change.startswith("return "):
                call = f"{name}({', '.join(inspect.signature(self.oracle).parameters)})"
                body = "    " + re.sub(r"\bright\b", call, change) + "\n"
            elif not arrow or body.count(old) != 1:
                raise ValueError(
                    f"an edit must be `old -> new` with an old text that stands once in {name}, "
                    f"got {change!r} ({self.message})"
                )
            else:
                body = body.replace(old, new.rstrip())
        # The changed function sees the right one under its name, and what that sees.
        outside, inside = {"along": along} | self.oracle.__globals__, {}
        exec(head + body, outside, inside)
        return inside[name]


@cache
def _text(function: Callable[..., Any]) -> tuple[str, str]:
    """The lines of its ``def``, and those below."""
    lines = inspect.getsource(function).splitlines(keepends=True)
    (definition,) = ast.parse("".join(lines)).body
    first = definition.body[0].lineno - 1
    return "".join(lines[:first]), "".join(lines[first:])


def read_mistakes(oracle: Callable[..., Any], text: str) -> dict[str, Mistake]:
    """The mistakes of a table, by their messages.

    Raises: ValueError for a message that stands twice, or has nothing below it.
    """
    found: dict[str, list[str]] = {}
    for line in textwrap.dedent(text).strip("\n").splitlines():
        indent, words = len(line) - len(line.lstrip()), line.strip()
        if not indent:
            if words in found:
                raise ValueError(f"{oracle.__name__}: the message {words!r} stands twice")
            changes = found[words] = []
        elif indent > 4:
            changes[-1] += f" {words}"
        else:
            changes.append(words)
    for message, changes in found.items():
        if not changes:
            raise ValueError(f"{oracle.__name__}: nothing stands below the message {message!r}")
    return {message: Mistake(message, oracle, tuple(lines)) for message, lines in found.items()}
