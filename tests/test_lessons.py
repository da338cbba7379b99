"""Lesson plans: made from the chapters as they are, and 90 minutes long."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))

import chapters  # noqa: E402 (notebooks/chapters.py)
import lessons  # noqa: E402 (notebooks/lessons.py)

FILES = [chapter.file for chapter in chapters.read(COURSE).chapters if chapter.file]


@pytest.fixture(scope="module")
def pages():
    return lessons.made(COURSE)


@pytest.fixture(params=FILES)
def path(request):
    return COURSE / lessons.FOLDER / f"{request.param}.md"


@pytest.fixture
def text(pages, path):
    return pages[path]


def rows(text):
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in re.findall(r"^\| \d+ \|.*$", text, re.M)]


def test_every_page_is_up_to_date_and_there_is_no_other(pages):
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, "python notebooks/lessons.py writes it"
    assert set((COURSE / lessons.FOLDER).iterdir()) == set(pages)


def test_a_plan_fills_ninety_minutes_and_asks_the_room(path, text):
    plan = rows(text)
    assert sum(int(minutes) for minutes, _, _ in plan) == 90
    assert all(len(cells) == 3 for cells in plan)
    assert sum("?" in asked for _, _, asked in plan) >= 3 or path.stem == "clinic"
    assert "moves the slider" in text
    sections = [what for _, what, _ in plan if "§" in what]
    assert 3 <= len(sections) <= 7
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / link).exists()


def test_every_section_and_exercise_stands_in_the_plan_or_at_home(path, text):
    found = lessons.sections(COURSE, path.stem)
    assert {int(n) for n in re.findall(r"§(\d+) ", text)} == set(found)
    for exercise in lessons.kinds(COURSE, path.stem):
        assert exercise in text
    stumble = re.findall(r"## Where students stumble in (\d\d\.\d+)", text)
    assert len(stumble) == (0 if path.stem in ("00_start_here", "clinic") else 2)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.integers(24, 80))
def test_minutes_add_up_and_follow_the_weights(weights, together):
    found = lessons.minutes(weights, together)
    assert sum(found) == together and min(found) >= 3
    for a, i in zip(weights, found, strict=True):
        for b, j in zip(weights, found, strict=True):
            assert not (a > b and j > i)


def test_too_many_sections_are_refused():
    with pytest.raises(ValueError, match="5 sections do not fit into 14 minutes"):
        lessons.minutes([1] * 5, 14)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"sections": [1, 99], "exercises": []}, "chapter 03 has no 99"),
        ({"sections": [2], "exercises": [77]}, "chapter 03 has no 03.77"),
        ({"sections": [2], "exercises": [8]}, "chapter 03 has no 03.8"),  # answered in words
    ],
)
def test_what_the_chapter_does_not_have_is_named(chosen, message):
    (chapter,) = (c for c in chapters.read(COURSE).chapters if c.number == "03")
    with pytest.raises(ValueError, match=message):
        lessons.plan(COURSE, chapter, chosen)
