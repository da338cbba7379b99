"""Written answers: side by side with the rubric, and the points that a person gives them.

The points stand in one file beside the grades. `grade` and `report` read it and add lines for
answers that wait; a line that is there is never changed.
"""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import nbformat

from diffusion_course import files
from diffusion_course.grading import text as texts
from diffusion_course.grading.assign import PROMPT, grade_id
from diffusion_course.grading.exercise import Exercise, Written
from diffusion_course.grading.markup import document, escape
from diffusion_course.grading.results import number, read_table
from diffusion_course.grading.row import Row
from diffusion_course.grading.submissions import Submission, answer_cells


@dataclass(frozen=True)
class Entry:
    """The points that a person gives a written answer.

    Attributes:
      student, exercise: whose answer to what.
      points: 0 … out_of, also halves; None until they are entered.
      out_of: how many there are.
      comment: what the student reads in the place of the own words.
    """

    student: str
    exercise: str
    points: float | None
    out_of: float
    comment: str = ""


@dataclass(frozen=True)
class Question:
    """A written question with a class's answers.

    Attributes:
      exercise, title, points: its id, title and points.
      rubric: from the master, or empty where that is not at hand.
      examples: answers that earn less, from `examples`.
      answers: student -> what was written, in the students' order.
    """

    exercise: str
    title: str
    points: int
    rubric: str
    answers: Mapping[str, str]
    examples: Sequence[Mapping] = ()


COLUMNS = tuple(field.name for field in fields(Entry))


def entries_file(out: Path) -> Path:
    """Where the points for the grades in `out` are entered."""
    return out.with_name(f"{out.stem}_by_hand.csv")


def page_file(out: Path) -> Path:
    """Where the answers for the grades in `out` can be read."""
    return out.with_name(f"{out.stem}_by_hand.html")


def read(path: Path) -> list[Entry]:
    """What has been entered; nothing if the file isn't there yet.

    Raises: OSError; ValueError that names the line: no table of this kind, points that are none or
      not within 0 … out_of, a student's question twice.
    """
    if not path.exists():
        return []
    entries: dict[tuple[str, str], Entry] = {}
    for place, line, comma in read_table(path, COLUMNS):
        try:
            entry = _entry(line, comma)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {place}: {error}") from None
        key = entry.student, entry.exercise
        if key in entries:
            raise ValueError(f"{path.name}, line {place}: {' '.join(key)} stands there twice")
        entries[key] = entry
    return list(entries.values())


def _entry(line: list[str], comma: bool) -> Entry:
    student, exercise, points, out_of, comment = line
    earned, possible = number(points, comma), number(out_of, comma)
    if possible is None:
        raise ValueError("out_of is empty")
    if earned is not None and not 0 <= earned <= possible:
        raise ValueError(f"points must be within 0 … {possible:g}, got {points}")
    return Entry(student, exercise, earned, possible, comment)


def extended(entries: Sequence[Entry], rows: Sequence[Row]) -> list[Entry]:
    """The entries as they are, and one without points for each further answer that waits."""
    known = {(entry.student, entry.exercise) for entry in entries}
    new = [
        Entry(row.student, row.exercise, None, row.out_of)
        for row in rows
        if row.status == "manual" and (row.student, row.exercise) not in known
    ]
    return [*entries, *new]


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the file of points as a whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        cells = ["" if value is None else value for value in astuple(entry)]
        writer.writerow([texts.cell(v) if isinstance(v, str) else f"{v:g}" for v in cells])
    files.write(path, text.getvalue().encode("utf-8", "backslashreplace"))


def merged(rows: Sequence[Row], entries: Sequence[Entry]) -> list[Row]:
    """The rows with the points that were entered, and the comment as what the student reads."""
    given = {(e.student, e.exercise): e for e in entries if e.points is not None}
    found = []
    for row in rows:
        entry = given.get((row.student, row.exercise)) if row.status == "manual" else None
        if entry:
            whole = entry.points == int(entry.points)
            points = int(entry.points) if whole else entry.points
            row = replace(row, points=points, message=entry.comment or row.message)
        found.append(row)
    return found


