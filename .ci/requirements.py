"""Prints what the course needs, a line each: python .ci/requirements.py dev

With the names of extras, what those need too. For an environment that another process must not
build the course in at the same time: its requirements first, the course after (Makefile).
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def needed(project: dict, extras: list[str]) -> list[str]:
    """Requirements of a [project] table and its extras, those that an extra names among them."""
    lines = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", line)
            found = needed(project, own[1].split(",")) if own else [line]
            lines += [line for line in found if line not in lines]
    return lines


if __name__ == "__main__":
    print(*needed(tomllib.loads(PROJECT.read_text("utf-8"))["project"], sys.argv[1:]), sep="\n")
