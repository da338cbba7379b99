"""What grading leaves behind: a CSV file, its JSON twin, a feedback page for every student."""

from __future__ import annotations

import codecs
import csv
import hashlib
import hmac
import html
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from diffusion_course import files
from diffusion_course.grading import markup
from diffusion_course.grading import text as texts
from diffusion_course.grading.exercise import CALLED
from diffusion_course.grading.places import Place
from diffusion_course.grading.row import Row

COLUMNS = tuple(field.name for field in fields(Row))
# As `page_name` makes them, also before it made them longer.
_PAGE = re.compile(r"[A-Za-z0-9_-]*-[0-9a-f]{6,16}\.html")


def require(out: Path) -> None:
    """Raises: ValueError unless OUT, its twin and its pages can be written, and nothing else is.

    Whoever else may write in that folder could lay a link there that leads to files of yours.

    Args:
      out: path of the CSV file.
    """
    for path in (out, out.with_suffix(".json")):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path} is not an ordinary file: remove it")
    pages = feedback_folder(out)
    if pages.is_symlink() or (pages.exists() and not pages.is_dir()):
        raise ValueError(f"{pages} is not an ordinary folder: remove it")
    if pages.exists() and pages.stat().st_uid != os.geteuid():
        raise ValueError(f"{pages} is somebody else's: give another --out")


def write(
    out: Path,
    rows: Sequence[Row],
    secret: str,
    titles: Mapping[str, str] | None = None,
    places: Mapping[str, Place] | None = None,
) -> tuple[Path, Path, Path]:
    """Writes OUT, its .json twin and a folder of feedback pages.

    Files are replaced as a whole, so that a reader never meets half of one.

    Args:
      out: path of the CSV file.
      rows: of all students.
      secret: from which the names of the pages are made, so that nobody can guess them.
      titles: of the exercises, for the pages.
      places: exercise -> the section that says it right, for the pages.

    Returns: the three paths.
    Raises: ValueError as `require` does.
    """
    require(out)
    twin, pages = out.with_suffix(".json"), feedback_folder(out)
    twin_rows = files.as_json([asdict(row) for row in rows])
    files.write_together({out: _utf8(to_csv(rows)), twin: twin_rows})
    pages.mkdir(exist_ok=True)
    students = defaultdict(list)
    for row in rows:
        students[row.student].append(row)
    wanted = {pages / page_name(student, secret): mine for student, mine in students.items()}
    for path in pages.glob("*.html"):
        if path not in wanted and _PAGE.fullmatch(path.name):
            path.unlink()  # of an earlier run
    for path, mine in wanted.items():
        files.write(path, _utf8(page(mine[0].student, mine, titles, places)))
    return out, twin, pages


def feedback_folder(out: Path) -> Path:
    """Where the pages that belong to a CSV file lie."""
    return out.with_name(f"{out.stem}_feedback")


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; what is graded by hand has an empty field for its points."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return text.getvalue()


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV file that `write` made, with points that were added by hand.

    A spreadsheet may have saved it since: with semicolons or tabs between the columns, a comma in
    its numbers, a byte order mark, in UTF-16, or without the zero that an exercise begins with.

    Args:
      path: of the file.

    Returns: its rows.
    Raises: OSError; ValueError if it is something else; the text names the line.
    """
    rows = []
    for place, line, comma in read_table(path, COLUMNS):
        try:
            rows.append(_row(line, comma))
        except ValueError as error:
            raise ValueError(f"{path.name}, line {place}: {error}") from None
    return rows


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str], bool]]:
    """The lines of a CSV file with these columns, also as a spreadsheet has saved it.

    Yields: the number of each line, its cells, and whether numbers may have a comma.
    Raises: OSError; ValueError if it is something else.
    """
    text = _text(path)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise ValueError(f"{path.name} must be a CSV file: {error}") from None
    if not lines or tuple(lines[0]) != columns:
        raise ValueError(f"{path.name} must have the columns {', '.join(columns)}")
    for place, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue  # spreadsheets leave empty rows behind
        if len(line) != len(columns):
            raise ValueError(f"{path.name}, line {place}: not a row of grades: {len(line)} columns")
        yield place, line, separator != ","


def _cell(value) -> object:
    if value is None:
        return ""
    return texts.cell(value) if isinstance(value, str) else value


def _text(path: Path) -> str:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} must be a CSV file in UTF-8 or UTF-16: {error}; in the spreadsheet, "
            "choose CSV UTF-8"
        ) from None


def _row(line: list[str], comma: bool) -> Row:
    row = Row(*line)
    points, out_of = (number(v, comma) for v in (row.points, row.out_of))
    if row.exercise and out_of is None:
        raise ValueError("not a row of grades: out_of is empty")
    exercise = row.exercise.strip()
    if re.fullmatch(r"\d[.,]\d+", exercise):  # a spreadsheet made the number 1.2 of 01.2
        exercise = "0" + exercise.replace(",", ".")
    if exercise and not re.fullmatch(r"\d\d\.\d+", exercise):
        raise ValueError(
            f"exercise must look like 01.2, got {exercise!r}; a spreadsheet may have taken it for "
            "a date: import this column as text"
        )
    return Row(row.student, exercise, points, out_of, *line[4:])


def number(text: str, comma: bool) -> float | None:
    """A number of points; in most of Europe it has a comma, and columns have semicolons."""
    text = text.strip()
    if not text:
        return None
    try:
        value = float(text.replace(",", ".") if comma else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"not a row of grades: {text!r} is no number of points")
    return value


def page_name(student: str, secret: str) -> str:
    """A file name of plain letters that no two students share, and nobody else can guess.

    Args:
      student: whose page it is.
      secret: of this grading, such as its seed.

    Returns: the name, which ends in 64 bits of a keyed hash.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", student)[:40]
    key, name = (text.encode("utf-8", "surrogatepass") for text in (secret, student))
    return f"{plain}-{hmac.new(key, name, hashlib.sha256).hexdigest()[:16]}.html"


