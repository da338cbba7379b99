"""Grading a folder of submissions: every exercise in the sandbox, every outcome a row."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from diffusion_course import __version__
from diffusion_course.grading import answers, sandbox
from diffusion_course.grading.assign import PROMPT
from diffusion_course.grading.exercise import Exercise, Written
from diffusion_course.grading.judging import judge
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
class Row:
    """One line of the result.

    Attributes:
      student: whose.
      exercise: its id; empty for a file that is not graded.
      points: earned; None for what is graded by hand.
      out_of: how many there are; None for a file that is not graded.
      status: "right", "partly right", "wrong", "not attempted", "error", "timeout", "stopped",
        "missing", "manual", "unreadable" or "duplicate".
      message: what is wrong, or the beginning of a written answer.
      file: the path in the folder of submissions.
    """

    student: str
    exercise: str
    points: int | None
    out_of: int | None
    status: str
    message: str
    file: str


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

    def numbers(self) -> list[int]:
        """The seed as whole numbers for NumPy."""
        digest = hashlib.sha256(self.seed.encode()).digest()
        return [int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4)]


@dataclass(frozen=True)
class Graded:
    """All rows in their order, and how long the submissions took."""

    rows: list[Row]
    submissions: int
    seconds: float


def grade(
    folder: Path,
    journal: Path,
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Graded:
    """Grades every submission below a folder.

    Args:
      folder: of the submissions.
      journal: a file that finished submissions are noted in, so that an interrupted run goes on.
        It is used again if it was written with the same settings, and left to the caller.
      settings: see `Settings`.
      progress: called with how many submissions are done and how many there are.
    """
    found, refused = collect(folder, answers.chapters(), settings.chapter)
    begin = time.monotonic()
    with _Journal(journal, settings) as known:
        todo = [s for s in found if known.rows_of(s) is None]
        before = len(found) - len(todo)
        progress(before, len(found))
        for number, (submission, rows) in enumerate(_in_turns(todo, settings), start=1):
            known.note(submission, rows)
            progress(before + number, len(found))
        graded = {s.path: known.rows_of(s) for s in found}
    rows = [row for submission in found for row in graded[submission.path]]
    rows += [_refusal(r) for r in refused] + _absent(found, settings)
    rows.sort(key=lambda row: (row.student, row.exercise, row.file))
    return Graded(rows, len(todo), time.monotonic() - begin)


def _in_turns(todo: list[Submission], settings: Settings) -> Iterator[tuple[Submission, list[Row]]]:
    """Grades some submissions at once; yields each as it is done.

    One that was late or stopped may have been the victim of another that took all processors or
    all memory. It is graded once more at the end, alone.
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
            except BaseException as error:  # the grader's own failure: raised by whoever waits
                done.put((submission, error))

    # Daemons: an interrupted run ends at once, and its sandboxes with it.
    workers = min(settings.jobs, len(todo))
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    again = []
    for _ in todo:
        submission, rows = done.get()
        if isinstance(rows, BaseException):
            raise rows
        if workers > 1 and any(row.status in ("timeout", "stopped") for row in rows):
            again.append(submission)
        else:
            yield submission, rows
    for submission in again:
        yield submission, grade_one(submission, settings)


def grade_one(submission: Submission, settings: Settings) -> list[Row]:
    """The rows of one notebook: one for every exercise of its chapter."""
    group = answers.chapters()[submission.chapter]
    cases = {e.id: e.cases(settings.numbers()) for e in group if isinstance(e, Exercise)}
    jobs = [_job(submission, e, cases[e.id]) for e in group if isinstance(e, Exercise)]
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
            verdict = _judge(exercise, cases[exercise.id], outcomes[exercise.id])
            rows.append(_row(submission, exercise, *verdict))
    return rows


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


def _judge(exercise: Exercise, cases, outcomes) -> tuple[int, str, str]:
    """Points, status and message; whatever was returned, it concerns this exercise only."""
    try:
        with np.errstate(all="ignore"):
            verdict = judge(exercise, cases, outcomes)
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


def seed_of(journal: Path) -> str | None:
    """The seed of an interrupted run, or None if there was none."""
    try:
        header = _json(journal.read_text(encoding="utf-8").partition("\n")[0])
    except OSError:
        return None
    return header.get("seed") if isinstance(header, dict) else None


class _Journal:
    """Finished submissions, one JSON line each, behind a line that says how they were graded.

    It holds the seed: whoever runs the grading may read it, and no submission can.
    """

    def __init__(self, path: Path, settings: Settings):
        self.path = path
        self.header = {
            "version": __version__,
            "seed": settings.seed,
            "limits": asdict(settings.limits),
            "walled": settings.walled,
        }
        self.known: dict[str, list[Row]] = {}

    def __enter__(self) -> _Journal:
        lines = self._lines()
        if lines and _json(lines[0]) == self.header:
            for entry in map(_json, lines[1:]):  # the last may be cut off
                if entry:
                    self.known[entry["key"]] = [Row(**row) for row in entry["rows"]]
        self.file = self.path.open("w", encoding="utf-8")
        self._write(self.header)
        for key, rows in self.known.items():
            self._write({"key": key, "rows": [asdict(row) for row in rows]})
        return self

    def _lines(self) -> list[str]:
        # Not splitlines: a student's text may hold what it, and JSON not, takes for a line's end.
        return self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []

    def __exit__(self, *_) -> None:
        self.file.close()

    def rows_of(self, submission: Submission) -> list[Row] | None:
        return self.known.get(_key(submission))

    def note(self, submission: Submission, rows: list[Row]) -> None:
        self.known[_key(submission)] = rows
        self._write({"key": _key(submission), "rows": [asdict(row) for row in rows]})

    def _write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.file.flush()


def _key(submission: Submission) -> str:
    return f"{submission.path} {submission.chapter} {submission.sha256}"


def _json(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
