"""What a submission can see: bubblewrap's command line, and whether it works on this machine.

Shown are Python, its packages, the library and the system's own libraries, all read-only. Below
what is shown, the whole tree is searched for what must not be read: right answers in any copy of
the course, masters, tests, notebooks, results of grading.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import diffusion_course
from diffusion_course.grading import seccomp

PACKAGE = Path(diffusion_course.__file__).resolve().parent
_LIBRARIES = ("bin", "lib", "lib32", "lib64")
# Wherever these lie, packages lie.
_NEEDED = ("jax", "jaxlib", "numpy", "scipy", "flax", "matplotlib", "IPython")
_MINUTES = 5  # for one start of Python and JAX, on a machine that is very busy


class NoSandbox(RuntimeError):
    """Submissions cannot be walled in here; the text says why, and what helps."""


class CannotGrade(RuntimeError):
    """The program that runs submissions does not start here; the text says why."""


def require(program: Sequence[str], memory: int) -> list[str]:
    """Checks that bubblewrap works here, and that a program starts inside.

    Args:
      program: a command that ends by itself, with exit code 0, if all it needs can be seen.
      memory: bytes that its temporary files may take.

    Returns: what the walls lack on this machine, for people to read.
    Raises: NoSandbox, CannotGrade.
    """
    if not sys.platform.startswith("linux"):
        raise NoSandbox(f"bubblewrap needs Linux, and this is {sys.platform}")
    if shutil.which("bwrap") is None:
        raise NoSandbox("bubblewrap is not installed (Debian and Ubuntu: apt install bubblewrap)")
    with _opened((), memory) as (walls, files):
        if said := _try(walls, ["true"], files):
            raise NoSandbox(f"bubblewrap does not work here: {said}")
    with opened(memory) as (walls, files):
        said = _try(walls, program, files)
    if said:
        raise CannotGrade(f"Python and its packages do not start in the sandbox: {said}")
    return [f"{_EXTRAS[name]} ({name})" for name in _EXTRAS if name not in _extras()]


def require_unwalled(program: Sequence[str]) -> None:
    """Raises: CannotGrade unless the program starts as an ordinary process."""
    if said := _try([], program):
        raise CannotGrade(f"Python and its packages do not start: {said}")


def _try(walls: Sequence[str], program: Sequence[str], files: Sequence[int] = ()) -> str:
    """Why a program fails, empty if it does not: the last line of what it said."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*walls, *program], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env=environment(folder), cwd=folder, pass_fds=files, timeout=60 * _MINUTES,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"nothing happened in {_MINUTES} minutes"
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    return (said[-1][:300] if said else f"exit code {done.returncode}") if done.returncode else ""


# Options that not every machine has -> what is missing without them.
_EXTRAS = {
    "--disable-userns": "programs in the sandbox can make sandboxes of their own",
    "--seccomp": "programs in the sandbox can use the keys of your session",
}


@cache
def _extras() -> tuple[str, ...]:
    """The options of `_EXTRAS` that work here: all at once where that is possible."""
    works: tuple[str, ...] = ()
    for name in _EXTRAS:
        if name == "--seccomp" and not seccomp.program():
            continue
        with _opened((*works, name), 1 << 20) as (walls, files):
            if not _try(walls, ["true"], files):
                works = (*works, name)
    return works


@contextlib.contextmanager
def opened(memory: int, hide: Iterable[Path] = ()) -> Iterator[tuple[list[str], list[int]]]:
    """The walls around one program.

    Args:
      memory: bytes that its temporary files may take.
      hide: files below what is shown that it may not read, besides those that none may.

    Yields: bubblewrap's command line, up to the program, and the open files that it must be given.
    """
    with _opened(_extras(), memory, hide) as walls:
        yield walls


@contextlib.contextmanager
def _opened(
    extras: tuple[str, ...], memory: int, hide: Iterable[Path] = ()
) -> Iterator[tuple[list[str], list[int]]]:
    options, files = _walls(extras, memory, hide), []
    with contextlib.ExitStack() as around:
        if "--seccomp" in extras:
            files.append(_holding(seccomp.program(), around))
            options += ["--seccomp", str(files[-1])]
        # From a file: a command line can be read inside, with the names of all that is hidden.
        files.append(_holding("\0".join(options).encode(errors="surrogateescape"), around))
        yield ["bwrap", "--args", str(files[-1]), "--"], files


def _holding(content: bytes, around: contextlib.ExitStack) -> int:
    """An open file of memory with this content, ready to be read."""
    file = os.memfd_create("walls")
    around.callback(os.close, file)
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _walls(extras: tuple[str, ...], memory: int, hide: Iterable[Path]) -> list[str]:
    """bubblewrap's options."""
    walls = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if "--disable-userns" in extras:
        walls += ["--unshare-user", "--disable-userns"]
    walls += ["--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev"]
    walls += ["--size", str(memory), "--tmpfs", "/tmp", "--size", "1048576"]
    walls += ["--tmpfs", "/dev/shm"]
    for path in _list_of_fonts():
        walls += ["--ro-bind", str(path), f"/tmp/.cache/matplotlib/{path.name}"]
    for path in shown():
        walls += ["--ro-bind", str(path), str(path)]
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(name):
            walls += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            walls += ["--ro-bind", name, name]
    # For root, who owns them, the kernel's settings could be written even from in here.
    if os.path.isdir("/proc/sys"):
        walls += ["--ro-bind", "/proc/sys", "/proc/sys"]
    # Over what was shown above.
    folders, files = hidden()
    files += hide
    for path in folders:
        walls += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for path in files:
        walls += ["--ro-bind", "/dev/null", str(path)]
    # Both are memory without a limit: nothing can be written there.
    walls += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*walls, "--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "TMPDIR", "/tmp"]


