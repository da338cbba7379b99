"""Where the course explains what went wrong: the section of an exercise, and the way to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from diffusion_course.grading.exercise import Exercise, Written


@dataclass(frozen=True)
class Place:
    """A section of a chapter.

    Attributes:
      text: "chapter 19, section 5 · ΠGDM: the guess has an error".
      address: of the section on the course's site, or empty.
    """

    text: str
    address: str = ""


def anchor(section: str) -> str:
    """The id of a heading on the course's site; JupyterLab's, too, if it has no formula.

    >>> anchor("5 · ΠGDM: the guess has an error")
    '5-·-ΠGDM:-the-guess-has-an-error'
    """
    return section.replace(" ", "-")


def place(exercise: Exercise | Written, site: str = "", file: str = "") -> Place | None:
    """What to read again where an exercise went wrong; None if it names no section.

    Args:
      exercise: of any chapter.
      site: address of the course's site, without a slash at its end, or empty.
      file: name of the chapter's notebook without ending, "19_steering"; needed for a link.
    """
    if not exercise.section:
        return None
    heading = re.sub(r"[$\\{}]", "", exercise.section)  # a formula, as plain text
    text = f"chapter {exercise.id.partition('.')[0]}, section {heading}"
    if not site or not file:
        return Place(text)
    return Place(text, f"{site}/notebooks/{file}.html#{quote(anchor(exercise.section))}")


def places(
    exercises: Iterable[Exercise | Written], site: str = "", files: Mapping[str, str] | None = None
) -> dict[str, Place]:
    """Exercise -> its `place`, for those that have one.

    Args:
      exercises: of any chapters.
      site: as for `place`.
      files: number of a chapter -> the name of its notebook without ending.
    """
    files = files or {}
    found = {e.id: place(e, site, files.get(e.id.partition(".")[0], "")) for e in exercises}
    return {name: here for name, here in found.items() if here}


def site(text: str) -> str:
    """The address of a site from what a user gives: an address, or the folder that was built.

    Raises: ValueError if it is neither; the text says what is needed.
    """
    if text.startswith(("http://", "https://")):
        return text.rstrip("/")
    folder = Path(text)
    if (folder / "index.html").is_file() and (folder / "notebooks").is_dir():
        return folder.resolve().as_uri()
    raise ValueError(
        f"must be an address that begins with https://, or a folder that make site has built, "
        f"got {text!r}"
    )
