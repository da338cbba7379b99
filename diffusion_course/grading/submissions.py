"""A folder of submissions: which notebook is whose, and what is in it. None is trusted."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from diffusion_course.grading import text as texts
from diffusion_course.grading.assign import grade_id
from diffusion_course.grading.exercise import Exercise, Written
from diffusion_course.grading.senders import senders

MAX_BYTES = 20_000_000
# Pictures make a notebook large; what people write stays far below these.
MAX_CODE = 1_000_000
MAX_CELLS = 10_000
_TEMPORARY = {".ipynb_checkpoints", "__pycache__", "__MACOSX"}
_EXCERPT = 200
# A class's notebooks are all in memory at once: of a written answer, of all of a notebook, and of
# a cell's name no more than this is kept.
_KEPT_OF_A_TEXT = 20 * _EXCERPT
_KEPT_OF_ALL_TEXTS = 20 * _KEPT_OF_A_TEXT
_KEPT_OF_A_NAME = 100
_MOST_ROWS = 100  # of a student's files that are not graded


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook; `grade_id` is nbgrader's, or empty; `setup` is its tag.

    Of a written answer only the beginning is kept, of all other text nothing.
    """

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
    """A file that is not graded, or a student who has none (the path is a folder's or empty)."""

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

    Returns: what can be graded and what can't, both in the order of their paths. Every student
      is in one of them: who has handed in nothing, or nothing of the wanted chapter, is "missing".
    Raises: OSError if the folder cannot be opened.
    """
    best = _Best()
    notebooks, refused, students = read_all(folder)
    for n in notebooks:
        try:
            parts = _parts(n.cells, chapters) or {_chapter(n.file, n.cells, chapters): n.cells}
        except Unreadable as error:
            refused.append(Refused(n.student, n.path, "unreadable", str(error)))
            continue
        for chapter, part in parts.items():
            if wanted in (None, chapter):
                best.add(Submission(n.student, chapter, n.path, part, n.sha256), n.attempt)
    found = best.submissions()
    refused += best.duplicates()
    missing = students - {s.student for s in [*found, *refused]}
    text = f"no notebook of chapter {wanted}"
    refused += [Refused(student, "", "missing", text) for student in missing]
    return found, _shortened(sorted(refused, key=lambda r: (r.path, r.student)))


@dataclass(frozen=True)
class Notebook:
    """A notebook as it was handed in.

    Attributes:
      student: whose it is.
      file: its name, as the student had it.
      attempt: when it was handed in, as sortable text; empty where nothing says so.
      path: from the folder of submissions, made printable.
      cells: of the notebook.
      sha256: of the file.
    """

    student: str
    file: str
    attempt: str
    path: str
    cells: tuple[Cell, ...]
    sha256: str


def read_all(folder: Path) -> tuple[list[Notebook], list[Refused], set[str]]:
    """Every notebook below a folder, what cannot be read, and all students, in order of paths.

    Raises: OSError if the folder cannot be opened.
    """
    found, refused = [], []
    places = sorted(_places(folder))
    relative = {place: place.path.relative_to(folder) for place in places}
    # A folder that is empty or closed is a student's, as if it held a file.
    whose = senders([relative[p] / "file" if p.problem else relative[p] for p in places])
    names = texts.distinct({p: _readable(relative[p].as_posix()) for p in places})
    for place, sender in zip(places, whose, strict=True):
        student, name = sender.student, names[place]
        if place.problem:
            refused.append(Refused(student, name, *place.problem))
            continue
        try:
            content = _content(place.path)
            cells = read(content)
        except Unreadable as error:
            refused.append(Refused(student, name, "unreadable", str(error)))
            continue
        digest = hashlib.sha256(content).hexdigest()
        found.append(Notebook(student, sender.file, sender.attempt, name, cells, digest))
    return found, refused, {sender.student for sender in whose}


@dataclass(frozen=True, order=True)
class _Place:
    """A file; or a folder that is no use, with the status and message that its student gets."""

    path: Path
    problem: tuple[str, str] | tuple[()] = ()


_EMPTY = ("missing", "nothing was handed in: no file is in this folder")


def _places(folder: Path) -> list[_Place]:
    """Every file, every folder that cannot be opened, and at the top those that hold no file.

    Folders may lie a thousand deep.
    """
    found, tops = [], set()
    todo = [folder]
    while todo:
        here = todo.pop()
        try:
            with os.scandir(here) as entries:
                inside = list(entries)
        except OSError as error:
            if here == folder:
                raise
            text = f"a folder that cannot be opened: {error.strerror}"
            found.append(_Place(here, ("unreadable", text)))
            continue
        for entry in inside:
            if entry.name.startswith(".") or entry.name in _TEMPORARY:
                continue
            if entry.is_dir(follow_symlinks=False):
                todo.append(here / entry.name)
            else:
                found.append(_Place(here / entry.name))
        if here == folder:
            tops = set(todo)
    depth = len(folder.parts) + 1
    filled = {Path(*place.path.parts[:depth]) for place in found}
    return found + [_Place(top, _EMPTY) for top in tops - filled]


def _readable(name: str) -> str:
    """A file's name; for bytes on the disk that are no UTF-8, their numbers."""
    return name.encode("utf-8", "backslashreplace").decode()


