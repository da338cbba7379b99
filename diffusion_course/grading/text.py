"""Text that nobody vouches for: made printable, kept apart, and no formula for a spreadsheet."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping

# What begins a formula, and the wide = + - @ of East Asia's keyboards. It begins one where a
# spreadsheet's cell begins: at the start, behind anything that someone may choose as a separator,
# and there also behind spaces and quotes. Not behind an apostrophe, which makes text of it; a plain
# negative number is none, nor is a sign that stands alone between spaces.
_SIGN = r"[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]"
_NUMBER = r"-\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=[\s,;)\]}]|\Z)"
_INSIDE = r"[^\w\s.'\"()\[\]{}=+\-@*/<>!][\s\"]*|[\s\"](?![=+\-@<>]+(?:\s|\Z))"
_FORMULA = re.compile(rf"(\A[\s\"]*|(?:{_INSIDE})(?!{_NUMBER}))(?={_SIGN})")
# Letters and marks that show nothing at all, though Python calls them printable.
_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def line(text: str) -> str:
    """The text on one line; a space for whatever cannot be printed or would end the line.

    >>> line("a\\n\\x1b[31mb\\u202e\\ud800c")
    'a [31mb c'

    Args:
      text: anything.

    Returns: text that any file, terminal and page can hold.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def cell(text: str) -> str:
    """A line that every spreadsheet takes for text, whatever it takes for a separator.

    >>> cell("=1+1"), cell("a;@x"), cell("x = -1.5")
    ("'=1+1", "a;'@x", 'x = -1.5')

    Args:
      text: anything.

    Returns: the line, with an apostrophe before every sign that would begin a formula.
    """
    return _FORMULA.sub(r"\1'", line(text))


def _form(text: str) -> str:
    """Equal for texts that look alike when they are printed."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", cell(text))).split())


def distinct(wanted: Mapping[Hashable, str]) -> dict[Hashable, str]:
    """A printable name for each key; no two of them look alike.

    >>> distinct({1: "anna\\u200b", 2: "anna"})
    {2: 'anna', 1: 'anna (2)'}

    Args:
      wanted: key -> the name that it should have. Whose name can be printed as it is keeps it.

    Returns: key -> its name.
    """
    names, taken, tried = {}, set(), Counter()
    for key in sorted(wanted, key=lambda key: (line(wanted[key]) != wanted[key], wanted[key], key)):
        plain = line(wanted[key]) or "(no name)"
        name, form = plain, _form(plain)
        while _form(name) in taken:
            tried[form] += 1
            name = f"{plain} ({tried[form] + 1})"
        taken.add(_form(name))
        names[key] = name
    return names
