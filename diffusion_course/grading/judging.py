"""Judging: what a student's function returned is compared with the truth.

Only arrays are known here: it is the same in a notebook, where the function is called in place,
and in batch grading, where a sandbox calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np

from diffusion_course.grading.arrays import as_result, same
from diffusion_course.grading.exercise import (
    CALLED,
    Arguments,
    Exercise,
    Failure,
    Part,
    PartVerdict,
    Result,
    Verdict,
)
from diffusion_course.grading.patterns import difference


def judge(
    exercise: Exercise,
    cases: Sequence[Sequence[Arguments]],
    outcomes: Sequence[Sequence[Result | Failure]],
) -> Verdict:
    """Compares what a student's function returned with the truth.

    Args:
      exercise: which one.
      cases: the inputs, from `Exercise.cases`.
      outcomes: for each case of each part, the returned arrays or why there are none.
    """
    return Key(exercise, cases).verdict(outcomes)


class Key:
    """An exercise on inputs that were drawn for it: judges any number of answers to them.

    What is right, and what each mistake makes of the inputs, is computed once, when it is needed.

    Args:
      exercise: which one.
      cases: the inputs, from `Exercise.cases`.
    """

    def __init__(self, exercise: Exercise, cases: Sequence[Sequence[Arguments]]):
        self.exercise, self.cases = exercise, cases
        pairs = zip(exercise.parts, cases, strict=True)
        self._parts = [_PartKey(exercise, part, inputs) for part, inputs in pairs]

    def verdict(self, outcomes: Sequence[Sequence[Result | Failure]]) -> Verdict:
        """The verdict on an answer: for each case of each part, arrays or why there are none."""
        exercise = self.exercise
        pairs = zip(self._parts, outcomes, strict=True)
        parts = tuple(key.verdict(results) for key, results in pairs)
        points = sum(part.points for part in parts)
        failures = [got for results in outcomes for got in results if isinstance(got, Failure)]
        if points == exercise.points:
            status = "right"
        elif points:
            status = "partly right"
        else:
            status = failures[0].status if failures else "wrong"
        return Verdict(exercise.id, exercise.title, status, parts)


@dataclass(frozen=True)
class _PartKey:
    exercise: Exercise
    part: Part
    cases: Sequence[Arguments]

    def verdict(self, results: Sequence[Result | Failure]) -> PartVerdict:
        message = self._first_problem(results)
        points = 0 if message else self.part.points
        return PartVerdict(self.part.name, points, self.part.points, message)

    @cached_property
    def _exact(self) -> list[Arguments]:
        return [tuple(map(_exact, arguments)) for arguments in self.cases]

    @cached_property
    def _truths(self) -> list[Result]:
        return [as_result(self.exercise.oracle(*arguments)) for arguments in self._exact]

    @cached_property
    def _mistakes(self) -> list[tuple[str, list[Result]]]:
        """The mistakes that can be seen on these inputs, and what they make of them."""
        seen = []
        for message, wrong in self.exercise.mistakes.items():
            with np.errstate(all="ignore"):
                made = [as_result(wrong(*arguments)) for arguments in self._exact]
            pairs = zip(self._truths, made, strict=True)
            if any(not same(self.exercise, truth, bad) for truth, bad in pairs):
                seen.append((message, made))
        return seen

    def _first_problem(self, results: Sequence[Result | Failure]) -> str:
        """What is wrong with the first case that is; empty if all are right."""
        results = [_unstacked(*pair) for pair in zip(self._truths, results, strict=True)]
        for arguments, truth, got in zip(self.cases, self._truths, results, strict=True):
            if isinstance(got, Failure):
                return got.message
            problem = difference(self.exercise, truth, got)
            if problem:
                where = _describe(self.exercise, arguments)
                return f"{self._classic(results) or problem}{where}"
        return ""

    def _classic(self, results: Sequence[Result | Failure]) -> str:
        """The first classic mistake that explains every case; empty if none does."""
        if any(isinstance(got, Failure) for got in results):
            return ""
        for message, made in self._mistakes:
            pairs = zip(made, results, strict=True)
            if all(same(self.exercise, bad, got) for bad, got in pairs):
                return message
        return ""


def _unstacked(truth: Result, got: Result | Failure) -> Result | Failure:
    """Several arrays of one shape may also come as one, stacked or in a list."""
    if isinstance(got, Failure) or len(got) != 1 or len(truth) == 1:
        return got
    one_shape = all(array.shape == truth[0].shape for array in truth)
    stacked = got[0].shape == (len(truth), *truth[0].shape)
    return tuple(got[0]) if one_shape and stacked else got


def _exact(value: Any) -> Any:
    """Oracles compute in float64, whatever the student was given."""
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(np.float64) if is_float else value


def _describe(exercise: Exercise, arguments: Arguments) -> str:
    """The inputs by name and shape, which tell the student which call it was."""
    words = []
    for name, value in zip(signature(exercise.oracle).parameters, arguments, strict=False):
        words.append(f"{name} ")
        if isinstance(value, np.ndarray):
            words[-1] += f"of shape {list(value.shape)}"
        elif isinstance(value, str):
            words[-1] += repr(value)
        elif isinstance(value, int | float):
            words[-1] += f"{value:.4g}"
        else:
            words[-1] += repr(value)
    return f"{CALLED}{', '.join(words)})"
