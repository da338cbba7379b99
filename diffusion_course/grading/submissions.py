"""A folder of submissions: which notebook is whose, and what is in it. None is trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from diffusion_course.grading.assign import grade_id
from diffusion_course.grading.exercise import Exercise, Written
from diffusion_course.grading.senders import senders

MAX_BYTES = 20_000_000
# Pictures make a notebook large; what people write stays far below these.
MAX_CODE = 1_000_000
MAX_CELLS = 10_000
_TEMPORARY = {".ipynb_checkpoints", "__pycache__", "__MACOSX"}
_EXCERPT = 200


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook; `grade_id` is nbgrader's, or empty; `setup` is its tag."""

    kind: str
    source: str
    grade_id: str
    setup: bool


@dataclass(frozen=True)
class Submission:
    """A notebook that can be graded.

    Attributes:
      student: whose it is.
      chapter: "03".
      path: of the file, from the folder of submissions.
      cells: of the notebook.
      sha256: of the file.
    """

    student: str
    chapter: str
    path: str
    cells: tuple[Cell, ...]
    sha256: str


@dataclass(frozen=True)
class Refused:
    """A file that is not graded, and why."""

    student: str
    path: str
    status: str
    message: str


class Unreadable(ValueError):
    """A file is no notebook; the text says why."""


def collect(
    folder: Path, chapters: dict[str, tuple], wanted: str | None = None
) -> tuple[list[Submission], list[Refused]]:
    """All submissions below a folder: one notebook per student, or one folder per student.

    The names that Moodle, Canvas and Blackboard give to downloads are understood.

    Args:
      folder: of the submissions.
      chapters: what there is, from `answers.chapters`.
      wanted: take this chapter only, "03".

    Returns: what can be graded and what can't, both in the order of their paths.
    """
    found, refused, attempts = [], [], {}
    paths = sorted(_files(folder))
    whose = senders([path.relative_to(folder) for path in paths])
    for path, sender in zip(paths, whose, strict=True):
        student = _printable(sender.student)
        name = _printable(path.relative_to(folder).as_posix())
        attempts[name] = sender.attempt
        try:
            content = _content(path)
            cells = read(content)
            chapter = _chapter(sender.file, cells, chapters)
        except Unreadable as error:
            refused.append(Refused(student, name, "unreadable", str(error)))
            continue
        if wanted in (None, chapter):
            digest = hashlib.sha256(content).hexdigest()
            found.append(Submission(student, chapter, name, cells, digest))
    return _one_each(found, refused, attempts)


def _files(folder: Path):
    """Every file, and every folder that cannot be opened; folders may lie a thousand deep."""
    todo = [folder]
    while todo:
        place = todo.pop()
        try:
            with os.scandir(place) as entries:
                inside = list(entries)
        except OSError:
            yield place
            continue
        for entry in inside:
            if entry.name.startswith(".") or entry.name in _TEMPORARY:
                continue
            if entry.is_dir(follow_symlinks=False):
                todo.append(place / entry.name)
            else:
                yield place / entry.name


def _printable(text: str) -> str:
    """A name that can be written to a file, also where its bytes on disk are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _content(path: Path) -> bytes:
    """A file's bytes. Raises: Unreadable."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise Unreadable("a folder that cannot be opened")
        if path.suffix != ".ipynb":
            raise Unreadable("not a notebook: its name does not end in .ipynb")
        if not stat.S_ISREG(mode):
            raise Unreadable("not an ordinary file")
        if path.stat().st_size > MAX_BYTES:
            size = path.stat().st_size / 1e6
            raise Unreadable(f"{size:.0f} MB: larger than {MAX_BYTES / 1e6:.0f} MB")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def read(content: bytes) -> tuple[Cell, ...]:
    """The cells of a notebook file. Raises: Unreadable for anything else."""
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable("not a notebook: its text is not JSON") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("not a notebook of format 4: it has no list of cells")
    if len(cells) > MAX_CELLS:
        raise Unreadable(f"{len(cells)} cells: more than {MAX_CELLS}")
    cells = tuple(_cell(number, cell) for number, cell in enumerate(cells, start=1))
    code = sum(len(cell.source) for cell in cells if cell.kind == "code")
    if code > MAX_CODE:
        raise Unreadable(f"{code / 1e6:.1f} MB of code: more than {MAX_CODE / 1e6:.0f} MB")
    return cells


