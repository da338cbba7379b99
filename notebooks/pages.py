"""What the scripts that write pages have in common: their command line.

Each of them makes texts from the chapters, and writes those that have changed. With --check it only
says which are out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent


def main(
    script: str,
    about: str,
    made: Callable[[Path], Mapping[Path, str]],
    argv: list[str] | None = None,
    hint: Callable[[Path, list[Path]], str] = lambda course, written: "",
) -> int:
    """Runs a script's command line.

    Args:
      script: its name, for what goes wrong.
      about: what it does, one line.
      made: ``made(course)``: the files, each with the text that it should have.
      argv: the arguments, or None for the command line's.
      hint: ``hint(course, written)``: what to say at the end, when files were written.

    Returns: the exit code: 0; 1 if --check finds a file out of date; 2 if nothing can be made.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    parser.add_argument("--course", type=Path, default=COURSE, help="the course's folder")
    arguments = parser.parse_args(argv)
    try:
        texts = made(arguments.course)
        stale = [path for path, text in texts.items() if _differs(path, text)]
        if not arguments.check:
            for path in stale:
                path.parent.mkdir(exist_ok=True)
                path.write_text(texts[path], "utf-8")
    except (ValueError, KeyError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    for path in stale:
        name = path.relative_to(arguments.course)
        print(f"{name} is out of date" if arguments.check else f"wrote {name}")
    if stale and not arguments.check and (said := hint(arguments.course, stale)):
        print(said)
    return 1 if arguments.check and stale else 0


def _differs(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text("utf-8") != text