def _content(path: Path) -> bytes:
    """A file's bytes. Raises: Unreadable."""
    if path.suffix != ".ipynb":
        raise Unreadable("not a notebook: its name does not end in .ipynb")
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unreadable("not an ordinary file")
        # Neither a link is followed nor a pipe waited for, whatever has come to lie there since.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("not an ordinary file")
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Unreadable(f"{size / 1e6:.0f} MB: larger than {MAX_BYTES / 1e6:.0f} MB")
            return file.read(MAX_BYTES + 1)
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
    texts_kept = sum(len(cell.source) for cell in cells if cell.kind != "code")
    if texts_kept > _KEPT_OF_ALL_TEXTS:
        raise Unreadable(f"{len(cells)} cells: too many of them are written answers")
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
    kind = cell["cell_type"] if cell["cell_type"] in ("code", "markdown") else "other"
    metadata = cell.get("metadata")
    graded = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = graded.get("grade_id") if isinstance(graded, dict) else None
    name = name[:_KEPT_OF_A_NAME] if isinstance(name, str) else ""
    if kind != "code":
        source = source[:_KEPT_OF_A_TEXT] if name else ""
    # Half a character, which JSON can spell, could not be written to a file.
    source = source.encode("utf-8", "replace").decode()
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    setup = isinstance(tags, list) and "setup" in tags
    return Cell(kind, source, name, setup)


# How a part of a workshop's one notebook begins (`app.colab` writes it).
_PART = re.compile(r"# (Chapter|Exercises) of chapter (\d\d|clinic): begins afresh\b")


def _parts(cells: tuple[Cell, ...], chapters: dict[str, tuple]) -> dict[str, tuple[Cell, ...]]:
    """The exercises of each chapter in a workshop's one notebook; empty for any other notebook."""
    begins = [n for n, cell in enumerate(cells) if _PART.match(cell.source)]
    parts = {}
    for begin, end in itertools.pairwise([*begins, len(cells)]):
        what, chapter = _PART.match(cells[begin].source).groups()
        if what == "Exercises" and chapter in chapters:
            parts.setdefault(chapter, cells[begin:end])
    return parts


def _chapter(name: str, cells: tuple[Cell, ...], chapters: dict[str, tuple]) -> str:
    """The chapter that a notebook belongs to, by its cells, else by its name."""
    names = {cell.grade_id for cell in cells}
    code = "\n".join(cell.source for cell in cells if cell.kind == "code")

    def may_be_there(exercise: Exercise | Written) -> bool:  # sooner said than `answer_cells` does
        function = getattr(exercise, "function", None)
        given = {grade_id("answer", exercise.id), grade_id("written", exercise.id)}
        return bool(names & given) or (function is not None and function in code)

    scores = {
        chapter: sum(may_be_there(e) and bool(answer_cells(cells, e)) for e in group)
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
    text = texts.line(" ".join(c.source for c in answer_cells(cells, question)))
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


class _Best:
    """At most one notebook of a chapter for a student; of the others only the names are kept."""

    def __init__(self):
        self._kept: dict[tuple[str, str], tuple[tuple, Submission]] = {}
        self._others: list[tuple[tuple[str, str], str]] = []

    def add(self, submission: Submission, attempt: str) -> None:
        """Takes a notebook into account; `attempt` is when it was handed in, if that is known."""
        whose = submission.student, submission.chapter
        # Of several attempts the last. And the name that the course gave it goes first:
        # "03_ddpm.ipynb" before "03_ddpm (1).ipynb".
        path = submission.path
        rank = (attempt, -len(path), [-ord(letter) for letter in path])
        before = self._kept.get(whose)
        if before is None or before[0] < rank:
            self._kept[whose] = rank, submission
        if before is not None:
            worse = submission if before[0] > rank else before[1]
            self._others.append((whose, worse.path))

    def submissions(self) -> list[Submission]:
        """Those to grade, in the order of their paths."""
        return sorted((s for _, s in self._kept.values()), key=lambda s: s.path)

    def duplicates(self) -> list[Refused]:
        """The others."""
        return [
            Refused(
                whose[0],
                path,
                "duplicate",
                f"not graded: {self._kept[whose][1].path} is this student's notebook of chapter "
                f"{whose[1]}",
            )
            for whose, path in self._others
        ]


def _shortened(refused: list[Refused]) -> list[Refused]:
    """The first of each student's files that are not graded, and how many others there are."""
    counts = Counter(r.student for r in refused)
    kept, seen = [], Counter()
    for r in refused:
        seen[r.student] += 1
        if seen[r.student] <= _MOST_ROWS or counts[r.student] == _MOST_ROWS + 1:
            kept.append(r)
        elif seen[r.student] == _MOST_ROWS + 1:
            text = f"and {counts[r.student] - _MOST_ROWS} other files of this student"
            kept.append(Refused(r.student, "", "unreadable", text))
    return kept
