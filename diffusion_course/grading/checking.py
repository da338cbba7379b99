"""``check("01.2", answer)``: is it right, and if not, why?"""

from __future__ import annotations

import os
from typing import Any

from diffusion_course.grading import answers
from diffusion_course.grading.alone import refusal
from diffusion_course.grading.calling import call
from diffusion_course.grading.exercise import Exercise, Failure, Verdict, Written
from diffusion_course.grading.judging import judge
from diffusion_course.grading.places import place

# Inputs are drawn anew from this for every check, so that a wrong answer stays wrong. Batch
# grading draws from a secret seed.
_SEED = (0,)
_earned: dict[str, int] = {}


def check(exercise: str, answer: Any) -> float | None:
    """Tells whether an answer is right, and what is wrong with it.

    Args:
      exercise: its number, such as "01.2".
      answer: the function that the exercise asks for.

    Returns: None; the points where nbgrader runs the notebook, which then gives partial credit.
    Raises: ValueError for an exercise that doesn't exist or is graded by hand.
    """
    wanted = answers.find(exercise)
    if isinstance(wanted, Written):
        raise ValueError(f"exercise {exercise} is answered in words and graded by hand")
    verdict = verdict_of(wanted, answer)
    _earned[exercise] = verdict.points
    print(report(verdict))
    return float(verdict.points) if "NBGRADER_EXECUTION" in os.environ else None


def verdict_of(exercise: Exercise, answer: Any) -> Verdict:
    """The verdict on a function, called in this process."""
    cases = exercise.cases(_SEED)
    if not callable(answer):
        text = f"pass the function itself, check({exercise.id!r}, {exercise.function}), "
        problem = Failure("wrong", f"{text}got {type(answer).__name__}")
        return judge(exercise, cases, [[problem] * len(part) for part in cases])
    terms = exercise.terms(answers.chapters().get(exercise.id[:2], ()))
    text = refusal(answer, terms["others"], terms["library"])
    if text:
        problem = Failure("error", text)
        return judge(exercise, cases, [[problem] * len(part) for part in cases])
    names = terms["parameters"]
    return judge(exercise, cases, [[call(answer, case, names) for case in part] for part in cases])


def report(verdict: Verdict) -> str:
    """What `check` prints."""
    mark = "✓" if verdict.points == verdict.possible else "✗"
    head = (
        f"{mark} {verdict.exercise} {verdict.title}: {verdict.points} of {verdict.possible} points"
    )
    lines = [head]
    if verdict.points < verdict.possible:
        for part in verdict.parts:
            lines.append(f"  {'✗' if part.message else '✓'} {part.name}")
            if part.message:
                lines.append(f"      {part.message}")
        if here := place(answers.find(verdict.exercise)):
            lines.append(f"  Read again: {here.text}.")
    return "\n".join([*lines, _so_far(verdict.exercise[:2])])


def _so_far(chapter: str) -> str:
    graded = [e for e in answers.chapters()[chapter] if isinstance(e, Exercise)]
    points = sum(_earned.get(e.id, 0) for e in graded)
    written = [e.id for e in answers.chapters()[chapter] if not isinstance(e, Exercise)]
    hand = f"; {', '.join(written)} is graded by hand" if written else ""
    return f"Chapter {chapter} so far: {points} of {sum(e.points for e in graded)} points{hand}."
