"""The course's docstrings as reStructuredText.

They are plain text with `code` in it: paragraphs, a head such as "Returns:" before a text or a list
of names, examples (>>>), and indented formulas. Nothing else in them is markup, so a star, a bar or
an underscore is printed as it stands.
"""

from __future__ import annotations

import re

HEADS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Sources", "Note", "Notes",
         "Shapes", "Example", "Examples")  # fmt: skip

_HEAD = re.compile(rf"({'|'.join(HEADS)}): ?(.*)$")
_ITEM = re.compile(r"([\w*., /|-]{1,60}?): (.+)$|([\w*., /|-]{1,60}):$")
_CODE = re.compile(r"``(.+?)``|`([^`\n]+)`")


def inline(text: str) -> str:
    """A line or more of prose: its code as literals, everything else as it stands."""
    parts, end = [], 0
    for found in _CODE.finditer(text):
        code = (found[1] or found[2]).strip()
        # A literal must not touch a letter: "\ " separates the two and prints nothing.
        parts += [_escaped(text[end : found.start()]), rf"\ ``{code}``\ "]
        end = found.end()
    return "".join([*parts, _escaped(text[end:])]).strip()


def _escaped(text: str) -> str:
    return re.sub(r"([\\*`|_<>])", r"\\\1", text)


def restructured(lines: list[str]) -> list[str]:
    """A docstring's lines, without common indentation, as reStructuredText."""
    out: list[str] = []
    for block in _blocks(lines):
        out += [*_block(block), ""]
    return out


def _blocks(lines: list[str]) -> list[list[str]]:
    """Parts with something in common: cut at blank lines, before a head and before an example."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        last = blocks[-1]
        starts = _HEAD.match(line) or (line.lstrip().startswith(">>>") and not _example(last))
        leaves = last and _indent(last[0]) and line.strip() and not _indent(line)
        if not line.strip() or starts or leaves:
            blocks.append([])
        if line.strip():
            blocks[-1].append(line.rstrip())
    return _with_their_items([block for block in blocks if block])


def _with_their_items(blocks: list[list[str]]) -> list[list[str]]:
    """A head's list may have blank lines in it: what is indented after a head belongs to it."""
    found: list[list[str]] = []
    for block in blocks:
        head = found and _HEAD.match(found[-1][0])
        if head and not head[2] and _indent(block[0]) and not _example(block):
            found[-1] += block
        else:
            found.append(block)
    return found


def _block(block: list[str]) -> list[str]:
    head = _HEAD.match(block[0])
    if head and head[1] not in ("Example", "Examples"):
        if head[2]:
            text = " ".join([head[2], *(line.strip() for line in block[1:])])
            return [f"**{head[1]}.** {inline(text)}"]
        return [f"**{head[1]}.**", "", *_items(block[1:])]
    if head:
        return [f"**{head[1]}.**", "", *(line.strip() for line in block[1:])]
    if _example(block):
        cut = _indent(block[0])
        return [line[cut:] for line in block]
    if _indent(block[0]):
        return ["::", "", *(f"    {line}" for line in block)]
    return [inline(" ".join(line.strip() for line in block))]


def _items(lines: list[str]) -> list[str]:
    """A list of "name: text"; what is indented further, or has no name, goes on with the last."""
    base = min(map(_indent, lines), default=0)
    items: list[list[str]] = []
    for line in lines:
        found = _ITEM.match(line.strip()) if _indent(line) == base else None
        if found or not items:
            items.append([found[1] or found[3], found[2] or ""] if found else ["", line.strip()])
        else:
            items[-1][1] += f" {line.strip()}"
    return [
        f"* {f'``{name.strip()}``: ' if name else ''}{inline(text)}".rstrip()
        for name, text in items
    ]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _example(block: list[str]) -> bool:
    return bool(block) and block[0].lstrip().startswith(">>>")
