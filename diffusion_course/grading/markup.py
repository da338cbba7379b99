"""What the pages of a class and of a student have in common: their frame, their style, escaping."""

from __future__ import annotations

import html

from diffusion_course.grading.places import Place

# Colours that differ in brightness too, for who cannot tell the hues apart and for paper.
_STYLE = """
:root { color-scheme: light dark; --line: #d5d9e0; --soft: #f4f6f9; --quiet: #5b6472;
  --right: #2166ac; --partly: #92c5de; --wrong: #d6604d; --untouched: #b9bec7 }
@media (prefers-color-scheme: dark) { :root { --line: #3a414d; --soft: #232830; --quiet: #a3adbb;
  --right: #4393c3; --partly: #8cb3cc; --wrong: #d6604d; --untouched: #59616e } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto;
  padding: 1.5rem 1rem }
h1 { line-height: 1.2; overflow-wrap: anywhere } h2 { margin-top: 2.2rem }
.quiet, small { color: var(--quiet) }
.cards { display: flex; flex-wrap: wrap; gap: .8rem }
.card { flex: 1 1 8rem; background: var(--soft); border-radius: .5rem; padding: .7rem 1rem }
.card b { display: block; font-size: 1.6rem; line-height: 1.2 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; white-space: nowrap }
th, td { padding: .4rem .6rem; vertical-align: top }
td { border-top: 1px solid var(--line); overflow-wrap: break-word }
td.text { min-width: 9rem; max-width: 30rem }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.bar { display: flex; height: 1.1rem; min-width: 7rem; border-radius: .25rem; overflow: hidden;
  background: var(--soft); margin-top: .2rem }
.bar i { display: block }
.right { background: var(--right) } .partly { background: var(--partly) }
.wrong { background: var(--wrong) } .untouched { background: var(--untouched) }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem;
  margin: 0 .3rem 0 1rem }
.help { border-left: .3rem solid var(--wrong); padding-left: .5rem }
@media print { body { max-width: none; padding: 0; font-size: 11pt } tr { break-inside: avoid }
  .bar, .key, .card { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def escape(value) -> str:
    """Text for the inside of an element or of a quoted attribute."""
    return html.escape(str(value))


def document(title: str, body: str) -> str:
    """A page in one file: no script, and nothing from a network.

    Args:
      title: plain text, which is escaped.
      body: markup, in which everything from a student is escaped already.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(columns: dict[str, str], rows: list[list[str]]) -> str:
    """A table that scrolls sideways where it doesn't fit.

    Args:
      columns: heading -> class of the column's cells, both plain text of our own.
      rows: markup of the cells.
    """
    classes = [f' class="{name}"' if name else "" for name in columns.values()]
    head = "".join(f"<th{c}>{name}</th>" for name, c in zip(columns, classes, strict=True))
    lines = [
        "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, classes, strict=True)) for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}\n</table></div>'


def read_again(place: Place | None) -> str:
    """A line that says what to read again, with a link where there is a site; empty for None."""
    if place is None:
        return ""
    text = escape(place.text)
    if place.address:
        text = f'<a href="{escape(place.address)}">{text}</a>'
    return f"<br><small>read again: {text}</small>"


def bar(parts: dict[str, float], said: str) -> str:
    """A bar of coloured parts.

    Args:
      parts: class -> share of the bar, which together are at most 1.
      said: what it shows, in words, for who does not see it.
    """
    inside = "".join(
        f'<i class="{name}" style="width:{100 * share:.4g}%"></i>'
        for name, share in parts.items()
        if share
    )
    return f'<div class="bar" role="img" aria-label="{escape(said)}">{inside}</div>'
