"""Does the course run on this machine? The checks behind ``diffusion-course doctor``.

Nothing here is needed to start: this file must work where JAX, or anything else, is missing.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from diffusion_course import paths

OLDEST_PYTHON = (3, 11)
DISTRIBUTION = "diffusion-course"
REINSTALL = 'pip install -e ".[lab]" in the course\'s folder (or make lab)'


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
      name: what was looked at.
      status: ``"ok"``, ``"note"`` (the course runs all the same) or ``"PROBLEM"``.
      found: what is there.
      remedy: what to do about it; empty if nothing.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks = [python(), *dependencies(), devices(), profile(), memory(), compile_cache()]
    return [*checks, bundled_data(), local_data(), hub()]


def table(checks: list[Check]) -> str:
    """The checks as text, one a line, each remedy below its check; a verdict at the end."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8} {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<{width + 9}}  → {check.remedy}")
    problems = [check for check in checks if check.status == "PROBLEM"]
    if problems:
        names = ", ".join(check.name for check in problems)
        lines.append(f"\nThe course would not run here: see {names} above.")
    else:
        lines.append("\nThe course runs here.")
    return "\n".join(lines)


def python() -> Check:
    """Is Python new enough?"""
    found = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info[:2]) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        remedy = f"install Python {oldest} or newer, then: make lab PYTHON=python{oldest}"
        return Check("Python", "PROBLEM", f"{found}, needs {oldest}", remedy)
    return Check("Python", "ok", found)


def dependencies() -> Iterator[Check]:
    """Every declared dependency: is it there, and within its declared bounds?

    A version that differs from the tested one (constraints.txt, where there is one) is ok.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Check("packaging", "PROBLEM", "not installed", REINSTALL)
        return
    known = tested()
    for requirement in map(Requirement, declared()):
        # "lab" too: without JupyterLab and nbclient the library works, but not the course.
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": e}) for e in ("", "lab")):
            continue
        name, bounds = requirement.name, str(requirement.specifier)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "PROBLEM", f"not installed, needs {bounds}", REINSTALL)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            remedy = f'pip install "{name}{bounds}"'
            yield Check(name, "PROBLEM", f"{found}, needs {bounds}", remedy)
            continue
        with_tested = known.get(name.lower())
        if with_tested in (None, found):
            same = ", the tested version" if with_tested else ""
            yield Check(name, "ok", f"{found} ({bounds}{same})")
        else:
            yield Check(name, "ok", f"{found} ({bounds}, tested with {with_tested})")


def declared() -> list[str]:
    """The course's requirements: those of the installed package, else of the source tree."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        project = paths.source_tree() / "pyproject.toml"
        if not project.exists():
            return []
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return declared["dependencies"] + declared["optional-dependencies"]["lab"]


def tested() -> dict[str, str]:
    """name -> version from constraints.txt, where the course's folder is at hand."""
    try:
        text = (paths.source_tree() / "constraints.txt").read_text(encoding="utf-8")
    except OSError:
        return {}
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


def devices() -> Check:
    """Can JAX start, and on what?"""
    try:
        jax = importlib.import_module("jax")
        found = jax.devices()
    except Exception as error:  # a broken JAX fails in many ways; each is this line
        detail = f"{type(error).__name__}: {_first_line(error)}"
        return Check("devices", "PROBLEM", f"JAX does not start: {detail}", REINSTALL)
    kinds = sorted({device.device_kind for device in found})
    return Check("devices", "ok", f"{len(found)} × {', '.join(kinds)} ({jax.default_backend()})")


def profile() -> Check:
    """Does DIFFUSION_COURSE_PROFILE name a profile, if it is set?"""
    from diffusion_course.notebook.setup import choose_profile

    try:
        chosen = choose_profile(None)
    except ValueError as error:
        remedy = "set DIFFUSION_COURSE_PROFILE to cpu or accelerator, or unset it"
        return Check("profile", "PROBLEM", str(error), remedy)
    return Check("profile", "ok", chosen.name if chosen else "chosen by the device")


def memory() -> Check:
    """Main memory; the course needs about 2 GB of it."""
    try:
        import psutil

        now = psutil.virtual_memory()
        total, available = now.total, now.available
    except ImportError:
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            total = page * os.sysconf("SC_PHYS_PAGES")
            available = page * os.sysconf("SC_AVPHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # not on this system
            return Check("memory", "note", "unknown")
    found = f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB of it available"
    if available < 2 * 2**30:
        remedy = "close other programs if a notebook's kernel dies"
        return Check("memory", "note", found, remedy)
    return Check("memory", "ok", found)


def compile_cache() -> Check:
    """Can compiled programs be kept? The course runs without; each start then compiles again."""
    from diffusion_course.notebook import setup

    folder = setup.compile_cache_folder()
    if folder is None:
        return Check("compile cache", "note", "off (DIFFUSION_COURSE_COMPILE_CACHE)")
    if not setup.is_writable(folder):
        remedy = "set DIFFUSION_COURSE_CACHE to a folder that can be written"
        return Check("compile cache", "note", f"{folder} cannot be written", remedy)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Check("compile cache", "ok", f"{folder} ({size / 2**20:.0f} MiB)")


def bundled_data() -> Check:
    """Does the data that the chapters start with load?"""
    try:
        from diffusion_course import data

        digits = data.load("digits")
    except Exception as error:  # libraries that are missing or broken; they are listed above
        detail = f"digits does not load ({type(error).__name__}: {_first_line(error)})"
        return Check("bundled data", "PROBLEM", detail, REINSTALL)
    return Check("bundled data", "ok", f"digits, {len(digits)} training images")


def local_data() -> Check:
    """Is there a folder with local copies of the larger data sets?"""
    folder = os.environ.get("DIFFUSION_COURSE_DATA")
    if not folder:
        return Check("local data", "ok", "none named (DIFFUSION_COURSE_DATA is not set)")
    where = Path(folder).expanduser()
    if not where.is_dir():
        remedy = "unset DIFFUSION_COURSE_DATA, or name the folder that holds mnist/, cifar10/, ..."
        return Check("local data", "note", f"{folder} is not a folder", remedy)
    names = sorted(path.name for path in where.iterdir() if path.is_dir())
    return Check("local data", "ok", f"{folder}: {', '.join(names) or 'empty'}")


def hub(timeout: float = 5.0) -> Check:
    """Can the hub be reached? Bundled and local data are enough without it."""
    try:
        from diffusion_course import data

        if data.hub_reachable(timeout):
            return Check("hub", "ok", "reachable")
        why = "not reachable"
    except Exception as error:  # data needs libraries that may be missing; they are listed above
        why = f"not checked ({type(error).__name__}: {_first_line(error)})"
    return Check("hub", "note", why, "the bundled data are enough; larger sets need a local copy")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
