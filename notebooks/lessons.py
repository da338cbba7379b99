"""Lesson plans for 90 minutes, from the chapters and their exercises.

    python notebooks/lessons.py            write docs/lessons/
    python notebooks/lessons.py --check    write nothing; exit code 1 if a page is out of date

lessons.toml says which sections and exercises are for the classroom. Everything else (questions to
ask, minutes, where students stumble) is read from the chapters, the masters and the answers.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import chapters
import jupytext
import pages

from diffusion_course.grading import answers
from diffusion_course.grading.exercise import Exercise, Written

COURSE = Path(__file__).resolve().parent.parent
TABLE, FOLDER = "notebooks/lessons.toml", "docs/lessons"
MADE = "<!-- Made by notebooks/lessons.py: do not edit here. -->"
LESSON, OPENING, CLOSING = 90, 5, 5  # minutes
_ASKED = 60  # a question to the room takes as long as reading so many words
_TRIED = 150  # an explorer, as many
_MISTAKES = 4  # that are shown for an exercise

_HEADING = re.compile(r"^## (\d+) · (.+)$")
_PREDICT = re.compile(r"\*\*Predict, then [^*]+\*\*\s+(.+?)(?:\n\n|$)", re.DOTALL)
_EXERCISE = re.compile(r"^## (\d\d\.\d+)\n+\*([^·*\n]+) · ([^*\n]+)\*", re.MULTILINE)


@dataclass
class Section:
    """A numbered section of a chapter.

    Attributes:
      number, title: of the section.
      questions: what the reader is asked to predict.
      weight: words to read, with what the questions and the explorer take.
      explorer: whether it has one.
    """

    number: int
    title: str
    questions: list[str]
    weight: int = 0
    explorer: bool = False


def sections(course: Path, file: str) -> dict[int, Section]:
    """The numbered sections of a chapter's source."""
    found: dict[int, Section] = {}
    now = None
    for cell in jupytext.read(course / "notebooks/source" / f"{file}.py").cells:
        text = cell.source
        if cell.cell_type == "markdown":
            if heading := re.search(r"^## .+$", text, re.MULTILINE):
                numbered = _HEADING.match(heading[0])
                now = Section(int(numbered[1]), numbered[2], []) if numbered else None
                if now:
                    found[now.number] = now
            if now:
                asked = [_sentence(question) for question in _PREDICT.findall(text)]
                now.questions += asked
                now.weight += len(text.split()) + _ASKED * len(asked)
        elif now and re.search(r"widgets\.(explorer|live|mask_editor)\(", text):
            now.explorer, now.weight = True, now.weight + _TRIED
    return found


def _sentence(question: str) -> str:
    """A question for a cell of a table: on one line, with a capital letter, and no bare bar."""
    line = " ".join(question.split()).replace("|", "\\|")
    return line[:1].upper() + line[1:]


def kinds(course: Path, file: str) -> dict[str, tuple[str, str]]:
    """Exercise -> its kind ("warm-up") and time ("10 minutes"), from the master's source."""
    path = course / "solutions/source" / f"{file}.py"
    if not path.exists():
        return {}
    texts = (cell.source for cell in jupytext.read(path).cells)
    return {e: (kind, time) for text in texts for e, kind, time in _EXERCISE.findall(text)}


def minutes(weights: list[int], together: int) -> list[int]:
    """Whole minutes in proportion to the weights, at least 3 each, which add up to `together`.

    The remainders that are largest are rounded up.
    """
    least = 3
    free = together - least * len(weights)
    if free < 0:
        raise ValueError(f"{len(weights)} sections do not fit into {together} minutes")
    exact = [free * weight / sum(weights) for weight in weights]
    whole = [int(each) for each in exact]
    order = sorted(range(len(weights)), key=lambda i: whole[i] - exact[i])
    for i in order[: free - sum(whole)]:
        whole[i] += 1
    return [least + each for each in whole]


