"""The notes of a run of grading, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from diffusion_course.grading.row import Row

_TYPES = {"points": (int, float, type(None)), "out_of": (int, float, type(None))}


class Unusable(RuntimeError):
    """The journal's file cannot be used; the text says why, and what helps."""


class Journal:
    """Finished submissions, one JSON line each, behind a line that says how they were graded.

    It holds the seed: whoever runs the grading may read it, and no submission can. While it is
    open, no other run can open it. What cannot be read of it, wherever it was cut off, is left
    out, and graded again.

    Attributes:
      unread: how many lines cannot be read.

    Args:
      path: of the file, which may not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.unread = 0
        self._header: Any = None
        self._known: dict[str, list[Row]] = {}

    @property
    def seed(self) -> str | None:
        """The seed of the interrupted run, or None if there was none."""
        seed = self._header.get("seed") if isinstance(self._header, dict) else None
        return seed if isinstance(seed, str) else None

    def __enter__(self) -> Journal:
        """Raises: Unusable if another run has it, or it is a link or somebody else's file."""
        self._file = os.fdopen(_open_alone(self.path), "r+b")
        *lines, cut = self._file.read().split(b"\n")
        self._file.truncate(self._file.tell() - len(cut))
        self._file.seek(0, os.SEEK_END)
        self.unread = bool(cut)
        if lines:
            self._header = _json(lines[0])
        for line in lines[1:]:
            entry = _entry(line)
            if entry is None:
                self.unread += 1
            else:
                self._known |= [entry]
        if lines and self.seed is None:
            self.unread = len(lines)
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def begin(self, header: dict) -> None:
        """Keeps what was graded under this header, which is plain JSON; forgets all other."""
        if self._header != header:
            self._header, self._known = header, {}
            self._file.seek(0)
            self._file.truncate()
            self._write(header)

    def rows(self, key: str) -> list[Row] | None:
        """What was noted of a submission, if anything."""
        return self._known.get(key)

    def note(self, key: str, rows: list[Row]) -> None:
        """Notes what was found out about a submission."""
        self._known[key] = rows
        self._write({"key": key, "rows": [asdict(row) for row in rows]})

    def remove(self) -> None:
        """Deletes the file: everything is done."""
        self.path.unlink()

    def _write(self, entry: dict) -> None:
        # In ASCII: text from a submission may hold half of a character, or what ends a line.
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def _open_alone(path: Path) -> int:
    import fcntl  # not on Windows, where nobody grades but everybody may read a report

    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise Unusable(f"{path} cannot be opened ({error.strerror}): remove it") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(file)
            ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
            if not ours or about.st_nlink > 1:
                raise Unusable(f"{path} is no file of yours alone: remove it or name another --out")
            if os.path.exists(path) and os.path.samestat(about, os.lstat(path)):
                return file
        except BlockingIOError:
            os.close(file)
            raise Unusable(
                f"another run writes to {path}: wait for it, or name another --out"
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # a run that came to its end has just removed it


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _entry(line: bytes) -> tuple[str, list[Row]] | None:
    """What a line says, or None if it is no entry."""
    entry = _json(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return None
    rows = entry.get("rows")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        return None
    return entry["key"], [Row(**row) for row in rows]


def _is_row(row: Any) -> bool:
    names = [field.name for field in fields(Row)]
    if not isinstance(row, dict) or sorted(row) != sorted(names):
        return False
    right = all(isinstance(row[name], _TYPES.get(name, str)) for name in names)
    numbers = [row[name] for name in _TYPES if row[name] is not None]
    return right and not any(isinstance(n, bool) or not math.isfinite(n) for n in numbers)
