"""The ledger of claims: what the field says, and what the chapters' own cells measured.

    python notebooks/ledger.py            write docs/ledger.md
    python notebooks/ledger.py --check    write nothing; exit code 1 if it is out of date

Claims and rules are in ledger.toml. The numbers are read from the outputs of the executed
notebooks, and the verdicts follow from the numbers: nobody writes either by hand.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import chapters
import nbformat
import pages

COURSE = Path(__file__).resolve().parent.parent
TABLE = "notebooks/ledger.toml"
PAGE = "docs/ledger.md"
REPRODUCED, NOT_HERE, OPPOSITE, UNMEASURED = (
    "reproduced",
    "not here",
    "the opposite",
    "not measured",
)
VERDICTS = {
    REPRODUCED: "the rule that stands below the claim holds",
    NOT_HERE: "it does not hold, at our scale and with our measure",
    OPPOSITE: "the contrary holds",
    UNMEASURED: "nothing in the course measures it, and the line says why",
}
KEYS = {"claim", "source", "link", "chapter", "here", "prints", "derive", "rule", "contrary", "why"}

_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"


class Printed(float):
    """A number that is shown as the notebook printed it, unless a format asks for another way."""

    def __new__(cls, text: str):
        number = super().__new__(cls, text.replace(",", ""))
        number.text = text
        return number

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if spec else self.text


@dataclass(frozen=True)
class Entry:
    """A line of the ledger.

    Attributes:
      claim, source: what is said, and by whom.
      link: where it can be read, or empty.
      chapter: the number of the chapter that measures it.
      here: what was measured, or why nothing was.
      rule: the expression that decides; empty where nothing was measured.
      verdict: a key of `VERDICTS`.
    """

    claim: str
    source: str
    link: str
    chapter: str
    here: str
    rule: str
    verdict: str


def pattern(template: str) -> re.Pattern:
    """What finds the numbers of a text: `{name}` is a number, `…` anything, the rest itself.

    Raises: ValueError for a template without a number.
    """
    if not re.search(r"\{\w+\}", template):
        raise ValueError(f"a pattern must hold a {{name}} for a number, got {template!r}")
    found = ""
    for part in re.split(r"(\{\w+\}|\s*…\s*|\s+)", template):
        if re.fullmatch(r"\{\w+\}", part):
            found += rf"(?P<{part[1:-1]}>{_NUMBER})"
        elif part.strip() == "…":
            found += r".*?"
        else:
            found += r"\s+" if part.isspace() else re.escape(part)
    return re.compile(found, re.DOTALL)


def outputs(notebook: Path) -> list[str]:
    """What each executed cell of a notebook has printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [
        "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for cell in cells
        if cell.cell_type == "code"
    ]


def numbers(row: dict, printed: list[str]) -> dict[str, float]:
    """The values of a claim: those that its cells printed, and those that are derived from them.

    Raises: ValueError that names what no cell prints any more, or what more than one does.
    """
    found = {}
    for template in row["prints"]:
        matches = [match for text in printed if (match := pattern(template).search(text))]
        if len(matches) != 1:
            raise ValueError(
                f"chapter {row['chapter']}: {template!r} must be what one cell prints; "
                f"{len(matches)} do"
            )
        found |= {name: Printed(text) for name, text in matches[0].groupdict().items()}
    for name, expression in row.get("derive", {}).items():
        found[name] = _value(expression, found)
    return found


def verdict(row: dict, found: dict[str, float]) -> str:
    """What the numbers say about the claim."""
    holds = _value(row["rule"], found)
    contrary = "contrary" in row and _value(row["contrary"], found)
    if holds and contrary:
        raise ValueError(f"{row['claim']}: rule and contrary cannot both hold")
    return REPRODUCED if holds else OPPOSITE if contrary else NOT_HERE


