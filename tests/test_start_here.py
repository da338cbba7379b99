"""The course's first page lists every chapter, and links those that exist."""

import re
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
import chapters  # noqa: E402

from diffusion_course import paths  # noqa: E402

ROW = re.compile(r"^# \| (\d\d|clinic) \| (?:\[(.+?)\]\((.+?)\)|([^|]+)) \|", re.MULTILINE)


def rows():
    return ROW.findall((COURSE / chapters.FIRST_PAGE).read_text(encoding="utf-8"))


def test_the_map_lists_the_chapters_00_to_26_and_the_clinic_in_order():
    assert [number for number, *_ in rows()] == [f"{n:02d}" for n in range(27)] + ["clinic"]


def test_the_map_links_the_chapters_that_exist_and_no_others():
    linked = {target for _, _, target, _ in rows() if target}
    assert linked == {path.name for path in paths.chapters(COURSE / "notebooks")}
