"""Prints the notebooks of every fourth chapter, from chapter QUARTER on: python .ci/quarter.py 2

With "commit" in the place of the number: the quarter that the commit stands for. Every commit has
one, and they take turns. With "all": the notebooks of every chapter.
"""

import subprocess
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent


def of_the_commit() -> int:
    """0 to 3, from the commit's name."""
    command = ["git", "-C", str(COURSE), "rev-parse", "HEAD"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout, 16) % 4


def notebooks(quarter: int | None) -> list[str]:
    """Paths of chapters, masters and exercises, from the course's folder; None: of all chapters."""
    return [
        path.relative_to(COURSE).as_posix()
        for folder in ("notebooks", "solutions", "exercises")
        for path in sorted((COURSE / folder).glob("[0-9][0-9]_*.ipynb"))
        if quarter is None or int(path.name[:2]) % 4 == quarter
    ]


def main() -> None:
    (wanted,) = sys.argv[1:] or ["all"]
    if wanted not in ("all", "commit", "0", "1", "2", "3"):
        raise SystemExit(f"QUARTER must be 0, 1, 2, 3, commit or all, got {wanted!r}")
    quarter = {"all": None, "commit": of_the_commit()}.get(wanted, wanted)
    print(*notebooks(None if quarter is None else int(quarter)))


if __name__ == "__main__":
    main()
