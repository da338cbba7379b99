"""Notebooks for a room: their first cell finds the course, and one of them holds all the rest.

Notebooks are handled as the JSON that they are: nothing but Python is needed here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from diffusion_course.app import runner

Notebook = dict[str, Any]

# What every first cell of the course ends with; what stands above it differs in a pack.
SETUP = "from diffusion_course import setup"

FIND = """\
import importlib.util
import os
from pathlib import Path

# The course is installed, or its wheel is at the address in DIFFUSION_COURSE_WHEEL, beside this
# notebook or in My Drive. Nothing that it depends on is installed, so Colab keeps its own jax.
if importlib.util.find_spec("diffusion_course") is None:
    name = "{wheel}"
    drive = Path("/content/drive/MyDrive")
    places = [Path(), Path(".."), Path("/content"), drive, *sorted(drive.glob("*/"))]
    found = [str(place / name) for place in places if (place / name).is_file()]
    wheel = os.environ.get("DIFFUSION_COURSE_WHEEL") or (found[0] if found else "")
    if not wheel:
        raise SystemExit(
            f"The course is not here: drag {{name}} into Files (at the left), or mount Drive if it "
            "is there, or set DIFFUSION_COURSE_WHEEL to its address; then run this cell again."
        )
    print("installing the course")
    %pip install --quiet --no-deps --no-index "{{wheel}}"
"""

# A part of the joined notebook begins with this line. `grading.submissions` reads it.
PART = "# {what} of chapter {number}: begins afresh and forgets what ran above.\n%reset -f\n"

SIMULATES = re.compile(r"(?m)^course = setup\(.*devices=.*\)$")

LINK = re.compile(
    r"(?<!!)\[([^\]]*)\]"
    r"\(((?:\.\./(?:notebooks|exercises)/)?(?:\d\d_\w+|clinic)\.ipynb|\.\./docs/[\w.#/-]+)\)"
)


def source(cell: dict) -> str:
    """The text of a cell, which a file may hold as a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def findable(notebook: Notebook, wheel: str, folder: str, packed: Sequence[str]) -> Notebook:
    """The notebook as a pack holds it: its first cell finds the wheel, and links lead somewhere.

    Args:
      notebook: of the course.
      wheel: the wheel's file name.
      folder: "notebooks" or "exercises", where it will lie.
      packed: all that the pack holds, as "notebooks/03_ddpm.ipynb".

    Raises: runner.Mistake if no cell imports `setup`.
    """
    notebook = copy.deepcopy(notebook)
    notebook["metadata"].pop("jupytext", None)  # its source stays behind
    _write_first(notebook, FIND.format(wheel=wheel))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _lines(_linked(source(cell), folder, packed))
    return notebook


def joined(parts: Sequence[tuple[str, str, Notebook]], wheel: str, title: str) -> Notebook:
    """One notebook that holds several, for Colab: each part forgets what ran above it.

    Without outputs: a room on Colab runs it, and the file stays small. The cells keep nbgrader's
    metadata, so that the exercises in it are graded like those of separate notebooks.

    Args:
      parts: what it is ("Chapter" or "Exercises"), the chapter's number, the notebook.
      wheel: the wheel's file name.
      title: of all.

    Raises: runner.Mistake if a chapter needs a kernel of its own, and there is another chapter.
    """
    contents = [f"{n}. {what} {number}" for n, (what, number, _) in enumerate(parts, start=1)]
    head = [
        f"# {title}\n\nRun the cell below first: it finds the course. Then go on with any part; "
        "each begins with a cell that forgets what ran above it.\n\n" + "\n".join(contents),
        FIND.format(wheel=wheel) + f"{SETUP}\n\n{_preparation(parts)}",
    ]
    cells = [_cell("markdown", "contents", head[0]), _cell("code", "course", head[1])]
    for place, (what, number, notebook) in enumerate(parts):
        part = copy.deepcopy(notebook)
        _write_first(part, PART.format(what=what, number=number))
        for number_of, cell in enumerate(part["cells"]):
            # Two parts may hold the same cell, and what Colab has saved has no such identities.
            cell["id"] = f"{place}-{cell.get('id', number_of)}"
            if cell["cell_type"] == "markdown":
                cell["source"] = _lines(_linked(source(cell), "", ()))
            elif cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        cells += part["cells"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"colab": {"toc_visible": True}, "kernelspec": kernel}
    about["language_info"] = {"name": "python"}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _preparation(parts: Sequence[tuple[str, str, Notebook]]) -> str:
    """The line that prepares JAX for all parts: only before it starts can it simulate devices."""
    chapters = {number: notebook for what, number, notebook in parts if what == "Chapter"}
    for number, notebook in chapters.items():
        lines = [m[0] for c in notebook["cells"] for m in SIMULATES.finditer(source(c))]
        if lines and len(chapters) > 1:
            raise runner.Mistake(
                f"chapter {number} needs a kernel of its own, since it begins with {lines[0]}: "
                f"pack it alone, got it with {', '.join(n for n in chapters if n != number)}"
            )
        if lines:
            return lines[0]
    return "course = setup()"


def _write_first(notebook: Notebook, above: str) -> None:
    """Puts other lines above the import of `setup`, in place."""
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "code" and SETUP in text:
            cell["source"] = _lines(above + text[text.index(SETUP) :])
            return
    raise runner.Mistake(f"no cell of the notebook says {SETUP!r}")


def _linked(text: str, folder: str, packed: Sequence[str]) -> str:
    """Links to what is not in the pack, other notebooks and pages of docs/, become their text."""

    def keep(found: re.Match) -> str:
        target = found[2].removeprefix("../") if "/" in found[2] else f"{folder}/{found[2]}"
        return found[0] if target in packed else found[1]

    return LINK.sub(keep, text)


def _cell(kind: str, name: str, text: str) -> dict:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": _lines(text)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
