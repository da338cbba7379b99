"""Glossary, bibliography and notation: what the chapters list, and nothing else."""

import re
import sys
from pathlib import Path

import pytest

from diffusion_course import denoiser, guidance, process, samplers, sde

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))

import chapters  # noqa: E402 (notebooks/chapters.py)
import reading  # noqa: E402 (notebooks/reading.py)


def test_both_pages_are_up_to_date():
    for path, text in reading.made(COURSE).items():
        assert path.read_text("utf-8") == text, "python notebooks/reading.py writes it"


def test_every_chapter_lists_words_and_papers():
    written = [chapter for chapter in chapters.read(COURSE).chapters if chapter.file]
    for chapter in written:
        cells = reading.texts(COURSE, chapter.file)
        assert len([word for cell in cells for word in reading.words(cell)]) >= 5, chapter.file
        assert len(reading.papers(cells, chapter.number)) >= 4, chapter.file


def test_no_linked_title_of_a_chapter_is_missing():
    known = {paper.link for paper in reading.bibliography(COURSE)}
    title_then_number = re.compile(r"\*[^*]+\*[^*]{0,60}?arXiv:(\d{4}\.\d{4,5})")
    for chapter in chapters.read(COURSE).chapters:
        if not chapter.file:
            continue
        end = "\n".join(reading.texts(COURSE, chapter.file)[-4:]).replace("\n", " ")
        for number in title_then_number.findall(end):
            assert f"https://arxiv.org/abs/{number}" in known, (chapter.file, number)


def test_every_paper_has_authors_and_stands_once():
    papers = reading.bibliography(COURSE)
    titles = [paper.title.lower() for paper in papers]
    assert len(set(titles)) == len(titles)
    assert [paper for paper in papers if not re.match(r"[A-ZŁÉ]", paper.who)] == []
    assert [paper for paper in papers if "same" in paper.who.lower()] == []


def test_words_of_both_styles():
    assert reading.words("**Words introduced.** Skip connection, FiLM,\nlevel ($a$, $b$).") == [
        "skip connection",
        "FiLM",
        "level ($a$, $b$)",
    ]
    assert reading.words("Now.\n\n**New words:** DPS, a norm.\n\nMore, text.") == ["DPS", "a norm"]
    assert reading.words("**Words introduced.** FiLM, mask.") == ["FiLM", "mask"]
    assert reading.words("No list, here.") == []


def test_papers_of_a_list():
    (paper,) = reading.papers(
        ["- A. Nobody. *Before.* 1999.", "## Further reading\n\n- J. Ho, A. Jain. *A Title:\n  "
         "Longer.* ICLR 2020.\n  [arXiv:2006.11239](https://arxiv.org/abs/2006.11239). Part."], "01"
    )  # fmt: skip
    assert paper == reading.Paper(
        "J. Ho, A. Jain", "A Title: Longer", 2020, "https://arxiv.org/abs/2006.11239", ("01",)
    )


def test_papers_of_sentences():
    text = (
        "**Read on.** Ho & Salimans 2022, *Guidance*\n(arXiv:2207.12598), w. van den Berg 2016, "
        "*On\nNotes*, ICLR ([arXiv:1511.01844](https://arxiv.org/abs/1511.01844)): how."
    )
    first, second = reading.papers([text], "07")
    assert (first.who, first.title, first.year) == ("Ho & Salimans", "Guidance", 2022)
    assert (second.who, second.title) == ("van den Berg", "On Notes")
    assert second.link == "https://arxiv.org/abs/1511.01844"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[words]\n"a" = "first"', "'b' must have a meaning for chapter 01"),
        ('[words]\n"a" = "x"\n"b" = { 02 = "x" }', "'b' must .* no other chapters than 01; got 02"),
        ('[words]\n"a" = "x"\n"b" = "x"\n"c" = "x"', "no chapter lists c"),
    ],
)
def test_a_table_that_does_not_fit_the_chapters_is_named(tmp_path, monkeypatch, table, message):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / reading.TABLE).write_text(table, "utf-8")
    only = chapters.Chapter("01", "title", "insight", "part", "01_first")
    monkeypatch.setattr(chapters, "read", lambda course: chapters.Table((only,), "today"))
    monkeypatch.setattr(reading, "texts", lambda course, file: ["**New words:** a, b."])
    with pytest.raises(ValueError, match=message):
        reading.glossary(tmp_path)


def test_the_functions_that_the_notation_names_exist():
    modules = {module.__name__.split(".")[-1]: module
               for module in (denoiser, guidance, process, samplers, sde)}  # fmt: skip
    named = re.findall(r"`(\w+)\.(\w+)\(", (COURSE / "docs/notation.md").read_text("utf-8"))
    ours = [(module, name) for module, name in named if module != "p"]
    assert len(ours) >= 8
    for module, name in ours:
        assert callable(getattr(modules[module], name))
    for name in (name for module, name in named if module == "p"):
        assert callable(getattr(process.vp_linear(), name))
