"""Lay out a new chapter, in the order that every chapter has.

    make chapter N=09 NAME=score_sdes TITLE="Score matching and SDEs"

It writes the chapter's source, the source of its exercises and their specification, and adds the
file to the table of chapters. What must be filled in is marked with ✎. The layouts are in
notebooks/layout/.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import chapters

LAYOUTS = {
    "notebook": "notebooks/source/{file}.py",
    "solutions": "solutions/source/{file}.py",
    "answers": "diffusion_course/grading/answers/chapter_{number}.py",
}
USAGE = 'make chapter N=09 NAME=score_sdes TITLE="Score matching and SDEs"'
PLACEHOLDER = "✎"


def new_chapter(course: Path, number: str, name: str, title: str = "") -> list[Path]:
    """Writes the files of a new chapter; returns their paths.

    Args:
      course: the course's folder.
      number: two digits: a chapter of the table without a file, or the number after the last.
      name: for file names, in small letters, digits and single underscores.
      title: may be left out for a chapter that the table has.

    Raises: ValueError for anything that cannot be used; then nothing is written.
    """
    if not re.fullmatch(r"[0-9][0-9]", number):
        raise ValueError(f"N must be two digits, such as 09, got {number!r}")
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"NAME must be small letters, digits and single _, got {name!r}")
    if title and (not title.strip() or not title.isprintable() or set(title) & set('|"\\{}')):
        raise ValueError(f'TITLE must be one line without | " \\ {{ }}, got {title!r}')
    known = {chapter.number: chapter for chapter in chapters.read(course).chapters}
    if number in known:
        if known[number].file:
            raise ValueError(f"N={number} is taken by {known[number].file}; choose another number")
        title = title or known[number].title
    else:
        following = f"{sum(each != chapters.CLINIC for each in known):02d}"
        if number != following:
            raise ValueError(f"N must be in the table of chapters or {following}, got {number}")
        if not title:
            raise ValueError(f"TITLE must be given, since the table of chapters has no {number}")
    file = f"{number}_{name}"
    paths = {
        layout: course / place.format(file=file, number=number) for layout, place in LAYOUTS.items()
    }
    there = [path for path in paths.values() if path.exists()]
    if there:
        raise ValueError(f"{there[0].relative_to(course)} exists already; it is not overwritten")
    table = course / chapters.TABLE
    text = with_row(table.read_text(encoding="utf-8"), number, file, title)
    for layout, path in paths.items():
        path.write_text(filled(layout, number, file, title), encoding="utf-8")
    table.write_text(text, encoding="utf-8")
    return [*paths.values(), table, *chapters.write(course)]


def filled(layout: str, number: str, file: str, title: str) -> str:
    """A layout with the chapter's number, file and title."""
    path = Path(__file__).resolve().parent / "layout" / f"{layout}.txt"
    text = path.read_text(encoding="utf-8")
    for key, value in (("N", number), ("FILE", file), ("TITLE", title)):
        text = text.replace("{{" + key + "}}", value)
    return text


def with_row(text: str, number: str, file: str, title: str) -> str:
    """The table's text with this file and title in the chapter's row, or with a new row."""
    head = f'number = "{number}"\n'
    if head in text:
        before, _, after = text.partition(head)
        row, gap, rest = after.partition("\n\n")
        row = re.sub(r"(?m)^title = .*$", lambda _: f'title = "{title}"', row)
        return f'{before}{head}file = "{file}"\n{row}{gap}{rest}'
    row = f'[[part.chapter]]\n{head}file = "{file}"\ntitle = "{title}"\n'
    row += f'insight = "{PLACEHOLDER}"\n'
    clinic = f'[[part.chapter]]\nnumber = "{chapters.CLINIC}"\n'
    if clinic in text:
        return text.replace(clinic, f"{row}\n{clinic}")
    return f"{text.rstrip()}\n\n{row}"


def main(arguments: list[str], course: Path = chapters.COURSE) -> int:
    """N, NAME and TITLE; exit code 2 and one line for a mistake."""
    number, name, title = (*arguments, "", "", "")[:3]
    if len(arguments) > 3 or not number or not name:
        print(f"N and NAME must be given, such as: {USAGE}", file=sys.stderr)
        return 2
    try:
        written = new_chapter(course, number, name, title)
    except (ValueError, OSError) as error:
        print(f"make chapter: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path.relative_to(course)}")
    print(f"What to fill in is marked with {PLACEHOLDER}. Then run:")
    print(f"  python notebooks/build.py {number}")
    print(f"  python notebooks/build.py --folder solutions {number}")
    print("  python notebooks/build.py --text 00")
    print("  diffusion-course assign")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
