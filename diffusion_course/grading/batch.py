"""Grading a folder of submissions: every exercise in the sandbox, every outcome a row."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from diffusion_course import __version__
from diffusion_course.grading import answers, sandbox
from diffusion_course.grading import text as texts
from diffusion_course.grading.assign import PROMPT
from diffusion_course.grading.exercise import Exercise, Written
from diffusion_course.grading.journal import Journal
from diffusion_course.grading.judging import Key
from diffusion_course.grading.row import Row
from diffusion_course.grading.submissions import (
    Refused,
    Submission,
    answer_cells,
    collect,
    excerpt,
    last_check,
    setup_cells,
)


@dataclass(frozen=True)
class Settings:
    """How to grade; with the same settings and files the rows are the same.

    Attributes:
      seed: the secret that inputs are drawn from.
      chapter: the only one to grade, or None.
      limits: of each exercise.
      walled: whether submissions run in the sandbox.
      jobs: submissions at once.
    """

    seed: str
    chapter: str | None = None
    limits: sandbox.Limits = field(default_factory=sandbox.Limits)
    walled: bool = True
    jobs: int = 2

    def header(self) -> dict:
        """All that the rows of a submission depend on besides it, as plain JSON."""
        limits = asdict(self.limits)
        named = {"version": __version__, "seed": self.seed, "walled": self.walled}
        return named | {"limits": limits}


def _numbers(seed: str) -> list[int]:
    """The seed as whole numbers for NumPy."""
    digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
    return [int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4)]


@dataclass(frozen=True)
class Graded:
    """All rows in their order, and how long the submissions took.

    Attributes:
      rows: of all students.
      submissions: how many were graded now, and not in the run that was interrupted.
      seconds: that they took.
      failed: paths of those on which the grader itself failed; their rows have no points.
    """

    rows: list[Row]
    submissions: int
    seconds: float
    failed: list[str]


def grade(
    folder: Path,
    journal: Journal,
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Graded:
    """Grades every submission below a folder.

    Args:
      folder: of the submissions.
      journal: in which finished submissions are noted, so that an interrupted run goes on. What
        it knows is used if it was noted with the same settings.
      settings: see `Settings`.
      progress: called with how many submissions are done and how many there are.

    Raises: sandbox.NotStarted if the machine cannot run submissions; OSError.
    """
    found, refused = collect(folder, answers.chapters(), settings.chapter)
    begin = time.monotonic()
    journal.begin(settings.header())
    # By file and chapter: a workshop's one notebook holds several chapters.
    graded = {_key(s): journal.rows(_key(s)) for s in found}
    todo = [s for s in found if graded[_key(s)] is None]
    before, failed = len(found) - len(todo), []
    progress(before, len(found))
    for number, (submission, rows) in enumerate(_in_turns(todo, settings), start=1):
        if isinstance(rows, Exception):
            failed.append(submission.path)
            rows = [_failure(submission, rows)]
        else:
            journal.note(_key(submission), rows)
        graded[_key(submission)] = rows
        progress(before + number, len(found))
    rows = [row for submission in found for row in graded[_key(submission)]]
    rows += [_refusal(r) for r in refused] + _absent(found, settings)
    rows.sort(key=lambda row: (row.student, row.exercise, row.file))
    return Graded(rows, len(todo), time.monotonic() - begin, failed)


def _in_turns(
    todo: list[Submission], settings: Settings
) -> Iterator[tuple[Submission, list[Row] | Exception]]:
    """Grades some submissions at once; yields each as it is done.

    One that was late or stopped may have been the victim of another that took all processors or
    all memory. What it lost is graded once more at the end, alone.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for submission in todo:
        waiting.put(submission)

    def work() -> None:
        while True:
            try:
                submission = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((submission, grade_one(submission, settings)))
            except BaseException as error:  # the grader's own failure: for whoever waits
                done.put((submission, error))

    # Daemons: an interrupted run ends at once, and its sandboxes with it.
    workers = min(settings.jobs, len(todo))
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    again = []
    for _ in todo:
        submission, rows = done.get()
        if isinstance(rows, Exception):
            again.append((submission, []))
        elif isinstance(rows, BaseException):
            raise rows
        elif workers > 1 and any(row.status in _LOST for row in rows):
            again.append((submission, rows))
        else:
            yield submission, rows
    for submission, rows in again:
        lost = {row.exercise for row in rows if row.status in _LOST}
        try:
            repeated = {r.exercise: r for r in grade_one(submission, settings, lost or None)}
        except sandbox.NotStarted:
            raise  # alone: it is the machine, and it would be so for everybody
        except Exception as error:  # whatever it is about this one, it is not the others' fault
            yield submission, error
        else:
            kept = [row for row in rows if row.exercise not in repeated]
            yield submission, sorted([*kept, *repeated.values()], key=lambda row: row.exercise)


