"""The masters in ``solutions/`` and the student notebooks that are made from them.

A master is an ordinary notebook with nbgrader's metadata and ``### BEGIN SOLUTION`` marks. In its
percent-format source a cell says what it is in its header: ``role="setup"`` for what every answer
needs, and ``exercise="01.2" role="answer"`` or ``"written"``. `complete` adds what the exercise's
specification knows: the title and the points of its head, which the source writes as ``## 01.2``
and ``*implement · 15 minutes*``, the cell that checks an answer, and the metadata. What follows
BEGIN SOLUTION on its line is the stub's message.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import nbformat

from diffusion_course import files
from diffusion_course.grading import answers

ROLES = ("answer", "check", "written")
_MARK = re.compile(r"^(?P<indent>[ \t]*)### (?P<which>BEGIN|END) SOLUTION(?P<message>.*)$")
PROMPT = "*Write your answer here.*"


def grade_id(role: str, exercise: str) -> str:
    """nbgrader's name of a cell: letters, digits and hyphens only."""
    return f"{role}-{exercise.replace('.', '-')}"


def complete(cells) -> list:
    """The cells of a source with what the exercises' specifications know, without metadata yet.

    Raises: ValueError for an unknown exercise, a head without its kind and minutes, or a cell that
      checks an answer, which is added here.
    """
    completed = []
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = _HEAD.sub(_full_head, cell.source)
        if cell.metadata.get("role") == "check":
            raise ValueError(f"the cell {cell.source!r} is added to the answer's: remove it")
        completed.append(cell)
        if cell.metadata.get("role") == "answer":
            cell.metadata.pop("lines_to_next_cell", None)  # jupytext's: the next is another now
            exercise = answers.find(cell.metadata["exercise"])
            named = {"exercise": exercise.id, "role": "check"}
            check = f'check("{exercise.id}", {exercise.function})'
            completed.append(nbformat.v4.new_code_cell(check, metadata=named))
    return completed


_HEAD = re.compile(r"^## (?P<id>\d\d\.\d+)$(?:\n^\*(?P<kind>[^·*\n]+ · \d+ minutes)\*$)?", re.M)


def _full_head(found: re.Match) -> str:
    exercise = answers.find(found["id"])
    if found["kind"] is None:
        raise ValueError(f"below ## {exercise.id} must stand *its kind · N minutes*")
    points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
    return f"## {exercise.id} · {exercise.title}\n*{found['kind']} · {points}*"


def expand(cell) -> None:
    """Replaces a source cell's ``exercise`` and ``role`` by nbgrader's metadata, in place.

    Raises: ValueError for an unknown exercise or role.
    """
    role, exercise = cell.metadata.pop("role", None), cell.metadata.pop("exercise", None)
    if role == "setup":
        cell.metadata["tags"] = ["setup"]
    elif role is not None or exercise is not None:
        if role not in ROLES or exercise is None:
            raise ValueError(f"role must be one of setup, {', '.join(ROLES)}, got {role!r}")
        cell.metadata["nbgrader"] = _nbgrader(role, exercise, cell.cell_type)


def _nbgrader(role: str, exercise: str, cell_type: str):
    points = answers.find(exercise).points
    data = {
        "cell_type": cell_type,
        "grade": role != "answer",
        "grade_id": grade_id(role, exercise),
        "locked": role == "check",
        "schema_version": 3,
        "solution": role != "check",
        "task": False,
    }
    if data["grade"]:
        data["points"] = points
    return nbformat.from_dict(data)


def student_version(master):
    """The notebook that students get: no solution, no output, the same cells and ids.

    Raises: ValueError for marks that do not pair up, or an answer cell without them.
    """
    notebook = copy.deepcopy(master)
    notebook.metadata.pop("jupytext", None)  # it is paired with no source
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = _without_solution(cell)
        elif "SOLUTION" in cell.source:
            raise ValueError(f"cell {cell.id} holds a solution's mark but is no answer cell")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def _without_solution(cell) -> str:
    kept, inside, found = [], False, 0
    for line in cell.source.splitlines():
        mark = _MARK.match(line)
        if mark is None:
            if not inside:
                kept.append(line)
            continue
        if (mark["which"] == "BEGIN") == inside:
            raise ValueError(f"cell {cell.id}: BEGIN and END SOLUTION must alternate")
        inside = not inside
        if inside:
            found += 1
            kept.append(_stub(mark, cell.cell_type))
    if inside or not found:
        raise ValueError(f"cell {cell.id} needs pairs of ### BEGIN SOLUTION and ### END SOLUTION")
    return "\n".join(kept)


def _stub(mark: re.Match, cell_type: str) -> str:
    if cell_type == "markdown":
        return PROMPT
    # A JSON string is a Python string too, with every quote and backslash escaped.
    message = json.dumps(mark["message"].strip(), ensure_ascii=False)
    return f"{mark['indent']}raise NotImplementedError({message})"


def write_exercises(course: Path) -> list[Path]:
    """Writes ``exercises/NN_name.ipynb`` for every master; returns the paths.

    Nothing in the files depends on the machine or the moment, so a second run changes nothing.
    """
    folder = course / "exercises"
    folder.mkdir(exist_ok=True)
    written = []
    for master in sorted((course / "solutions").glob("[0-9]*.ipynb")):
        notebook = student_version(nbformat.read(master, as_version=4))
        nbformat.validate(notebook)
        path = folder / master.name
        files.write(path, nbformat.writes(notebook) + "\n")
        written.append(path)
    for path in folder.glob("[0-9]*.ipynb"):
        if path not in written:
            path.unlink()  # its master is gone
    return written