def questions(
    submissions: Sequence[Submission],
    chapters: Mapping[str, Sequence[Exercise | Written]],
    rubrics: Mapping[str, str],
    examples: Mapping[str, Sequence[Mapping]],
) -> list[Question]:
    """The written questions of the chapters that were handed in, with the answers.

    Args:
      submissions: from `submissions.collect`.
      chapters: from `answers.chapters`.
      rubrics: exercise -> rubric, from `rubrics`.
      examples: exercise -> example answers, from `examples`.
    """
    found = []
    for chapter in sorted({s.chapter for s in submissions}):
        mine = [s for s in submissions if s.chapter == chapter]
        for question in chapters[chapter]:
            if isinstance(question, Written):
                said = {s.student: _said(s, question) for s in mine}
                answered = {student: text for student, text in said.items() if text}
                found.append(
                    Question(
                        question.id,
                        question.title,
                        question.points,
                        rubrics.get(question.id, ""),
                        answered,
                        examples.get(question.id, ()),
                    )
                )
    return found


def _said(submission: Submission, question: Written) -> str:
    text = "\n\n".join(cell.source for cell in answer_cells(submission.cells, question)).strip()
    return "" if text == PROMPT else text


def rubrics(course: Path) -> dict[str, str]:
    """Exercise -> the model answer and rubric, from the masters below the course's folder."""
    found = {}
    for path in sorted((course / "solutions").glob("[0-9]*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            if match := re.fullmatch(grade_id("written", r"(\d\d)\.(\d+)"), name):
                lines = cell.source.splitlines()
                kept = [line for line in lines if not line.startswith("### ")]
                # A source's lines end at a width that the page doesn't have; a list's lines stay.
                text = re.sub(r"(?<!\n)\n[ \t]*(?!\n|\d+\. |[-*|] )", " ", "\n".join(kept))
                found[f"{match[1]}.{match[2]}"] = text.strip()
    return found


def examples(course: Path) -> dict[str, list[dict]]:
    """Exercise -> example answers, each with "points", "answer" and "why"."""
    path = course / "solutions" / "examples.toml"
    return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}


_STYLE = """<style>
.pair { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 1.5rem }
.rubric { background: var(--soft); border-radius: .5rem; padding: .7rem 1rem; position: sticky;
  top: .5rem; align-self: start }
.words { white-space: pre-wrap; overflow-wrap: anywhere }
.answer { border-top: 1px solid var(--line); padding: .6rem 0 }
@media (max-width: 44rem) { .pair { grid-template-columns: 1fr } .rubric { position: static } }
@media print { .rubric { position: static } .answer { break-inside: avoid } }
</style>"""


def page(asked: Sequence[Question], entries: Sequence[Entry], file: str) -> str:
    """All answers beside their rubrics, as one HTML file. Everything from students is escaped.

    Args:
      asked: the questions.
      entries: what was entered so far.
      file: name of the file in which points are entered.
    """
    given = {(e.student, e.exercise): e for e in entries}
    parts = [
        _STYLE,
        f"<p>Points are entered in <b>{escape(file)}</b>, one line for each answer, in the column "
        "<i>points</i>; a comment is what the student will read. Then run <code>report</code> "
        "again.</p>",
    ]
    for question in asked:
        rubric = question.rubric or "The rubric is in the course's folder solutions/."
        answers = "".join(
            _answer(student, text, given.get((student, question.exercise)), question.points)
            for student, text in question.answers.items()
        )
        parts.append(
            f"<h2>{escape(question.exercise)} {escape(question.title)}</h2>\n"
            f'<div class="pair"><div class="rubric"><b>{question.points} points</b>'
            f'<div class="words">{escape(rubric)}</div>{_examples(question)}</div>\n'
            f"<div>{answers or '<p class=quiet>No answers.</p>'}</div></div>"
        )
    return document("Written answers", "\n".join(parts))


def _examples(question: Question) -> str:
    lines = [
        f"<p><b>{each['points']:g} of {question.points:g}</b> “{escape(each['answer'])}”<br>"
        f'<span class="quiet">{escape(each["why"])}</span></p>'
        for each in question.examples
    ]
    opened = "<details><summary>Answers that earn less</summary>"
    return f"{opened}{''.join(lines)}</details>" if lines else ""


def _answer(student: str, text: str, entry: Entry | None, possible: int) -> str:
    points = "–" if entry is None or entry.points is None else f"{entry.points:g}"
    comment = f'<p class="quiet">{escape(entry.comment)}</p>' if entry and entry.comment else ""
    return (
        f'<div class="answer"><b>{escape(student)}</b> '
        f'<span class="quiet">{points} of {possible:g}</span>'
        f'<div class="words">{escape(text)}</div>{comment}</div>\n'
    )
