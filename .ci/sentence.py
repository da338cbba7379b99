"""Which sentence of the course is no longer true: python .ci/sentence.py REPORT.xml

Reads what `pytest --nbval-lax --junitxml REPORT.xml` wrote, and prints in Markdown, for each cell
that failed first in its notebook, the text that stands above the cell, its code and its error. The
cells after it may have failed for its sake, so they are only counted.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import nbformat

COURSE = Path(__file__).resolve().parent.parent
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|#x1B\[[0-9;]*m")
_CELL = re.compile(r"Cell (\d+)$")


@dataclass(frozen=True)
class Broken:
    """A notebook's first cell that failed.

    Attributes:
      notebook: its path, from the course's folder.
      number: of the cell among the code cells, from 0, as nbval counts.
      error: the last line of what it raised.
      after: how many further cells of the notebook failed.
    """

    notebook: str
    number: int
    error: str
    after: int


def broken(report: Path, course: Path = COURSE) -> list[Broken]:
    """The notebooks in which a cell failed, in the report's order."""
    failed: dict[str, list[tuple[int, str]]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        cell = _CELL.search(case.get("name", ""))
        if problem is None or not cell:
            continue
        text = f"{problem.get('message', '')}\n{problem.text or ''}"
        failed.setdefault(_notebook(case, course), []).append((int(cell[1]), _error(text)))
    found = []
    for notebook, cells in failed.items():
        number, error = min(cells)
        found.append(Broken(notebook, number, error, len(cells) - 1))
    return found


def _notebook(case, course: Path) -> str:
    """The notebook of a test case: its file, or its class name with dots for the slashes."""
    if case.get("file"):
        return case.get("file")
    name = case.get("classname", "")
    for path in sorted(course.glob("*/*.ipynb")):
        relative = path.relative_to(course).as_posix()
        if name in (relative.replace("/", "."), relative.replace("/", ".").removesuffix(".ipynb")):
            return relative
    return name


def _error(text: str) -> str:
    """The line that names the exception; the first line if there is none."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Warning)\b", line)]
    return (named[-1:] or lines[:1] or ["no message"])[0]


def told(found: Broken, course: Path = COURSE) -> str:
    """What a maintainer needs to know of a broken cell, in Markdown."""
    cells = nbformat.read(course / found.notebook, as_version=4).cells
    places = [place for place, cell in enumerate(cells) if cell.cell_type == "code"]
    place = places[found.number]
    texts = [cell.source for cell in cells[:place] if cell.cell_type == "markdown"]
    headings = [line for text in texts for line in re.findall(r"(?m)^#+ +(.+)$", text)]
    lines = [
        f"## {found.notebook}, code cell {found.number + 1}",
        "",
        f"In the section *{headings[-1]}*, after this text:" if headings else "After this text:",
        "",
        *(f"> {line}".rstrip() for line in (texts[-1] if texts else "").splitlines()),
        "",
        "this cell fails:",
        "",
        "```python",
        cells[place].source,
        "```",
        "",
        f"`{found.error.replace('`', chr(39))}`",
    ]
    if found.after:
        lines += ["", f"Cells below it that failed too: {found.after}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python .ci/sentence.py REPORT.xml", file=sys.stderr)
        return 2
    found = broken(Path(sys.argv[1]))
    print("\n".join(map(told, found)) if found else "Every cell of every notebook holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
