"""Local copies of hub data sets: ``$DIFFUSION_COURSE_DATA/<name>/**/<split>-*.parquet``."""

import os
import re
from pathlib import Path

from diffusion_course.data.types import DataUnavailableError

VARIABLE = "DIFFUSION_COURSE_DATA"


def local_folder() -> Path | None:
    """The folder that ``DIFFUSION_COURSE_DATA`` names, or None if the variable is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def find(folder: Path, name: str, split: str) -> list[Path]:
    """The parquet files of one split, sorted, as the hub lays them out.

    Raises:
      DataUnavailableError: there are none, one is no file or is there twice, or some of the parts
        that their names count are missing.
    """
    files = sorted(
        path
        for path in (folder / name).rglob(f"{split}*.parquet")
        if re.fullmatch(rf"{split}(-.*)?\.parquet", path.name)
    )
    if not files:
        raise DataUnavailableError(
            f"{VARIABLE} is set, so {name} is taken from there alone, but "
            f"{_contents(folder)}, and no {name}/{split}-*.parquet. Put the data set there in the "
            f"layout of the Hugging Face hub, or unset {VARIABLE} to download it from the hub"
        )
    for file in files:
        if not file.is_file():  # a link that leads nowhere
            raise DataUnavailableError(f"the local copy of {name} has {file}, which is no file")
    _check_parts(files, name, split)
    return files


def _check_parts(files: list[Path], name: str, split: str) -> None:
    """A copy with parts missing would be other data under the same name."""
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        twice = next(file for file in files if names.count(file.name) > 1)
        raise DataUnavailableError(
            f"the local copy of {name} must hold each part once: {twice.name} is there "
            f"{names.count(twice.name)} times, first in {twice.parent}. Remove the others"
        )
    totals = {int(m[1]) for f in files if (m := re.search(r"-of-(\d+)\.parquet$", f.name))}
    if totals and totals != {len(files)}:
        raise DataUnavailableError(
            f"the local copy of {name} must hold each part once: {files[0].parent} has "
            f"{len(files)} {split} file(s) where their names count {max(totals)}. Copy the data "
            f"set anew, or unset {VARIABLE} to download {name} from the hub"
        )


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder"
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return f"{folder} holds {', '.join(found) or 'no folder of data'}"
