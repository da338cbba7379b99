"""Where the course keeps files of its own on this computer."""

import os
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
