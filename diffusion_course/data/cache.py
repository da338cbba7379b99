"""Decoded data sets on disk: reading an array takes a fraction of a second, decoding many."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_course import checks, files
from diffusion_course.data.decode import Decoded
from diffusion_course.paths import cache_dir

FORMAT = 2  # counted up when the content of the files, or what may be in them, changes


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
            names = tuple(map(str, file["label_names"]))
            found = Decoded(file["images"], file["labels"], names)
        _check(found)
        return found
    except Exception as error:  # a damaged archive fails in a dozen ways, with one remedy
        warnings.warn(f"{path} is damaged ({error}); decoding again", stacklevel=2)
        return None


def _check(found: Decoded) -> None:
    """ValueError for arrays that are no decoded images; a label 3.7 must not become 3."""
    images, labels, names = found
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, H, W, C], got {images.dtype} {images.shape}")
    checks.labels("labels", labels, images.shape[:1], len(names) - 1)


def write(path: Path, decoded: Decoded) -> None:
    """Keep the arrays for next time; a disk that is full or read-only costs a warning only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda file: np.savez(file, **decoded._asdict()))
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); going on without", stacklevel=2)