_LOST = ("timeout", "stopped")


def grade_one(
    submission: Submission, settings: Settings, only: Collection[str] | None = None
) -> list[Row]:
    """The rows of one notebook: one for every exercise of its chapter, or for some of them."""
    group = answers.chapters()[submission.chapter]
    if only is not None:
        # From the end: those that the first time had no time left.
        group = [exercise for exercise in reversed(group) if exercise.id in only]
    keys = {e.id: _key_of(e.id, settings.seed) for e in group if isinstance(e, Exercise)}
    jobs = [_job(submission, e, keys[e.id].cases) for e in group if isinstance(e, Exercise)]
    jobs = [job for job in jobs if job is not None]
    outcomes = sandbox.run(jobs, settings.limits, settings.walled) if jobs else {}
    rows = []
    for exercise in group:
        if isinstance(exercise, Written):
            rows.append(_by_hand(submission, exercise))
        elif exercise.id not in outcomes:
            text = f"no cell answers {exercise.id}: it was deleted or its function renamed"
            rows.append(_row(submission, exercise, 0, "missing", text))
        else:
            verdict = _judge(keys[exercise.id], outcomes[exercise.id])
            rows.append(_row(submission, exercise, *verdict))
    return rows


@cache
def _key_of(exercise: str, seed: str) -> Key:
    """What is right for every submission of a run: computed once."""
    found = answers.find(exercise)
    return Key(found, found.cases(_numbers(seed)))


def _job(submission: Submission, exercise: Exercise, cases) -> sandbox.Job | None:
    mine = answer_cells(submission.cells, exercise)
    if not mine:
        return None
    # The same cell may stand there twice: which it is, its place tells.
    answering, end = set(map(id, mine)), last_check(submission.cells, exercise)
    setup = [{"source": c.source, "answer": False} for c in setup_cells(submission.cells)]
    everything = [
        {"source": c.source, "answer": id(c) in answering, "after": n > end}
        for n, c in enumerate(submission.cells)
        if c.kind == "code" and (id(c) in answering or not c.grade_id.startswith("check-"))
    ]
    own = [{"source": c.source, "answer": True} for c in mine]
    terms = exercise.terms(answers.chapters()[submission.chapter])
    return sandbox.Job(exercise.id, exercise.function, setup + own, everything, cases, terms)


def _judge(key: Key, outcomes) -> tuple[int, str, str]:
    """Points, status and message; whatever was returned, it concerns this exercise only."""
    try:
        with np.errstate(all="ignore"):
            verdict = key.verdict(outcomes)
    except Exception as error:  # whatever strange arrays do, the others are graded
        return 0, "error", f"your result cannot be compared ({type(error).__name__})"
    return verdict.points, verdict.status, verdict.message


def _row(s: Submission, e: Exercise | Written, points: int | None, status: str, text: str) -> Row:
    return Row(s.student, e.id, points, e.points, status, text, s.path)


def _by_hand(submission: Submission, question: Written) -> Row:
    text = excerpt(submission.cells, question)
    if not text or text == PROMPT:
        return _row(submission, question, 0, "not attempted", "no answer written")
    return _row(submission, question, None, "manual", text)


def _refusal(refused: Refused) -> Row:
    return Row(refused.student, "", None, None, refused.status, refused.message, refused.path)


def _failure(submission: Submission, error: Exception) -> Row:
    text = f"the grader itself failed on this notebook ({type(error).__name__}): {error}"
    text = texts.line(text)[:400]
    return Row(submission.student, "", None, None, "not graded", text, submission.path)


def _absent(found: list[Submission], settings: Settings) -> list[Row]:
    """A row for every chapter that others have handed in and a student has not."""
    chapters = sorted({s.chapter for s in found})
    have = {(s.student, s.chapter) for s in found}
    rows = []
    for student in sorted({s.student for s in found}):
        for chapter in chapters:
            if (student, chapter) not in have:
                text = f"no notebook of chapter {chapter}"
                rows.append(Row(student, "", None, None, "missing", text, ""))
    return rows


def _key(submission: Submission) -> str:
    return f"{submission.path} {submission.chapter} {submission.sha256}"