def _value(expression: str, found: dict[str, float]):
    # The expressions are this repository's own; what they may use are the numbers.
    try:
        return eval(expression, {"__builtins__": {"min": min, "max": max}}, found)
    except Exception as error:
        raise ValueError(f"{expression!r} with {sorted(found)}: {error}") from error


def entries(course: Path = COURSE) -> dict[str, list[Entry]]:
    """The ledger, by group.

    Raises: ValueError, in one line, for a table or a notebook that does not fit it.
    """
    files = {each.number: each.file for each in chapters.read(course).chapters if each.file}
    printed: dict[str, list[str]] = {}
    groups = {}
    for group in tomllib.loads((course / TABLE).read_text("utf-8"))["group"]:
        groups[group["title"]] = lines = []
        for row in group["claim"]:
            _check(row, files)
            number = row["chapter"]
            if number not in printed:
                printed[number] = outputs(course / "notebooks" / f"{files[number]}.ipynb")
            lines.append(_entry(row, printed[number]))
    return groups


def _entry(row: dict, printed: list[str]) -> Entry:
    named = {name: row.get(name, "") for name in ("claim", "source", "link", "chapter")}
    if "why" in row:
        return Entry(**named, here=row["why"], rule="", verdict=UNMEASURED)
    found = numbers(row, printed)
    here = row["here"].format(**found)
    return Entry(**named, here=here, rule=row["rule"], verdict=verdict(row, found))


def _check(row: dict, files: dict[str, str]) -> None:
    needed = {"claim", "source", "chapter"} | (
        {"why"} if "why" in row else {"here", "prints", "rule"}
    )
    unknown = sorted(row.keys() - KEYS)
    missing = sorted(needed - row.keys())
    if unknown or missing:
        raise ValueError(
            f"{TABLE}: {row.get('claim')}: unknown keys {unknown}, missing keys {missing}"
        )
    if row["chapter"] not in files:
        raise ValueError(f"{TABLE}: {row['claim']}: no chapter {row['chapter']!r} is there")


def page(course: Path = COURSE) -> str:
    """The ledger as a page of Markdown."""
    groups = entries(course)
    count = Counter(line.verdict for lines in groups.values() for line in lines)
    files = {each.number: each.file for each in chapters.read(course).chapters}
    text = [
        "<!-- Made from notebooks/ledger.toml and the executed notebooks by notebooks/ledger.py: "
        "do not edit here. -->",
        "# What the field says, and what we measured",
        "",
        f"{sum(count.values())} claims that papers, guides and courses repeat: "
        + ", ".join(f"{count[word]} *{word}*" for word in VERDICTS if count[word])
        + ". Each number is read from the output of the chapter's own cell, and each verdict "
        "follows from a rule that stands under the claim. If a chapter is executed again and "
        "prints something else, this page changes with it, or a test fails.",
        "",
        "Our scale is small: networks of at most some millions of parameters, pictures of 8×8 to "
        "32×32 pixels, points in the plane. *Not here* says nothing about a larger scale; it says "
        "that the claim is not a law.",
        "",
        *(f"- **{word}**: {meaning}." for word, meaning in VERDICTS.items()),
    ]
    for title, lines in groups.items():
        text += ["", f"## {title}", "", "| claim | measured here | verdict |", "|---|---|---|"]
        text += [_line(line, files) for line in lines]
    return "\n".join(text) + "\n"


def _line(line: Entry, files: dict[str, str]) -> str:
    chapter = f"[chapter {line.chapter}](../notebooks/{files[line.chapter]}.ipynb)"
    rule = f"<br>*Rule:* `{line.rule}`" if line.rule else ""
    source = f"[{line.source}]({line.link})" if line.link else line.source
    cells = (
        f"{line.claim} ({source}){rule}",
        f"{line.here} ({chapter})",
        f"**{line.verdict}**",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(argv: list[str] | None = None) -> int:
    return pages.main(
        "ledger.py", __doc__.split("\n")[0], lambda course: {course / PAGE: page(course)}, argv
    )


if __name__ == "__main__":
    sys.exit(main())