def plan(course: Path, chapter: chapters.Chapter, chosen: dict) -> str:
    """A chapter's page.

    Raises: ValueError for a section or an exercise that the chapter doesn't have.
    """
    all_sections = sections(course, chapter.file)
    group = {e.id: e for e in answers.chapters().get(chapter.number, ())}
    practice = [f"{chapter.number}.{n}" for n in chosen["exercises"]]
    missing = [n for n in chosen["sections"] if n not in all_sections]
    missing += [e for e in practice if not isinstance(group.get(e), Exercise)]
    if missing:
        raise ValueError(f"{TABLE}: chapter {chapter.number} has no {', '.join(map(str, missing))}")
    shown = [all_sections[n] for n in chosen["sections"]]
    kind_of = kinds(course, chapter.file)
    practised = sum(int(kind_of[each][1].removesuffix(" minutes")) for each in practice)
    times = minutes([s.weight for s in shown], LESSON - OPENING - CLOSING - practised)
    takes = f": with that, all cells take {chapter.warm:g} s" if chapter.warm else ""
    text = [
        MADE,
        f"# Chapter {chapter.number}, {chapter.title}: 90 minutes",
        "",
        f"[The chapter](../../notebooks/{chapter.file}.ipynb). What the room should see: "
        f"{chapter.insight}.",
        "",
        "**Before.** Run the notebook once on the machine that you show it with, so that "
        f"everything is compiled{takes}.",
        "",
        "| minutes | what | what to ask, before the cell runs |",
        "|--:|---|---|",
        f"| {OPENING} | The question and the first picture. Ask what it shows; leave it open. | |",
    ]
    for section, each in zip(shown, times, strict=True):
        what = f"§{section.number} {section.title}" + (
            " — *everybody moves the slider*" if section.explorer else ""
        )
        text.append(f"| {each} | {what} | {' · '.join(section.questions)} |")
    if practice:
        text.append(f"| {practised} | Exercises {' and '.join(practice)}, in pairs. | |")
    written = [e for e in group.values() if isinstance(e, Written)]
    last = (
        f"The written question {written[0].id}, “{written[0].title}”, aloud."
        if written
        else "Recap."
    )
    text.append(f"| {CLOSING} | {last} | |")
    home = [f"§{n} {s.title}" for n, s in all_sections.items() if n not in chosen["sections"]]
    text += ["", f"**At home.** To read: {'; '.join(home) or 'nothing'}."]
    later = [e for e in group if e not in practice]
    if later:
        listed = [f"{e} {group[e].title}" + _kind(kind_of, e) for e in later]
        text.append(f"To do: {'; '.join(listed)}.")
    for exercise in practice:
        text += ["", f"## Where students stumble in {exercise}, {group[exercise].title}", ""]
        kind = _kind(kind_of, exercise).strip(" ()").capitalize()
        again = f"To read again: §{group[exercise].section.replace(' · ', ' ', 1)}. "
        text.append(f"{kind}. {again if group[exercise].section else ''}`check` says:")
        text.append("")
        text += [f"- {mistake}" for mistake in list(group[exercise].mistakes)[:_MISTAKES]]
    return "\n".join(text) + "\n"


def _kind(kind_of: dict[str, tuple[str, str]], exercise: str) -> str:
    return f" ({', '.join(kind_of[exercise])})"


def made(course: Path = COURSE) -> dict[Path, str]:
    """Every page with the text that it should have.

    Raises: ValueError for a chapter without a plan, or a plan that does not fit its chapter.
    """
    chosen = tomllib.loads((course / TABLE).read_text("utf-8"))["lessons"]
    written = [each for each in chapters.read(course).chapters if each.file]
    numbers = [each.number for each in written]
    if sorted(chosen) != sorted(numbers):
        raise ValueError(f"{TABLE}: must have a line for each of {', '.join(numbers)}")
    folder = course / FOLDER
    plans = {folder / f"{c.file}.md": plan(course, c, chosen[c.number]) for c in written}
    listed = [f"- [{c.number} · {c.title}]({c.file}.md)" for c in written]
    about = (
        "One page for each chapter: what to show in 90 minutes, what to ask before a cell runs, "
        "which exercises to do in class, and where students stumble in them. The other sections "
        "are for reading at home. Minutes of the sections follow from the length of the text, "
        "those of the exercises are the masters'; none was measured with a class."
    )
    plans[folder / "README.md"] = "\n".join([MADE, "# Lesson plans", "", about, "", *listed, ""])
    return plans


def main(argv: list[str] | None = None) -> int:
    return pages.main("lessons.py", __doc__.split("\n")[0], made, argv)


if __name__ == "__main__":
    sys.exit(main())
