"""Files are written whole or not at all: a crash while writing leaves the old file as it was."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

# Text, bytes, or a function that writes into the open file.
Content = str | bytes | Callable[[BinaryIO], Any]


def write(path: str | Path, content: Content) -> Path:
    """Writes a file, in place of an older one of that name.

    The content goes to a temporary file in the same folder, is flushed to the disk, and only then
    gets the file's name. A reader meets the old file or the new one, never a part of one.

    Args:
      path: of the file; its folder must exist.
      content: text (written as UTF-8), bytes, or a function that writes into an open binary file.

    Returns: the path.
    Raises: OSError if the disk does not take it; the old file is then as it was.
    """
    write_together({path: content})
    return Path(path)


def write_together(contents: Mapping[str | Path, Content]) -> None:
    """Writes several files that belong together, such as weights and their card.

    All of them lie on the disk before the first one gets its name. If one cannot get it, those
    that already have theirs are put back. Only a computer that stops between two renames leaves
    a new file beside an old one, which the hash in a card shows.

    Args:
      contents: path -> content, as in `write`.

    Raises: OSError if the disk does not take one of them; the old files are then as they were.
    """
    contents = {Path(path): content for path, content in contents.items()}
    parts: dict[Path, Path] = {}
    old: dict[Path, bytes | None] = {}
    try:
        for path, content in contents.items():
            parts[path] = _new_name(path)
            _fill(parts[path], content)
            if path.is_file():
                with suppress(OSError):  # who may read the file does not change
                    shutil.copymode(path, parts[path])
        for path, part in parts.items():
            if len(parts) > 1:
                old[path] = path.read_bytes() if path.is_file() else None
            os.replace(part, path)
    except BaseException:
        for path, part in parts.items():
            if path in old and not part.exists():
                _put_back(path, old[path])
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise


def as_json(document: Any) -> bytes:
    """A document as JSON that a person can read, in UTF-8, with a line break at its end.

    Half of a surrogate pair, which Python's text may hold and UTF-8 may not, stays as its escape.

    >>> as_json({"σ": 1})
    b'{\\n "\\xcf\\x83": 1\\n}\\n'

    Args:
      document: anything that `json.dumps` takes.

    Returns: the content of a file.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _new_name(path: Path) -> Path:
    # A name that nobody can guess: in a shared folder a link of that name could lie in wait.
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")


def _fill(part: Path, content: Content) -> None:
    with part.open("xb") as file:  # x: the file must be new
        if callable(content):
            content(file)
        else:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _put_back(path: Path, content: bytes | None) -> None:
    with suppress(OSError):
        if content is None:
            path.unlink()
        else:
            write(path, content)
