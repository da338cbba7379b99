"""What a picture of a notebook is called by those who cannot see it.

An author writes it in the cell's metadata:

    # %% alt="Digits at nine times, from clear to pure noise; one row is never noise."

Where a cell has none, it is made of the section's title and of the sentence before the cell that
speaks of the figure.
"""

from __future__ import annotations

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
    return " ".join(
        filter(None, [f"Figure of “{heading}”." if heading else "Figure.", _told(text)])
    )


def _told(text: str) -> str:
    """The last sentence about a figure, else the last one."""
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip()]
    about = [part for part in sentences if _OF_A_FIGURE.search(part)]
    return (about or sentences or [""])[-1]


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
