"""Decoded data sets on disk: reading an array takes a fraction of a second, decoding many."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_course.data.decode import Decoded
from diffusion_course.paths import cache_dir

FORMAT = 1  # counted up when the content of the files changes its meaning


def location(name: str, split: str, source: str | Sequence[Path]) -> Path:
    """Where the decoded form of a source is kept.

    Args:
      source: the hub's name of the data set, or the files of a local copy. A file whose name, size
        or time of change differs is another source, so a changed copy is decoded again.
    """
    if not isinstance(source, str):
        source = "\n".join(map(_fingerprint, source))
    digest = hashlib.sha256(f"{FORMAT}\n{source}".encode()).hexdigest()[:16]
    return cache_dir() / "data" / f"{name}-{split}-{digest}.npz"


def _fingerprint(file: Path) -> str:
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


def read(path: Path) -> Decoded | None:
    """The arrays, or None if there is no such file or it is damaged (then with a warning)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Decoded(file["images"], file["labels"], tuple(map(str, file["label_names"])))
    except Exception as error:  # a damaged archive fails in a dozen ways, with one remedy
        warnings.warn(f"{path} is damaged ({error}); decoding again", stacklevel=2)
        return None


def write(path: Path, decoded: Decoded) -> None:
    """Keep the arrays for next time; a disk that is full or read-only costs a warning only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, decoded)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); going on without", stacklevel=2)


def _write_whole(path: Path, decoded: Decoded) -> None:
    """Write beside the file, then rename: no reader ever sees half a file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez(file, **decoded._asdict())
            file.close()
            os.replace(file.name, path)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise
