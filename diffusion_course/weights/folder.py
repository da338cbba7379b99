"""Where the released weights lie."""

from pathlib import Path

FOLDER = Path(__file__).parent