def environment(folder: str) -> dict[str, str]:
    """All that a submission's process is told: nothing of the user's own environment."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONPATH": os.pathsep.join(import_paths()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "agg",
        "JAX_PLATFORMS": "cpu",
        "DIFFUSION_COURSE_COMPILE_CACHE": "0",
        # One core each: several submissions are graded at once.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


@cache
def _list_of_fonts() -> list[Path]:
    """Matplotlib's list of this machine's fonts: to make it takes longer than its import."""
    import matplotlib
    import matplotlib.font_manager  # makes it

    return sorted(Path(matplotlib.get_cachedir()).glob("fontlist-v*.json"))


# --------------------------------------------------------------------------- what is shown


def shown() -> list[Path]:
    """What a submission may read, each by the name that programs use, none below another."""
    wanted = [*_of_the_system(), *_of_python(), *map(Path, import_paths()[1:])]
    # The package and not the folder it lies in, which may be the course's.
    wanted = [path for path in [*wanted, PACKAGE] if path.exists()]
    return [
        path
        for path in dict.fromkeys(wanted)
        if not any(_lies_in(path, other) for other in wanted if path != other)
    ]


def shows(path: Path) -> Path | None:
    """What of it a submission may read holds this path, if anything does, by any of its names."""
    real = path.resolve()
    return next((place for place in shown() if _lies_in(real, place.resolve())), None)


def _lies_in(path: Path, place: Path) -> bool:
    """Whether a path lies below a place. Not by the text's beginning: /x/env is not in /x/e."""
    return path.is_relative_to(place)


def _of_the_system() -> list[Path]:
    """Libraries and programs, but not all of /usr: a class may have its exchange folder there."""
    # Debian's libraries of linear algebra are reached through the alternatives.
    others = [Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    return [*(Path("/usr") / name for name in (*_LIBRARIES, "sbin")), *others]


def _of_python() -> list[Path]:
    """Libraries and programs of the environment, and of the Python that it was made from."""
    prefixes = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    found = [Path(prefix) for prefix in prefixes]
    # The program itself may be a link to a link, each of them below a prefix by another name.
    program = Path(sys.executable)
    for _ in range(40):
        if (program.parent.parent / "lib" / _VERSION).is_dir():
            found.append(program.parent.parent)
        if not program.is_symlink():
            break
        program = program.parent / os.readlink(program)
    found = [path for path in dict.fromkeys(found) if path != Path("/")]
    return [prefix / name for prefix in found for name in (*_LIBRARIES, "pyvenv.cfg")]


_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def import_paths() -> tuple[str, ...]:
    """Where packages lie, the course's own first; no folder that Python was merely started in."""
    places = [Path(path) for path in [*site.getsitepackages(), *_of_python(), *_of_the_system()]]
    if site.ENABLE_USER_SITE:
        places.append(Path(site.getusersitepackages()))
    for name in _NEEDED:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent.parent)
    names = {"site-packages", "dist-packages"}
    paths = [Path(path) for path in sys.path if path and Path(path).is_dir()]
    admitted = [p for p in paths if p.name in names or any(_lies_in(p, place) for place in places)]
    return (str(PACKAGE.parent), *map(str, admitted))


# --------------------------------------------------------------------------- what is hidden

_COURSE = ("solutions", "tests", "exercises", "submissions", ".git")
_ARCHIVE = re.compile(r"diffusion[-_]course.*\.(?:whl|zip|tar\.\w+)")


def hidden() -> tuple[list[Path], list[Path]]:
    """Folders and files below what is shown that no submission may read, by the names there."""
    folders, files = [], []
    for place in shown():
        below = _secrets(place.resolve())
        folders += [place / path for path in below[0]]
        files += [place / path for path in below[1]]
    return folders, files


@cache
def _secrets(place: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of folders and files, from a place. Links lead nowhere but to what is searched too."""
    folders: list[str] = []
    files: list[str] = []
    for here, inside, names in os.walk(place):
        relative = os.path.relpath(here, place)
        secret = set(_secret_folders(os.path.basename(here), inside))
        folders += [os.path.normpath(os.path.join(relative, name)) for name in secret]
        secret_files = _secret_files(names, inside)
        files += [os.path.normpath(os.path.join(relative, name)) for name in secret_files]
        # What is hidden as a whole needs no search.
        inside[:] = [name for name in inside if name not in secret]
    return tuple(sorted(folders)), tuple(sorted(files))


def _secret_folders(here: str, inside: Iterable[str]) -> Iterator[str]:
    is_course = "diffusion_course" in inside
    for name in inside:
        answers = here == "grading" and name == "answers"
        if answers or name.endswith("_feedback") or (is_course and name in _COURSE):
            yield name


def _secret_files(names: Iterable[str], inside: Iterable[str]) -> Iterator[str]:
    results = [(names, ".unfinished"), (inside, "_feedback")]
    graded = {n.removesuffix(end) for where, end in results for n in where if n.endswith(end)}
    for name in names:
        stem, _, ending = name.rpartition(".")
        secret = ending in ("ipynb", "unfinished") or _ARCHIVE.fullmatch(name)
        if secret or (ending in ("csv", "json") and stem in graded):
            yield name
