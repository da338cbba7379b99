"""The leader's view of a class: points per exercise, what went wrong, who needs help."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_course.grading.exercise import CALLED
from diffusion_course.grading.row import Row

NEEDS_HELP = 0.5  # below this share of the points
UNTOUCHED = {"not attempted", "missing"}  # outcomes of who has handed in nothing for it


@dataclass(frozen=True)
class Summary:
    """How a class did on one exercise.

    Attributes:
      exercise: its id.
      mean: of the points of those that are graded; None if none is.
      out_of: points that there are.
      graded: how many students.
      right, partly, untouched: how many of them earned every point, some of the points, and
        handed in nothing for it; the rest tried and earned none.
      diagnoses: what was wrong with an answer, and how many got this message, the most common
        first. A written answer is no diagnosis, nor is that there is none.
    """

    exercise: str
    mean: float | None
    out_of: float
    graded: int
    right: int
    partly: int
    untouched: int
    diagnoses: tuple[tuple[str, int], ...]

    @property
    def wrong(self) -> int:
        """How many tried and earned no point."""
        return self.graded - self.right - self.partly - self.untouched

    @property
    def diagnosis(self) -> tuple[str, int]:
        """The most common message, and how many got it; ("", 0) if there is none."""
        return self.diagnoses[0] if self.diagnoses else ("", 0)


@dataclass(frozen=True)
class Overview:
    """A class.

    Attributes:
      exercises: a `Summary` of each, in order.
      students: (student, points, out of) of what is graded, weakest first.
      problems: (student, file, message) of what could not be graded.
      waiting: how many written answers have no points yet.
    """

    exercises: tuple[Summary, ...]
    students: tuple[tuple[str, float, float], ...]
    problems: tuple[tuple[str, str, str], ...]
    waiting: int = 0

    @property
    def need_help(self) -> list[tuple[str, float, float]]:
        """Students below half of their points."""
        return [s for s in self.students if s[2] and s[1] < NEEDS_HELP * s[2]]


def overview(rows: Sequence[Row]) -> Overview:
    """Sums a table of grades up."""
    by_exercise, by_student = defaultdict(list), defaultdict(list)
    for row in rows:
        by_student[row.student]  # also one with nothing that could be graded
        if row.exercise:
            by_exercise[row.exercise].append(row)
            by_student[row.student].append(row)
    students = []
    for student, mine in by_student.items():
        graded = [row for row in mine if row.points is not None]
        earned, possible = (sum(getattr(r, f) for r in graded) for f in ("points", "out_of"))
        students.append((student, earned, possible))
    students.sort(key=lambda s: (s[1] / s[2] if s[2] else 0.0, s[0]))
    return Overview(
        tuple(_summary(e, by_exercise[e]) for e in sorted(by_exercise)),
        tuple(students),
        tuple((r.student, r.file, r.message) for r in rows if not r.exercise),
        sum(r.status == "manual" and r.points is None for r in rows),
    )


def _summary(exercise: str, rows: list[Row]) -> Summary:
    graded = [row for row in rows if row.points is not None]
    # Without the inputs it was seen on, so that equal mistakes count as equal.
    said = Counter(
        row.message.partition(CALLED)[0]
        for row in graded
        if row.message and row.points < row.out_of and row.status not in {"manual"} | UNTOUCHED
    )
    return Summary(
        exercise,
        sum(row.points for row in graded) / len(graded) if graded else None,
        rows[0].out_of,
        len(graded),
        right=sum(row.points == row.out_of for row in graded),
        partly=sum(0 < row.points < row.out_of for row in graded),
        untouched=sum(row.status in UNTOUCHED and not row.points for row in graded),
        diagnoses=tuple(said.most_common()),
    )


@dataclass(frozen=True)
class Movement:
    """How a class moved between two hand-ins, over what was graded in both.

    Attributes:
      exercises: exercise -> mean share of the points before, and after.
      students: student -> points before, and after.
    """

    exercises: dict[str, tuple[float, float]]
    students: dict[str, tuple[float, float]]


def movement(before: Sequence[Row], after: Sequence[Row]) -> Movement:
    """Compares two tables of grades, student by student and exercise by exercise."""
    old, new = (
        {(r.student, r.exercise): r for r in rows if r.exercise and r.points is not None}
        for rows in (before, after)
    )
    exercises, students = defaultdict(list), defaultdict(list)
    for key in old.keys() & new.keys():
        pair = np.array([old[key].points, new[key].points], float)
        students[key[0]].append(pair)
        exercises[key[1]].append(pair / [old[key].out_of, new[key].out_of])
    return Movement(
        {name: tuple(np.mean(pairs, axis=0).tolist()) for name, pairs in exercises.items()},
        {name: tuple(np.sum(pairs, axis=0).tolist()) for name, pairs in students.items()},
    )


def text(view: Overview) -> str:
    """The overview as a table for a terminal."""
    lines = ["exercise  points      all right  most common diagnosis"]
    for e in view.exercises:
        mean = "by hand" if e.mean is None else f"{e.mean:.1f} of {e.out_of:g}"
        message, count = e.diagnosis
        said = f"{count} × {message}" if count else ""
        right = f"{e.right} of {e.graded}" if e.graded else ""
        lines.append(f"{e.exercise:<9} {mean:<11} {right:<10} {_short(said, 90)}".rstrip())
    lines.append("")
    helped = [f"{name} ({points:g} of {of:g})" for name, points, of in view.need_help]
    lines.append(f"below half of the points: {', '.join(helped) or 'nobody'}")
    for student, file, message in view.problems:
        lines.append(f"not graded: {student} {file}: {message}")
    return "\n".join(lines)


def _short(line: str, most: int) -> str:
    return line if len(line) <= most else line[: most - 1] + "…"


def figure(view: Overview):
    """Share of points per exercise, and per student: a matplotlib figure."""
    from matplotlib.figure import Figure

    graded = [e for e in view.exercises if e.mean is not None]
    height = 1.5 + 0.22 * max(len(graded), len(view.students))
    fig = Figure(figsize=(10, height), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.barh([e.exercise for e in graded], [e.mean / e.out_of for e in graded], color="0.35")
    left.set(title="exercises", ylabel="exercise")
    shown = [s for s in view.students if s[2]]
    colors = ["0.75" if s in view.need_help else "0.35" for s in shown]
    right.barh(range(len(shown)), [s[1] / s[2] for s in shown], color=colors)
    # Names are text: nothing between dollars is a formula, and names that begin alike are two.
    names = [_short(s[0], 24) for s in shown]
    right.set_yticks(range(len(shown)), names, parse_math=False)
    right.axvline(NEEDS_HELP, color="0.1", lw=0.8, ls="--")
    right.set(title="students (pale: below half of the points)")
    for ax in (left, right):
        ax.set(xlim=(0, 1), xlabel="share of the points")
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    return fig
