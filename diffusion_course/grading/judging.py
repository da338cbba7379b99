"""Judging: what a student's function returned is compared with the truth.

Only arrays are known here: it is the same in a notebook, where the function is called in place,
and in batch grading, where a sandbox calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np

from diffusion_course.grading.arrays import as_result, same
from diffusion_course.grading.exercise import (
    CALLED,
    RAISED,
    Arguments,
    Exercise,
    Failure,
    Part,
    PartVerdict,
    Result,
    Verdict,
)
from diffusion_course.grading.patterns import difference, is_right


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
        answers = [_Answer(key, key.unstacked(results)) for key, results in pairs]
        classic = self._classic(answers) if any(a.wrong for a in answers) else ""
        parts = tuple(answer.verdict(classic) for answer in answers)
        points = sum(part.points for part in parts)
        failures = [got for results in outcomes for got in results if isinstance(got, Failure)]
        if points == exercise.points:
            status = "right"
        elif points:
            status = "partly right"
        else:
            status = failures[0].status if failures else "wrong"
        return Verdict(exercise.id, exercise.title, status, parts)

    def _classic(self, answers: Sequence[_Answer]) -> str:
        """The first classic mistake that explains every case of every part; empty if none does."""
        if any(isinstance(got, Failure) for answer in answers for got in answer.results):
            return ""
        # From the wrong parts on: there most mistakes drop out, before the others are computed.
        ordered = sorted(answers, key=lambda answer: not answer.wrong)
        for message in self.exercise.mistakes:
            explains = all(answer.key.is_made_by(message, answer.results) for answer in ordered)
            if explains and all(answer.key.shows(message) for answer in ordered if answer.wrong):
                return message
        return ""


@dataclass(frozen=True)
class _PartKey:
    """A part on inputs that were drawn for it: what is right, and what each mistake makes."""

    exercise: Exercise
    part: Part
    cases: Sequence[Arguments]
    _made: dict[str, list[Result]] = field(default_factory=dict)

    @cached_property
    def _exact(self) -> list[Arguments]:
        return [tuple(map(_exact, arguments)) for arguments in self.cases]

    @cached_property
    def truths(self) -> list[Result]:
        return [as_result(self.exercise.oracle(*arguments)) for arguments in self._exact]

    def unstacked(self, results: Sequence[Result | Failure]) -> list[Result | Failure]:
        return [_unstacked(*pair) for pair in zip(self.truths, results, strict=True)]

    def is_made_by(self, mistake: str, results: Sequence[Result]) -> bool:
        """Whether these are the results of somebody who makes this mistake."""
        triples = zip(self._makes(mistake), results, self.truths, strict=True)
        return all(same(self.exercise, *triple) for triple in triples)

    def shows(self, mistake: str) -> bool:
        """Whether this mistake makes a difference on these inputs."""
        return not self.is_made_by(mistake, self.truths)

    def _makes(self, mistake: str) -> list[Result]:
        if mistake not in self._made:
            wrong = self.exercise.mistakes[mistake]
            with np.errstate(all="ignore"):
                self._made[mistake] = [as_result(wrong(*arguments)) for arguments in self._exact]
        return self._made[mistake]


@dataclass(frozen=True)
class _Answer:
    """A part and what an answer returned for its cases."""

    key: _PartKey
    results: list[Result | Failure]

    @cached_property
    def wrong(self) -> list[int]:
        """The numbers of the cases that are wrong."""
        exercise, pairs = self.key.exercise, zip(self.key.truths, self.results, strict=True)
        return [
            n for n, (truth, got) in enumerate(pairs)
            if isinstance(got, Failure) or not is_right(exercise, truth, got)
        ]  # fmt: skip

    def verdict(self, classic: str) -> PartVerdict:
        part = self.key.part
        message = self._problem(classic) if self.wrong else ""
        return PartVerdict(part.name, 0 if message else part.points, part.points, message)

    def _problem(self, classic: str) -> str:
        """What is wrong with the first case that is."""
        exercise, first = self.key.exercise, self.wrong[0]
        got, where = self.results[first], _describe(exercise, self.key.cases[first])
        if isinstance(got, Failure):
            return f"{got.message}{where if got.message.startswith(RAISED) else ''}"
        if classic:
            return f"{classic}{where}"
        pairs = [(self.key.truths[n], self.results[n]) for n in self.wrong]
        return f"{difference(exercise, pairs)}{where}"


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
    """The inputs by name, with their shapes, or their numbers if they are few."""
    names = signature(exercise.oracle).parameters
    words = [_named(*pair) for pair in zip(names, arguments, strict=False)]
    return f"{CALLED}{', '.join(words)})"


_FEW = 4


def _named(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray) and not 0 < value.size <= _FEW:
        return f"{name} of shape {list(value.shape)}"
    return f"{name} = {_text(value.tolist() if isinstance(value, np.ndarray) else value)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.4g}" if type(value) in (int, float) else repr(value)
