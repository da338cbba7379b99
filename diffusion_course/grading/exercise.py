"""What an exercise is: what the student defines, on which inputs, what is right, what is classic.

An answer is a function that the student writes. It is called on random inputs, and what it
returns is compared with an exact oracle (`judging`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np

CALLED = " (called with "  # begins what says which inputs a message is about
RAISED = "your code raised "  # begins what says which exception a function ended with
Arguments = tuple[Any, ...]
Result = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Part:
    """Some of an exercise's points: a property, and inputs that show it.

    Attributes:
      name: of the property, as the student reads it ("one time per image").
      points: that it is worth.
      cases: draws the inputs, ``rng -> [arguments, …]``. A float32 or integer array reaches the
        student as a JAX array, a float64 one (a table) as NumPy's; numbers, strings and the
        functions of `diffusion_course.grading.inputs` stay as they are.
    """

    name: str
    points: int
    cases: Callable[[np.random.Generator], Iterable[Arguments]]


@dataclass(frozen=True)
class Exercise:
    """A function to write, graded by comparison.

    Attributes:
      id: chapter and number, "01.2".
      title: of the exercise.
      function: its name.
      parts: see `Part`; an exercise is worth the sum of their points.
      oracle: the right function of the same arguments, in NumPy float64.
      mistakes: what a classic wrong answer means -> a function that makes it.
      library: what its cells in the notebook import from `diffusion_course` besides `check` and
        `setup`, with its whole name. An answer may use this, and nothing else of the package.
      rtol: allowed error, relative to each value.
      atol: allowed error, relative to the largest value of a result.
      section: of its chapter, what to read again where the answer is wrong: the whole heading,
        "5 · ΠGDM: the guess has an error".
    """

    id: str
    title: str
    function: str
    parts: tuple[Part, ...]
    oracle: Callable[..., Any]
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    library: tuple[str, ...] = ()
    rtol: float = 2e-4
    atol: float = 2e-5
    section: str = ""

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    def terms(self, group: Iterable[Exercise | Written]) -> dict[str, Any]:
        """What an answer may not use and how it is called, as plain JSON; `group` is the chapter.

        ``others``: the other exercises' functions and whose they are; ``library``: as above;
        ``parameters``: the names of the function's arguments, in their order.
        """
        graded = (e for e in group if isinstance(e, Exercise) and e.function != self.function)
        return {
            "others": {e.function: e.id for e in graded},
            "library": list(self.library),
            "parameters": list(signature(self.oracle).parameters),
        }

    def cases(self, seed: Sequence[int]) -> list[list[Arguments]]:
        """The inputs of every part; `seed` is any sequence of whole numbers."""
        chapter, number = map(int, self.id.split("."))
        rngs = np.random.default_rng([*seed, chapter, number]).spawn(len(self.parts))
        return [list(part.cases(rng)) for part, rng in zip(self.parts, rngs, strict=True)]


@dataclass(frozen=True)
class Written:
    """A question that is answered in words and graded by hand; `section` as in `Exercise`."""

    id: str
    title: str
    points: int
    section: str = ""


@dataclass(frozen=True)
class Failure:
    """Why there is no result to compare: `status` of the outcome, and what the student reads."""

    status: str
    message: str


@dataclass(frozen=True)
class PartVerdict:
    """A part's outcome; the message is empty where it is right."""

    name: str
    points: int
    possible: int
    message: str


@dataclass(frozen=True)
class Verdict:
    """An exercise's outcome.

    Attributes:
      exercise: its id.
      title: its title.
      status: "right", "partly right", "wrong", "not attempted", or a failure's own.
      parts: the outcome of every part.
    """

    exercise: str
    title: str
    status: str
    parts: tuple[PartVerdict, ...]

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def possible(self) -> int:
        return sum(part.possible for part in self.parts)

    @property
    def message(self) -> str:
        """What is wrong, each thing once; empty if nothing is."""
        once: dict[str, str] = {}
        for part in self.parts:
            once.setdefault(part.message.partition(CALLED)[0], part.message)
        return "; ".join(message for message in once.values() if message)
