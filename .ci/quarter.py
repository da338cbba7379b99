"""Prints the notebooks of a quarter of the chapters: python .ci/quarter.py 2

The four quarters take about as long, by the times in notebooks/chapters.toml. With "commit" in the
place of the number: the quarter that the commit stands for. Every commit has one, and they take
turns. With "all": the notebooks of every chapter.
"""

import subprocess
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(COURSE / "notebooks"), str(COURSE)]

import chapters  # noqa: E402 (notebooks/chapters.py)

from diffusion_course import paths  # noqa: E402

# Seconds: of a chapter not measured yet, and of what every chapter has besides, its exercises,
# their solutions and programs to compile.
UNKNOWN, BESIDES = 100, 25


def of_the_commit() -> int:
    """0 to 3, from the commit's name."""
    command = ["git", "-C", str(COURSE), "rev-parse", "HEAD"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout, 16) % 4


def quarters() -> list[dict[str, float]]:
    """Seconds of each notebook's chapter, by its name, in four parts: the longest first, each to
    the part that has least."""
    parts = [{} for _ in range(4)]
    there = [chapter for chapter in chapters.read(COURSE).chapters if chapter.file]
    for chapter in sorted(there, key=lambda chapter: -(chapter.warm or UNKNOWN)):
        least = min(parts, key=lambda part: sum(part.values()))
        least[chapter.file] = (chapter.warm or UNKNOWN) + BESIDES
    return parts


def notebooks(quarter: int | None) -> list[str]:
    """Paths of chapters, masters and exercises, from the course's folder; None: of all chapters."""
    wanted = None if quarter is None else quarters()[quarter]
    return [
        path.relative_to(COURSE).as_posix()
        for folder in ("notebooks", "solutions", "exercises")
        for path in paths.chapters(COURSE / folder)
        if wanted is None or path.stem in wanted
    ]


def main() -> None:
    (wanted,) = sys.argv[1:] or ["all"]
    if wanted not in ("all", "commit", "0", "1", "2", "3"):
        raise SystemExit(f"QUARTER must be 0, 1, 2, 3, commit or all, got {wanted!r}")
    quarter = {"all": None, "commit": of_the_commit()}.get(wanted, wanted)
    print(*notebooks(None if quarter is None else int(quarter)))


if __name__ == "__main__":
    main()
