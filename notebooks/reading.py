"""The glossary and the bibliography, from what the chapters list at their ends.

    python notebooks/reading.py            write docs/glossary.md and docs/bibliography.md
    python notebooks/reading.py --check    write nothing; exit code 1 if one is out of date

The words and papers are those of the chapters. A word's meaning is in glossary.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import chapters
import jupytext
import pages

COURSE = Path(__file__).resolve().parent.parent
TABLE = "notebooks/glossary.toml"
MADE = "<!-- Made by notebooks/reading.py: do not edit here. -->"

_WORDS = re.compile(r"\*\*(?:New words:|Words introduced\.)\*\*\s+(.*?)\.?(?:\n\n|$)", re.DOTALL)
_LISTED = re.compile(r"^- (?P<who>.+?) \*(?P<title>[^*]+)\*(?P<rest>.*)$")
_IN_A_SENTENCE = re.compile(
    r"(?P<who>(?:[A-Z]|de |van |von )[^*()]*?) (?P<year>(?:19|20)\d\d), \*(?P<title>[^*]+)\*"
    r"(?P<rest>[^*]*?)(?=\. (?:[A-Z]|van |von )[^*()]* (?:19|20)\d\d, \*|\.?$)"
)
_READING = re.compile(r"^## Further reading|\*\*Read on\.\*\*", re.MULTILINE)
_ARXIV = re.compile(r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})")
_LINK = re.compile(r"\((https://[^)\s]+)\)")


@dataclass(frozen=True)
class Paper:
    """A line of the bibliography.

    Attributes:
      who: its authors, as the chapter names them.
      title, year: of the paper.
      link: where it can be read, or empty.
      chapters: the numbers of those that cite it.
    """

    who: str
    title: str
    year: int
    link: str
    chapters: tuple[str, ...]

    @property
    def key(self) -> str:
        """What two citations of one paper have in common."""
        return self.link or re.sub(r"\W+", " ", self.title.lower()).strip()


def texts(course: Path, file: str) -> list[str]:
    """The text cells of a chapter's source."""
    cells = jupytext.read(course / "notebooks/source" / f"{file}.py").cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def words(text: str) -> list[str]:
    """The words that a text cell lists as new; none if it has no such list."""
    found = _WORDS.search(text)
    if not found:
        return []
    listed = re.split(r",\s+(?![^(]*\))", re.sub(r"\s+", " ", found[1]))
    # The first of a sentence is written with a capital letter, and so are names.
    first = listed[0]
    if "Words introduced" in text and first.split()[0][1:].islower():
        listed[0] = first[0].lower() + first[1:]
    return listed


def papers(texts: list[str], chapter: str) -> list[Paper]:
    """The papers that a chapter's text cells cite at the end, in a list or in sentences."""
    whole = "\n\n".join(texts)
    start = _READING.search(whole)
    if not start:
        return []
    text = re.sub(r"\n +", " ", whole[start.end() :])
    found = [match for line in text.splitlines() if (match := _LISTED.match(line))]
    if not found:
        found = list(_IN_A_SENTENCE.finditer(re.sub(r"\s+", " ", text).strip()))
    return [_paper(match.groupdict(), chapter) for match in found]


def _paper(found: dict[str, str], chapter: str) -> Paper:
    rest = found["rest"]
    arxiv, link = _ARXIV.search(rest), _LINK.search(rest)
    year = found.get("year") or next(iter(re.findall(r"\b(?:19|20)\d\d\b", rest)), None)
    if year is None and not arxiv:
        raise ValueError(f"chapter {chapter}: {found['title']!r} needs a year or an arXiv number")
    return Paper(
        who=found["who"].strip().rstrip(".,") if found.get("year") else found["who"].rstrip(". "),
        title=found["title"].rstrip(". "),
        year=int(year or 2000 + int(arxiv[1][:2])),
        link=f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else link[1] if link else "",
        chapters=(chapter,),
    )


def bibliography(course: Path = COURSE) -> list[Paper]:
    """Every paper once, in the order of the years; where citations differ, the longest is kept."""
    merged: dict[str, Paper] = {}
    for chapter in chapters.read(course).chapters:
        cells = texts(course, chapter.file) if chapter.file else []
        for paper in papers(cells, chapter.number):
            old = merged.get(paper.key, replace(paper, chapters=()))
            merged[paper.key] = replace(
                old,
                who=max(old.who, paper.who, key=len),
                title=max(old.title, paper.title, key=len),
                chapters=tuple(dict.fromkeys((*old.chapters, chapter.number))),
            )
    return sorted(merged.values(), key=lambda paper: (paper.year, paper.title.lower()))


def glossary(course: Path = COURSE) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every word with its meanings, each with the chapter that introduces it, by the alphabet.

    Raises: ValueError for a word without a meaning, or a meaning that no chapter asks for.
    """
    meanings = tomllib.loads((course / TABLE).read_text("utf-8"))["words"]
    listed: dict[str, list[str]] = {}
    for chapter in chapters.read(course).chapters:
        for text in texts(course, chapter.file) if chapter.file else []:
            for word in words(text):
                listed.setdefault(word, []).append(chapter.number)
    lines = []
    for word, numbers in listed.items():
        meaning = meanings.get(word)
        of = {numbers[0]: meaning} if isinstance(meaning, str) else meaning or {}
        if numbers[0] not in of or not set(of) <= set(numbers):
            raise ValueError(
                f"{TABLE}: {word!r} must have a meaning for chapter {numbers[0]}, and for no other "
                f"chapters than {', '.join(numbers)}; got {', '.join(of) or 'none'}"
            )
        lines.append((word, list(of.items())))
    if unasked := sorted(meanings.keys() - listed.keys()):
        raise ValueError(f"{TABLE}: no chapter lists {', '.join(unasked)}")
    return sorted(lines, key=lambda line: _sorted_by(line[0]))


def _sorted_by(word: str) -> str:
    return re.sub(r"[^\w ]", "", word.replace("\\", "")).lower()


def made(course: Path = COURSE) -> dict[Path, str]:
    """Both pages with the text that they should have."""
    files = {each.number: each.file for each in chapters.read(course).chapters if each.file}

    def of(number: str) -> str:
        return f"[{number}](../notebooks/{files[number]}.ipynb)"

    words_of = [
        f"- **{word}** — " + " · ".join(f"{meaning} ({of(number)})" for number, meaning in meanings)
        for word, meanings in glossary(course)
    ]
    cited = bibliography(course)
    papers_of = []
    for paper in cited:
        title = f"[*{paper.title}*]({paper.link})" if paper.link else f"*{paper.title}*"
        where = ", ".join(of(number) for number in paper.chapters)
        word = "Chapter" if len(paper.chapters) == 1 else "Chapters"
        papers_of.append(f"- {paper.year}. {paper.who}. {title}. {word} {where}")
    return {
        course / "docs/glossary.md": "\n".join(
            [MADE, "# Glossary", "", "The words that chapters list as new, with the chapter that "
             f"introduces them: {len(words_of)} of them.", "", *words_of, ""]
        ),
        course / "docs/bibliography.md": "\n".join(
            [MADE, "# Bibliography", "", f"The {len(cited)} works that the chapters cite at their "
             "ends, by year, with the chapters.", "", *papers_of, ""]
        ),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    return pages.main("reading.py", __doc__.split("\n")[0], made, argv)


if __name__ == "__main__":
    sys.exit(main())