def _cell(number: int, cell) -> Cell:
    problem = Unreadable(f"not a notebook: cell {number} is malformed")
    if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
        raise problem
    source = cell.get("source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise problem
    # Half a character, which JSON can spell, could not be written to a file.
    source = source.encode("utf-8", "replace").decode()
    metadata = cell.get("metadata")
    graded = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = graded.get("grade_id") if isinstance(graded, dict) else None
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    setup = isinstance(tags, list) and "setup" in tags
    return Cell(cell["cell_type"], source, name if isinstance(name, str) else "", setup)


def _chapter(name: str, cells: tuple[Cell, ...], chapters: dict[str, tuple]) -> str:
    """The chapter that a notebook belongs to, by its cells, else by its name."""
    scores = {
        chapter: sum(bool(answer_cells(cells, exercise)) for exercise in group)
        for chapter, group in chapters.items()
    }
    best = max(scores, key=lambda chapter: scores[chapter])
    if scores[best]:
        return best
    number = re.match(r"\d\d", name)
    if number and number[0] in chapters:
        return number[0]
    raise Unreadable("no exercise of the course is in it")


def answer_cells(cells: tuple[Cell, ...], exercise: Exercise | Written) -> list[Cell]:
    """The cells that answer an exercise: by their metadata, or where that is gone by content.

    A student may also leave the given cell as it is and write the function in one of their own
    below it: that one counts too, if it stands above the exercise's last check or in its cell.
    """
    if isinstance(exercise, Written):
        wanted = grade_id("written", exercise.id)
        return [c for c in cells if c.grade_id == wanted and c.kind == "markdown"]
    named = _named(cells, grade_id("answer", exercise.id))
    end = last_check(cells, exercise)
    begin = named[-1] if named else -1
    check = ("", grade_id("check", exercise.id))
    own = [
        n for n, c in enumerate(cells[: end + 1])
        if n > begin and c.kind == "code" and (not named or c.grade_id in check)
        and _defines(c.source, exercise.function)
    ]  # fmt: skip
    return [cells[n] for n in (*named, *own)]


def last_check(cells: tuple[Cell, ...], exercise: Exercise) -> int:
    """The place of the last cell that checks this exercise: what it sees is the answer.

    Where none does, the last place before another exercise's cells, or the end.
    """
    given = grade_id("check", exercise.id)
    call = re.compile(rf"""^[^#\n]*\bcheck\(\s*["']{re.escape(exercise.id)}["']""", re.M)
    checks = [
        n for n, c in enumerate(cells)
        if c.kind == "code" and (c.grade_id == given or call.search(c.source))
    ]  # fmt: skip
    if checks:
        return checks[-1]
    named = _named(cells, grade_id("answer", exercise.id))
    others = [n for n, c in enumerate(cells) if named and c.grade_id and n > named[-1]]
    return others[0] - 1 if others else len(cells) - 1


def _named(cells: tuple[Cell, ...], name: str) -> list[int]:
    return [n for n, c in enumerate(cells) if c.kind == "code" and c.grade_id == name]


def setup_cells(cells: tuple[Cell, ...]) -> list[Cell]:
    """What every answer needs: the tagged cells, or where tags are lost the first with imports.

    What a student sets in JAX's configuration, such as 64 bits, holds for every answer as well.
    """
    code = [c for c in cells if c.kind == "code" and not c.grade_id]
    setup = [c for c in code if c.setup] or [c for c in code if "import" in c.source][:2]
    chosen = set(map(id, setup))
    return [c for c in code if id(c) in chosen or "config.update(" in c.source]


def _defines(source: str, function: str) -> bool:
    # No parser: Python's own takes a thousand times the memory of a text that means harm.
    names = r"(?:[\w.]+[ \t]*[,=][ \t]*)*"  # a, b = …; a = b = …
    return bool(
        re.search(
            rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+{function}\b|class[ \t]+{function}\b"
            rf"|from\b.{{0,200}}\bimport\b.{{0,200}}\b{function}[ \t]*(?:,|\)|#|$)"
            rf"|{names}{function}[ \t]*(?::[^=\n]*|,[^=(\n]*)?=(?!=))",
            source,
            re.M,
        )
    )


def excerpt(cells: tuple[Cell, ...], question: Written) -> str:
    """The beginning of a written answer; empty if there is none."""
    text = " ".join(" ".join(c.source for c in answer_cells(cells, question)).split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _one_each(
    found: list[Submission], refused: list[Refused], attempts: dict[str, str]
) -> tuple[list[Submission], list[Refused]]:
    """At most one notebook of a chapter for a student; the others are named."""
    groups = defaultdict(list)
    for submission in found:
        groups[submission.student, submission.chapter].append(submission)
    kept = []
    for (student, chapter), group in groups.items():
        # The name that the course gave it goes first: "03_ddpm.ipynb" before "03_ddpm (1).ipynb".
        group.sort(key=lambda s: (len(s.path), s.path))
        group.sort(key=lambda s: attempts[s.path], reverse=True)  # of several attempts the last
        kept.append(group[0])
        for other in group[1:]:
            text = f"not graded: {group[0].path} is this student's notebook of chapter {chapter}"
            refused.append(Refused(student, other.path, "duplicate", text))
    return sorted(kept, key=lambda s: s.path), sorted(refused, key=lambda r: r.path)
