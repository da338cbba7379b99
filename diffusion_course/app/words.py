"""What a picture of a notebook is called by those who cannot see it.

An author writes it in the cell's metadata:

    # %% alt="Digits at nine times, from clear to pure noise; one row is never noise."

Where a cell has none, it is made of the section's title, of the titles and axes that the cell's
code names, and of the sentence before the cell that speaks of the figure.
"""

from __future__ import annotations

import ast
import html
import re

_HEADING = re.compile(r"(?m)^#{1,4} +(.+)$")
_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z*_$])")
_OF_A_FIGURE = re.compile(
    r"\b(figures?|pictures?|plots?|histograms?|panels?|curves?|rows?|columns?|left|right|slider)\b",
    re.IGNORECASE,
)

_OF_ITS_PARTS = re.compile(
    r"\b(figure|plot|histogram|panels?|curves?|rows?|columns?|lines?|dots|arrows|upper|lower|left|right)"
    r"\b(?! (side|place|if|away|for|at the beginning))",
    re.IGNORECASE,
)


def alternative(cells, number: int) -> str:
    """The text for the pictures of cell `number`; never empty."""
    cell = cells[number]
    if cell.metadata.get("alt"):
        return cell.metadata["alt"]
    heading, text = _before(cells[:number])
    name = f"Figure of “{heading}”." if heading else "Figure."
    labels = _labels(cell.source)
    return " ".join(filter(None, [name, labels, _told(text, enough=bool(labels))]))


def caption(cells, number: int) -> str:
    """What the text says the pictures of cell `number` show, in one sentence; may be empty.

    Formulas stay as they are, in dollars.
    """
    if cells[number].metadata.get("alt"):
        return cells[number].metadata["alt"]
    sentences = _SENTENCE.split(_before(cells[:number], formulas=True)[1])
    shown = [part.strip() for part in sentences if _OF_ITS_PARTS.search(part)]
    last = next((part for part in reversed(shown) if part[-1] not in "?:"), "")
    return last if last.count("(") == last.count(")") else last.replace("(", "").replace(")", "")


def _before(cells, formulas: bool = False) -> tuple[str, str]:
    """The last heading, and the last text below it."""
    text = ""
    for cell in reversed(cells):
        if cell.cell_type != "markdown":
            continue
        text = text or plain(_HEADING.sub("", cell.source), formulas)
        found = _HEADING.findall(cell.source)
        if found:
            return plain(found[-1]), text
    return "", text


def _told(text: str, enough: bool) -> str:
    """The last sentence about a figure, else the last one if nothing else is known."""
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    said = [part for part in sentences if part[-1] not in "?:"]
    about = [part for part in said if _OF_A_FIGURE.search(part)]
    return (about or ([] if enough else said or sentences) or [""])[-1]


def _labels(source: str) -> str:
    """The titles and axes that a cell's code names as plain strings."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    found = {"title": [], "xlabel": [], "ylabel": []}
    for call in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", "")).removeprefix("set_")
        named = [(word.arg, word.value) for word in call.keywords]
        named += [(name.replace("suptitle", "title"), argument) for argument in call.args[:1]]
        if re.search("grid|panel|show|strip", name):  # helpers that take a title after the data
            named += [("title", argument) for argument in call.args[1:]]
        for word, value in named:
            if word in found and isinstance(value, ast.Constant) and isinstance(value.value, str):
                label = plain(value.value)
                if label and label not in found[word]:
                    found[word].append(label)
    parts = ["; ".join(found["title"])]
    for axis, name in (("horizontal", "xlabel"), ("vertical", "ylabel")):
        if found[name]:
            parts.append(f"{axis}: {', '.join(found[name])}")
    text = ". ".join(filter(None, parts))
    return f"{text}." if text and text[-1] not in ".?!" else text


def plain(text: str, formulas: bool = False) -> str:
    """Markdown as a line of text: no marks, addresses, tables or displayed formulas.

    Args:
      text: Markdown.
      formulas: leave those in the lines as they are.
    """
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$|<!--.*?-->", " ", text)
    text = re.sub(r"(?m)^\|.*$", " ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    kept = re.findall(r"(?s)\$.+?\$", text)
    text = re.sub(r"(?s)\$.+?\$", "\0", text)  # no mark inside a formula is one
    text = re.sub(r"<[^>]+>|(?<!\\)[*`]|(?m:^\s*[-#>]+ )", "", text)
    text = re.sub(r"\\([*`_#])", r"\1", text)  # a sign that is no mark
    for each in kept:
        text = text.replace("\0", each if formulas else _formula(each[1:-1]), 1)
    return re.sub(r"\s+", " ", text).strip()


def _formula(text: str) -> str:
    """A short formula as it is read aloud, roughly: commands lose their backslash and braces."""
    text = re.sub(r"\\(?:math\w+|text|mathrm|left|right|,|;|!|quad|qquad)", " ", text)
    text = re.sub(r"\\(?:bar|hat|tilde|sqrt|frac|dots)\b", lambda m: m[0][1:] + " ", text)
    return re.sub(r"[\\{}]", "", text)


def with_alternatives(text: str, alternative: str) -> str:
    """HTML of an output in which every picture has a text."""
    escaped = html.escape(alternative)
    return re.sub(r"<img(?![^>]*\balt=)", f'<img alt="{escaped}"', text)
