"""The course's first page lists every chapter, and links those that exist."""

import re
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
ROW = re.compile(r"^# \| (\d\d) \| (?:\[(.+?)\]\((.+?)\)|([^|]+)) \|", re.MULTILINE)


def rows():
    return ROW.findall((NOTEBOOKS / "source" / "00_start_here.py").read_text(encoding="utf-8"))


def test_the_map_lists_the_chapters_00_to_22_in_order():
    assert [number for number, *_ in rows()] == [f"{n:02d}" for n in range(23)]


def test_the_map_links_the_chapters_that_exist_and_no_others():
    linked = {target for _, _, target, _ in rows() if target}
    assert linked == {path.name for path in NOTEBOOKS.glob("[0-9]*.ipynb")}
