"""The course as a wheel, made from the package that is running.

A wheel of pure Python is a zip archive of the package's files and four files about them, so no
build tool and no network is needed, and it can be made where only a wheel was installed. The same
files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import diffusion_course
from diffusion_course.app import runner

DISTRIBUTION = "diffusion-course"
# The chapters are left out, which the wheel of a package index holds: a build number says so.
BUILD = "1workshop"
TAG = "py3-none-any"
# pyproject.toml packs the same: modules, weights and their cards.
SUFFIXES = (".py", ".safetensors", ".json", ".onnx")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip archive can tell


def wheel() -> tuple[str, bytes]:
    """The wheel's file name and its content.

    Raises: runner.Mistake if the course is not installed: its metadata stand in no other place.
    """
    distribution = installed()
    if distribution is None:
        raise runner.Mistake(
            "the course is not installed, so its wheel cannot be made; "
            'run pip install -e ".[lab]" in its folder (or make lab)'
        )
    name = f"{DISTRIBUTION.replace('-', '_')}-{distribution.version}"
    info = f"{name}.dist-info"
    files = _package() | {f"{info}/{key}": text for key, text in _about(distribution).items()}
    record = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = "".join(f"{row}\n" for row in record).encode()
    return f"{name}-{BUILD}-{TAG}.whl", archive(files)


def installed() -> metadata.Distribution | None:
    """What an installer has written about the course; None if none did.

    A build leaves diffusion_course.egg-info in the source tree, which Python finds first where that
    is the working folder. It holds neither the licence nor what an installer reads.
    """
    found = metadata.distributions(name=DISTRIBUTION)
    return next((one for one in found if one.read_text("METADATA")), None)


def _package() -> dict[str, bytes]:
    """The package's files, by their path in the wheel."""
    root = Path(diffusion_course.__file__).parent
    return {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
    }


def _about(distribution: metadata.Distribution) -> dict[str, bytes]:
    """What an installer reads: requirements, commands, the licence, the kind of wheel."""
    kind = f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION}\nRoot-Is-Purelib: true\n"
    about = {"WHEEL": f"{kind}Tag: {TAG}\nBuild: {BUILD}\n".encode()}
    for name in ("METADATA", "entry_points.txt"):
        about[name] = (distribution.read_text(name) or "").encode()
    for path in distribution.files or ():  # beside METADATA, or in licenses/ in newer wheels
        if path.name == "LICENSE" and any(part.endswith(".dist-info") for part in path.parts):
            about["/".join(path.parts[1:])] = path.read_binary()
    return about


def _digest(content: bytes) -> str:
    """SHA-256 as a wheel's RECORD spells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def archive(files: Mapping[str, bytes]) -> bytes:
    """A zip archive whose bytes depend on the files' names, order and content alone.

    Args:
      files: path in the archive -> content.
    """
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as target:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, EARLIEST)
            entry.create_system = 3  # Unix, also where this runs on Windows
            entry.external_attr = 0o100644 << 16
            small = path.endswith(".whl")  # is packed already
            entry.compress_type = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
            target.writestr(entry, content, compresslevel=None if small else 9)
    return memory.getvalue()
