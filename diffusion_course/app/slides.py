"""A deck of slides from a chapter: its question, its predictions, its figures and its recap.

nbconvert makes it, with a preprocessor that keeps these, and with a page of our own. A deck is one
HTML file that loads nothing from a network, and no cell runs.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from diffusion_course import files
from diffusion_course.app import runner, words
from diffusion_course.app.deck import TEMPLATE

MATHJAX = "mathjax.js"  # lies beside the decks

_QUESTION = re.compile(r"\*\*The question\.\*\*\s+(.+?)(?=\n\n|\Z)", re.DOTALL)
_PREDICT = re.compile(r"\*\*Predict, then [^*]+\*\*\s+.+?(?=\n\n|\Z)", re.DOTALL)
_SECTION = re.compile(r"(?m)^## +(.+)$")
_RECAP = re.compile(r"(\d+ · )?Recap\b")
_ITEMS = re.compile(r"(?m)^\d+\. .+(?:\n(?!\n).*)*(?:\n+\d+\. .+(?:\n(?!\n).*)*)*")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")  # leads to a file that isn't here


@dataclass(frozen=True)
class Slide:
    """One slide.

    Attributes:
      kind: "title", "section", "prediction", "figure", "explorer" or "recap".
      heading: Markdown, of one line.
      text: Markdown; of a figure its caption.
      picture: of a figure, a PNG in base64.
      size: of a figure, its width and height in pixels.
      alternative: of a figure, what it shows, for who does not see it.
    """

    kind: str
    heading: str
    text: str = ""
    picture: str = ""
    size: tuple[int, int] = (0, 0)
    alternative: str = ""


def slides(cells: Sequence) -> list[Slide]:
    """The slides of a notebook, in its order; a section without any has one with its heading.

    Args:
      cells: of a chapter, with outputs.
    """
    found: list[Slide] = []
    heading = ""
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            source = _LINK.sub(r"\1", cell.source)
            if number == 0:
                title, _, source = source.partition("\n")
                heading = title.removeprefix("# ")
                asked = _QUESTION.search(source)
                found.append(Slide("title", heading, asked[1] if asked else ""))
            if section := _SECTION.search(source):
                heading = section[1]
                if _RECAP.match(heading):
                    rest = (c.source for c in cells[number:] if c.cell_type == "markdown")
                    items = _ITEMS.search(_LINK.sub(r"\1", "\n\n".join(rest)))
                    found.append(Slide("recap", heading, items[0] if items else ""))
                elif heading[0].isdigit():  # not what follows the recap
                    found.append(Slide("section", heading))
            found += [Slide("prediction", heading, text[0]) for text in _PREDICT.finditer(source)]
        elif cell.cell_type == "code":
            found += _shown(cells, number, heading)
    return [slide for slide, after in zip(found, [*found[1:], None], strict=True)
            if not _only_a_heading(slide, after)]  # fmt: skip


def _shown(cells: Sequence, number: int, heading: str) -> Iterator[Slide]:
    """The figures of a code cell, and its explorer, for which the notebook must run."""
    alternative, caption = words.alternative(cells, number), words.caption(cells, number)
    for output in cells[number].get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"].split())
            yield Slide("figure", heading, caption, picture, _size(picture), alternative)
        elif "interactive explorer" in data.get("text/plain", ""):
            yield Slide("explorer", heading, "In the notebook, a slider stands here.")
        elif "<img" in data.get("text/html", ""):
            yield Slide("explorer", heading, "In the notebook, a picture moves here.")


def _size(picture: str) -> tuple[int, int]:
    """Width and height of a PNG, which stand at its beginning."""
    return struct.unpack(">II", base64.b64decode(picture[:32])[16:24])


def _only_a_heading(slide: Slide, after: Slide | None) -> bool:
    """Whether the next slide says this section's heading as well, and more."""
    return slide.kind == "section" and after is not None and after.heading == slide.heading


def keep_slides(notebook, resources):
    """The preprocessor for nbconvert: each cell becomes one slide, told in its metadata."""
    kept = [
        nbformat.v4.new_markdown_cell(slide.text, metadata={"slide": vars(slide)})
        for slide in slides(notebook.cells)
    ]
    notebook = nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata)
    resources["mathjax"] = MATHJAX if any("$" in s.text + s.heading for s in map(_of, kept)) else ""
    return notebook, resources


def _of(cell) -> Slide:
    return Slide(**cell.metadata["slide"])


def page(notebook) -> str:
    """The deck of a notebook as HTML, by nbconvert.

    Args:
      notebook: a chapter with outputs; it isn't changed.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_anchor_links=True)
    exporter.register_preprocessor(keep_slides, enabled=True)
    return exporter.from_notebook_node(notebook)[0]


def write(course: Path, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Writes a deck for each chapter, and MathJax beside them if a deck has a formula.

    Args:
      course: the folder with notebooks/ in it.
      folder: is made if need be.
      names: of chapters, as `runner.find_chapter` takes them; all without any.

    Returns: the decks, in the course's order.
    Raises: runner.Mistake for an unknown chapter, or if MathJax is needed and not installed.
    """
    wanted = {runner.find_chapter(course, name) for name in names} or runner.chapters(course)
    content = {folder / f"{path.stem}.html": page(runner.read(path)) for path in sorted(wanted)}
    decks = list(content)
    if any(f'src="{MATHJAX}"' in text for text in content.values()):
        content[folder / MATHJAX] = mathjax().read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_together(content)
    return decks


def mathjax() -> Path:
    """MathJax in one file, from the package that carries it. Raises: runner.Mistake without."""
    from importlib.util import find_spec

    found = find_spec("mathjax")
    folders = found.submodule_search_locations if found else ()
    for folder in folders or ():
        path = Path(folder, "static", "mathjax", "es5", "tex-svg-full.js")
        if path.exists():
            return path
    raise runner.Mistake(
        "MathJax is not installed, which sets the formulas; run: "
        'pip install "diffusion-course[site]"'
    )
