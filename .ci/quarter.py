"""Prints the notebooks of a quarter of the chapters: python .ci/quarter.py 2

The four quarters take about as long, by the times in notebooks/chapters.toml. With "commit" in the
place of the number: the quarter that the commit stands for. Every commit has one, and they take
turns. With "all": the notebooks of every chapter.

python .ci/quarter.py 2 --every-chapter    every chapter, the quarter's exercises and masters
python .ci/quarter.py all --without 2      all but this quarter
"""

import argparse
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


def of_the_commit() -> int | None:
    """0 to 3, from the commit's name; None, and a line that says so, where there is none."""
    command = ["git", "-C", str(COURSE), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        print("No commit here that could choose a quarter: all chapters run.", file=sys.stderr)
        return None
    return int(found.stdout, 16) % 4


def number(quarter: str) -> int | None:
    """Which quarter "0" to "3" or "commit" means; None for "all"."""
    if quarter not in ("all", "commit", "0", "1", "2", "3"):
        raise SystemExit(f"QUARTER must be 0, 1, 2, 3, commit or all, got {quarter!r}")
    if quarter == "commit":
        return of_the_commit()
    return None if quarter == "all" else int(quarter)


def parts(seconds: dict[str, float]) -> list[dict[str, float]]:
    """What takes these seconds, by name, in four parts: the longest first, each to the part that
    has least."""
    found = [{} for _ in range(4)]
    for name in sorted(seconds, key=lambda name: (-seconds[name], name)):
        least = min(found, key=lambda part: sum(part.values()))
        least[name] = seconds[name]
    return found


def quarters() -> list[dict[str, float]]:
    """Seconds of each notebook's chapter, by its name, in four parts."""
    there = [chapter for chapter in chapters.read(COURSE).chapters if chapter.file]
    return parts({chapter.file: (chapter.warm or UNKNOWN) + BESIDES for chapter in there})


def chosen(quarter: str) -> set[str] | None:
    """Names of a quarter's chapters; None for all of them."""
    wanted = number(quarter)
    return None if wanted is None else set(quarters()[wanted])


def in_order(first: int) -> list[str]:
    """Names of all chapters, the quarters from the first on, in each the longest first."""
    found = quarters()
    return [name for n in range(4) for name in found[(first + n) % 4]]


def notebooks(quarter: str, every_chapter: bool = False, without: str | None = None) -> list[str]:
    """Paths of chapters, masters and exercises, from the course's folder.

    Masters and exercises come first: they are short. Of the chapters, those of the quarter left out
    would be the last, so what a run has no time for is another part with each commit (`until.py`).
    """
    wanted, out = chosen(quarter), number(without) if without else None
    unwanted = set() if out is None else set(quarters()[out])
    names = in_order(0 if out is None else out)
    pages = {
        (folder, path.stem): path
        for folder in ("solutions", "exercises", "notebooks")
        for path in paths.chapters(COURSE / folder)
    }
    return [
        pages[folder, name].relative_to(COURSE).as_posix()
        for folder in ("solutions", "exercises", "notebooks")
        for name in names
        if (folder, name) in pages
        and name not in unwanted
        and (wanted is None or name in wanted or (every_chapter and folder == "notebooks"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("quarter", nargs="?", default="all", help="0, 1, 2, 3, commit or all")
    parser.add_argument("--every-chapter", action="store_true")
    parser.add_argument("--without", metavar="QUARTER", help="leave out this one")
    given = parser.parse_args()
    print(*notebooks(given.quarter, given.every_chapter, given.without))


if __name__ == "__main__":
    main()
