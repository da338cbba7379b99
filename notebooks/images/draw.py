"""Draws samples.png again, by running the lines that README.md shows.

python notebooks/images/draw.py
"""

import os
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent.parent / "README.md"


def lines() -> str:
    """The first Python block of README.md."""
    return re.search(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S).group(1)


if __name__ == "__main__":
    os.chdir(HERE)
    exec(compile(lines(), str(README), "exec"), {})
