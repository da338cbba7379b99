"""The table of chapters, notebooks/chapters.toml, as the command line reads it.

The course's own checks of the table are stricter; they are in notebooks/chapters.py.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from diffusion_course import paths
from diffusion_course.app import runner

NAME = "chapters.toml"


@dataclass(frozen=True)
class Chapter:
    """A chapter that exists.

    Attributes:
      file: name of its notebook without the ending, "03_ddpm".
      title: what it is called.
      warm: seconds to run once its programs are compiled; None if nobody has measured them.
    """

    file: str
    title: str
    warm: float | None

    @property
    def number(self) -> str:
        """Two digits, "03", or "clinic"."""
        return paths.chapter_number(self.file)


def read(course: Path) -> tuple[dict[str, Chapter], str]:
    """The chapters by their file's name, and when and where their seconds were measured.

    Args:
      course: the folder with notebooks/ in it.

    Raises: runner.Mistake if the table is missing or damaged.
    """
    path = course / "notebooks" / NAME
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = [row for part in raw["part"] for row in part["chapter"] if "file" in row]
        chapters = [Chapter(row["file"], row["title"], row.get("warm")) for row in rows]
        return {chapter.file: chapter for chapter in chapters}, raw["measured"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise runner.Mistake(
            f"{path} cannot be used ({type(error).__name__}: {error}); take the course's folder as "
            "it was published, or the one that diffusion-course notebooks FOLDER writes"
        ) from None
