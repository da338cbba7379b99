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


def alternative(cells, number: int) -> str:
    """The text for the pictures of cell `number`; never empty."""
    cell = cells[number]
    if cell.metadata.get("alt"):
        return cell.metadata["alt"]
    heading, text = "", ""
    for other in reversed(cells[:number]):
        if other.cell_type != "markdown":
            continue
        text = text or plain(_HEADING.sub("", other.source))
        found = _HEADING.findall(other.source)
        if found:
            heading = plain(found[-1])
            break
    name = f"Figure of “{heading}”." if heading else "Figure."
    labels = _labels(cell.source)
    return " ".join(filter(None, [name, labels, _told(text, enough=bool(labels))]))


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


def plain(text: str) -> str:
    """Markdown as a line of text: no marks, addresses, tables or displayed formulas."""
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$|<!--.*?-->", " ", text)
    text = re.sub(r"(?m)^\|.*$", " ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?s)\$(.+?)\$", lambda m: _formula(m[1]), text)
    text = re.sub(r"<[^>]+>|[*`]|(?m:^\s*[-#>]+ )", "", text)
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
