"""The table of chapters: reads chapters.toml, and writes what is made from it.

    python notebooks/chapters.py            write README's table and the map of the first page
    python notebooks/chapters.py --check    write nothing; exit code 1 if one of them is out of date

Other scripts and tests ask it for the chapters: `read`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

import pages

COURSE = Path(__file__).resolve().parent.parent
TABLE = "notebooks/chapters.toml"
FIRST_PAGE = "notebooks/source/00_start_here.py"
CLINIC = "clinic"

BEGIN = "<!-- Made from notebooks/chapters.toml by notebooks/chapters.py: do not edit here. -->"
END = "<!-- Here ends what is made from notebooks/chapters.toml. -->"


@dataclass(frozen=True)
class Chapter:
    """A row of the table.

    Attributes:
      number: "00", "01", …, or "clinic".
      title: of the chapter.
      insight: its moment of insight.
      part: the title of the part that it belongs to.
      file: name of its notebook without the ending; empty until there is one.
      warm: seconds to run with a filled compile cache; None until measured.
    """

    number: str
    title: str
    insight: str
    part: str
    file: str = ""
    warm: float | None = None


@dataclass(frozen=True)
class Table:
    """The whole table: its chapters in order, and when and where they were measured."""

    chapters: tuple[Chapter, ...]
    measured: str


def read(course: Path = COURSE) -> Table:
    """The table of the course in this folder.

    Raises: ValueError, in one line, for a table that cannot be used.
    """
    try:
        raw = tomllib.loads((course / TABLE).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{TABLE} is not valid TOML: {error}") from None
    _only(raw, ("measured", "part"), TABLE)
    chapters = []
    for part in raw.get("part", []):
        _only(part, ("title", "chapter"), f"{TABLE}: part {part.get('title', '?')!r}")
        rows = part.get("chapter", [])
        chapters += [_chapter(row, _text(part, "title", f"{TABLE}: part")) for row in rows]
    _check_order(chapters)
    return Table(tuple(chapters), _text(raw, "measured", TABLE))


def _chapter(row: dict, part: str) -> Chapter:
    where = f"{TABLE}: chapter {row.get('number', '?')}"
    _only(row, [field.name for field in fields(Chapter) if field.name != "part"], where)
    number, title, insight = (_text(row, key, where) for key in ("number", "title", "insight"))
    if not re.fullmatch(rf"[0-9][0-9]|{CLINIC}", number):
        raise ValueError(f'{where}: number must be two digits or "{CLINIC}", got {number!r}')
    file = _text(row, "file", where) if "file" in row else ""
    if number == CLINIC:
        form, wanted = CLINIC, CLINIC
    else:
        form = rf"{number}(_[a-z0-9]+)+"
        wanted = "NN_name, with NN the number, in small letters and digits"
    if file and not re.fullmatch(form, file):
        raise ValueError(f"{where}: file must be {wanted}, got {file!r}")
    seconds = row.get("warm", 1)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise ValueError(f"{where}: warm must be a number of seconds above 0, got {seconds!r}")
    if not file and "warm" in row:
        raise ValueError(f"{where}: warm needs a file")
    return Chapter(number, title, insight, part, file, row.get("warm"))


def _only(found: dict, known, where: str) -> None:
    unknown = [key for key in found if key not in known]
    if unknown:
        raise ValueError(f"{where}: keys must be of {', '.join(known)}; got {unknown[0]!r}")


def _text(found: dict, key: str, where: str) -> str:
    """A text that fits into a cell of a Markdown table."""
    text = found.get(key)
    if not isinstance(text, str) or not text.strip() or set(text) & set("|\n"):
        raise ValueError(f"{where}: {key} must be a text of one line without |, got {text!r}")
    return text


def _check_order(chapters: list[Chapter]) -> None:
    numbers = [chapter.number for chapter in chapters]
    counted = [number for number in numbers if number != CLINIC]
    wanted = [f"{n:02d}" for n in range(len(counted))]
    if numbers not in (wanted, [*wanted, CLINIC]):
        raise ValueError(
            f"{TABLE}: chapters must be numbered 00, 01, … without a gap, and the clinic must "
            f"come last; got {', '.join(numbers)}"
        )


def readme_table(table: Table) -> str:
    """What stands in README.md: every chapter, with the times of those that exist."""
    rows = ["| | chapter | the moment of insight | to run |", "|---|---|---|--:|"]
    for chapter in table.chapters:
        # With spaces that do not break, so that a narrow column keeps a time on one line.
        time = f"{chapter.warm:g}\u00a0s |" if chapter.warm else "|"
        rows.append(f"{_row(chapter, 'notebooks/')} {time}")
    whole = all(chapter.file for chapter in table.chapters)
    rows += [
        "",
        ("" if whole else "Chapters without a link are still to come. ")
        + "*To run*: from a fresh kernel, with what an earlier run has compiled "
        f"({table.measured}). A first run takes longer.",
    ]
    return "\n".join(rows)


def first_page_map(table: Table) -> str:
    """What stands in the first page's source: a text cell for each part of the course."""
    cells = []
    for part, chapters in groupby(table.chapters, key=lambda chapter: chapter.part):
        rows = [f"**{part}**", "", "| | chapter | the moment of insight |", "|---|---|---|"]
        cells.append(rows + [_row(chapter, "") for chapter in chapters])
    return "\n\n# %% [markdown]\n".join(
        "\n".join(f"# {line}".rstrip() for line in cell) for cell in cells
    )


def _row(chapter: Chapter, folder: str) -> str:
    name = f"[{chapter.title}]({folder}{chapter.file}.ipynb)" if chapter.file else chapter.title
    return f"| {chapter.number} | {name} | {chapter.insight} |"


def updated(course: Path = COURSE) -> dict[Path, str]:
    """The files that are made from the table in part, each with the text that it should have.

    Raises: ValueError if the table cannot be used, or a file has lost its marks.
    """
    table = read(course)
    return {
        course / "README.md": _between(course / "README.md", f"\n{readme_table(table)}\n", ""),
        course / FIRST_PAGE: _between(course / FIRST_PAGE, f"#\n{first_page_map(table)}\n#", "# "),
    }


def _between(path: Path, made: str, comment: str) -> str:
    """The file's text with `made` between the two marks."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"{comment}{BEGIN}", f"\n{comment}{END}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path.name} must hold two lines once, in this order: {BEGIN} {END}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{made}{end}{rest.split(end)[1]}"


def write(course: Path = COURSE) -> list[Path]:
    """Writes what is made from the table; returns the files that changed."""
    changed = []
    for path, text in updated(course).items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def main(argv: list[str] | None = None) -> int:
    return pages.main("chapters.py", __doc__.split("\n")[0], updated, argv, _hint)


def _hint(course: Path, written: list[Path]) -> str:
    first = course / FIRST_PAGE in written
    return "its notebook follows with: python notebooks/build.py --text 00" if first else ""


if __name__ == "__main__":
    sys.exit(main())
