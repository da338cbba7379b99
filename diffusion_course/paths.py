"""Where the course keeps files of its own, and which files are its chapters."""

import os
import re
import sys
from pathlib import Path


def cache_dir() -> Path:
    """The folder for what can be computed or downloaded again; it may not exist yet.

    ``DIFFUSION_COURSE_CACHE`` if it is set, else ``diffusion-course`` under the user's cache
    folder: ``LOCALAPPDATA`` on Windows, ``XDG_CACHE_HOME`` or ``~/.cache`` elsewhere.
    """
    chosen = os.environ.get("DIFFUSION_COURSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return _user_cache() / "diffusion-course"


def _user_cache() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    # The XDG specification says that a relative path is to be ignored.
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"


def source_tree() -> Path:
    """The folder that the package lies in: the course's own after ``pip install -e .``."""
    return Path(__file__).resolve().parent.parent


# "03_ddpm", or the one chapter without a number.
_CHAPTER = re.compile(r"[0-9][0-9]_\w+|clinic")


def chapters(folder: Path, ending: str = ".ipynb") -> list[Path]:
    """The files of a folder that belong to chapters, in the course's order.

    Args:
      folder: ``notebooks/``, ``exercises/`` or ``solutions/`` of the course, or a ``source/``.
      ending: ".ipynb" or ".py".

    Returns: ``NN_name`` by number, then ``clinic``; other files lie there on their own account.
    """
    return sorted(path for path in folder.glob(f"*{ending}") if _CHAPTER.fullmatch(path.stem))


def chapter_number(name: str) -> str:
    """What a chapter is called by, from its file's name: "03_ddpm" -> "03"; clinic: "clinic"."""
    return name.partition("_")[0].partition(".")[0]