def page(
    student: str,
    rows: Sequence[Row],
    titles: Mapping[str, str] | None = None,
    places: Mapping[str, Place] | None = None,
) -> str:
    """A student's feedback. Everything that came from the student is escaped.

    Args:
      student: whose.
      rows: of this student.
      titles: exercise -> its title, as far as they are known.
      places: exercise -> the section that says it right; told where points are missing.
    """
    earned = sum(row.points or 0 for row in rows)
    possible = sum(row.out_of or 0 for row in rows)
    waiting = sum(row.status == "manual" and row.points is None for row in rows)
    answers = "written answer is" if waiting == 1 else "written answers are"
    by_hand = f" {waiting} {answers} still to be graded by hand." if waiting else ""
    columns = {"exercise": "text", "outcome": "", "points": "number", "what we saw": "text"}
    lines = [_table_row(row, titles or {}, places or {}) for row in rows]
    return markup.document(
        student,
        f"<p>{earned:g} of {possible:g} points.{by_hand}</p>\n{markup.table(columns, lines)}",
    )


def _table_row(row: Row, titles: Mapping[str, str], places: Mapping[str, Place]) -> list[str]:
    points = "" if row.points is None else f"{row.points:g}"
    points += "" if row.out_of is None else f" / {row.out_of:g}"
    name = markup.escape(row.exercise or row.file)
    title = markup.escape(titles.get(row.exercise, ""))
    said, called, inputs = row.message.partition(CALLED)
    message = markup.escape(said) + (
        f"<br><small>{markup.escape(called + inputs)}</small>" if called else ""
    )
    if row.points is not None and row.points < (row.out_of or 0):
        message += markup.read_again(places.get(row.exercise))
    outcome = "by hand" if row.status == "manual" else markup.escape(row.status)
    return [f"<b>{name}</b> {title}", outcome, points, message]


def refresh(
    out: Path,
    rows: Sequence[Row],
    titles: Mapping[str, str],
    places: Mapping[str, Place] | None = None,
) -> None:
    """Writes the feedback pages that are there anew, with points that were entered since."""
    mine = defaultdict(list)
    for row in rows:
        mine[row.student].append(row)
    for student, link in feedback_pages(out).items():
        if student in mine:
            content = page(student, mine[student], titles, places)
            files.write(out.parent / link, _utf8(content))


def feedback_pages(out: Path) -> dict[str, str]:
    """Student -> the feedback page, as a link from the CSV file's folder; read from the pages.

    Args:
      out: path of the CSV file.
    """
    folder = feedback_folder(out)
    found = {}
    for path in sorted(folder.glob("*.html")):
        title = re.search(r"<title>(.*?)</title>", path.read_text("utf-8"), re.DOTALL)
        if _PAGE.fullmatch(path.name) and title:
            found[html.unescape(title[1])] = f"{folder.name}/{path.name}"
    return found


def _utf8(text: str) -> bytes:
    """Half of a surrogate pair, which a submission can print, must not end everybody's run."""
    return text.encode("utf-8", "backslashreplace")
