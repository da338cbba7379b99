"""The wall between the grader and a student's code.

On Linux a submission runs in bubblewrap: no network, no other process, no file but Python's, its
packages' and the library's, all read-only, and a small temporary folder that dies with it. The
answers, the masters, the other submissions and the seed are not there to be read. What it may use
of processor, memory, files and processes is limited; what comes back is checked as `wire` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import diffusion_course
from diffusion_course.grading import wire
from diffusion_course.grading.exercise import Arguments, Failure, Result

_PACKAGE = Path(diffusion_course.__file__).resolve().parent
_SECRETS = _PACKAGE / "grading" / "answers"
_START_SECONDS = 120  # for Python and JAX to start, on a machine that is very busy
_GRACE_SECONDS = 5  # for the program in the sandbox to end a child that is late
_LOOK_SECONDS = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

Outcomes = list[list[Result | Failure]]


@dataclass(frozen=True)
class Limits:
    """What one exercise may use.

    Attributes:
      seconds: of wall time, and of processor time of one process.
      memory: bytes of address space of one process, and of memory of all together.
      file: bytes of one file, and of all files together.
      processes: at once.
    """

    seconds: int = 60
    memory: int = 6 << 30
    file: int = 64 << 20
    processes: int = 64

    def of_a_process(self) -> dict[str, int]:
        """The names and values of the operating system's own limits."""
        limits = {"AS": self.memory, "CPU": self.seconds + 1, "FSIZE": self.file, "CORE": 0}
        # Open files can hold memory that belongs to no process, such as what waits in a socket.
        return limits | {"NPROC": self.threads, "NOFILE": 256}

    @property
    def threads(self) -> int:
        """At once, of all processes together: JAX alone has dozens."""
        return 8 * self.processes


@dataclass(frozen=True)
class Job:
    """One exercise of one submission.

    Attributes:
      job: its name, unique among the jobs of a call.
      function: that the cells define.
      cells: source and whether it is the answer's, of the cells to run.
      all_cells: of every cell, for an answer that needs more of them.
      cases: the inputs of every part.
      terms: what the answer may not use and how it is called, from `Exercise.terms`.
    """

    job: str
    function: str
    cells: list[dict]
    all_cells: list[dict]
    cases: Sequence[Sequence[Arguments]]
    terms: dict = field(default_factory=lambda: {"others": {}, "library": [], "parameters": []})

    def message(self, limits: Limits, alone: bool) -> dict:
        """The job as the program in the sandbox reads it."""
        cases = [[[wire.pack(value) for value in case] for case in part] for part in self.cases]
        settings = {"timeout": limits.seconds, "limits": limits.of_a_process()}
        settings |= {"max_bytes": wire.MAX_BYTES, "alone": alone}
        return asdict(self) | {"cases": cases} | settings

    def fails(self, status: str, message: str) -> Outcomes:
        """The outcomes if there is no answer at all."""
        return [[Failure(status, message)] * len(part) for part in self.cases]


class NoSandbox(RuntimeError):
    """Submissions cannot be walled in here; the text says why, and what helps."""


def require() -> None:
    """Raises: NoSandbox unless bubblewrap works on this machine."""
    if not sys.platform.startswith("linux"):
        raise NoSandbox(f"bubblewrap needs Linux, and this is {sys.platform}")
    if shutil.which("bwrap") is None:
        raise NoSandbox("bubblewrap is not installed (Debian and Ubuntu: apt install bubblewrap)")
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run([*_walls(Limits()), "true"], stdout=errors, stderr=errors)
        if done.returncode:
            errors.seek(0)
            reason = errors.read(300).decode(errors="replace").strip()
            raise NoSandbox(f"bubblewrap does not work here: {reason}")


def run(jobs: Sequence[Job], limits: Limits, walled: bool = True) -> dict[str, Outcomes]:
    """What every job's function returns: job -> outcomes of its parts' cases.

    All jobs share one sandbox. Where one of them breaks it, it is repeated alone, and so are those
    behind it: what one exercise does costs that exercise.

    Args:
      jobs: of one submission.
      limits: for each of them.
      walled: False runs them as ordinary processes, with limits only.
    """
    found = _together(jobs, limits, walled)
    for job in jobs:
        if job.job not in found:
            found |= _together([job], limits, walled)
        if job.job not in found:
            text = "your code ended the process that runs it, or used too much memory or processes"
            found[job.job] = job.fails("stopped", text)
    return found


def _together(jobs: Sequence[Job], limits: Limits, walled: bool) -> dict[str, Outcomes]:
    """The outcomes of the jobs that came to an end in one sandbox."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "diffusion_course.grading.student", str(theirs)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            (_walls(limits) if walled else []) + command,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[theirs], env=_environment(folder), cwd=folder, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        lines = [json.dumps(job.message(limits, alone=walled)) for job in jobs]
        # In a thread: a program that reads nothing must not stop the grader.
        feeder = threading.Thread(target=_feed, args=(process.stdin, lines), daemon=True)
        feeder.start()
        try:
            return _collect(process.pid, ours, {job.job: job for job in jobs}, limits)
        finally:
            _kill(process)
            os.close(ours)
            feeder.join()


def _feed(pipe, lines: list[str]) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(("\n".join(lines) + "\n").encode())


def _kill(process: subprocess.Popen) -> None:
    """Ends the sandbox: bubblewrap's death is that of every process inside."""
    members = _members(process.pid)
    for pid in [process.pid, *members]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 9)
    process.wait()


def _collect(root: int, pipe: int, jobs: dict[str, Job], limits: Limits) -> dict[str, Outcomes]:
    """Reads what the sandbox says until it is done, late, too large, or silent for good."""
    found: dict[str, Outcomes] = {}
    rest, deadline, next_look = b"", time.monotonic() + _START_SECONDS, 0.0
    before, known = _shared(), -1
    while len(found) < len(jobs):
        ready, _, _ = select.select([pipe], [], [], _LOOK_SECONDS)
        now = time.monotonic()
        if now > deadline:
            break
        if now > next_look:
            next_look = now + _LOOK_SECONDS
            if _too_much(root, limits, before):
                break
        if not ready:
            continue
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > 2 * wire.MAX_BYTES:
            break
        for line in lines:
            _take(line, jobs, found, limits)
        # The first line says that Python has started; from then on only outcomes earn time, or a
        # flood of other lines could go on for ever.
        if lines and len(found) > known:
            known, deadline = len(found), time.monotonic() + limits.seconds + _GRACE_SECONDS
    return found


def _take(line: bytes, jobs: dict[str, Job], found: dict, limits: Limits) -> None:
    """Takes note of one line; the first outcome of a job counts, and nonsense does not."""
    try:
        message = wire.decode(line)
    except wire.Malformed:
        return
    if not isinstance(message, dict) or not isinstance(message.get("job"), str):
        return
    job = jobs.get(message["job"])
    if job is not None and job.job not in found and "outcome" in message:
        found[job.job] = _outcomes(message["outcome"], job, limits)


def _outcomes(message, job: Job, limits: Limits) -> Outcomes:
    if isinstance(message, dict) and message.get("stopped") == "time":
        return job.fails("timeout", f"your code took longer than {limits.seconds} s")
    if isinstance(message, dict) and "stopped" in message:
        return job.fails("stopped", "your code returned too much")
    if isinstance(message, dict) and "died" in message:
        return job.fails("stopped", f"your code ended the process ({str(message['died'])[:40]})")
    sizes = [len(part) for part in job.cases]
    try:
        if not isinstance(message, list) or [len(part) for part in message] != sizes:
            raise wire.Malformed("an outcome must have one entry for every input")
        return [[wire.unpack_outcome(entry) for entry in part] for part in message]
    except (wire.Malformed, TypeError) as error:
        return job.fails("stopped", f"your code interfered with its own grading: {error}")


def _too_much(root: int, limits: Limits, before: int) -> bool:
    """Whether the processes below this one are too many, or hold too much memory."""
    members = _members(root)
    pages = threads = 0
    for pid in members:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = _stat(pid)
            threads, pages = threads + int(fields[17]), pages + int(fields[21])
    # The system counts no threads for root, and shared memory for nobody in particular.
    return (
        len(members) > limits.processes
        or threads > limits.threads
        or pages * _PAGE > limits.memory
        or _shared() - before > limits.memory
    )


def _stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on."""
    # pid (name) state parent …; a name may hold spaces and brackets.
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()


def _shared() -> int:
    """Bytes that the whole machine holds in shared memory and in files that are memory."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("\nShmem:")[2].split()[0]) << 10
    return 0


def _members(root: int) -> list[int]:
    """Every process below this one; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    pid = int(entry.name)
                    children.setdefault(int(_stat(pid)[1]), []).append(pid)
    below, todo = [], [root]
    while todo:
        found = children.get(todo.pop(), [])
        below += found
        todo += found
    return below


def _environment(folder: str) -> dict[str, str]:
    """All that a submission's process is told: nothing of the user's own environment."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONPATH": os.pathsep.join(_import_paths()),
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


def _import_paths() -> list[str]:
    """Where packages lie, the course's own first; no folder that Python was merely started in."""
    installed = tuple({sys.prefix, sys.base_prefix, "/usr"})
    paths = [p for p in sys.path if Path(p).is_dir() and p.startswith(installed)]
    return [str(_PACKAGE.parent), *paths]


def _walls(limits: Limits) -> list[str]:
    """bubblewrap's command line, up to the command that runs inside."""
    walls = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    walls += ["--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev"]
    walls += ["--size", str(limits.file), "--tmpfs", "/tmp", "--size", "1048576"]
    walls += ["--tmpfs", "/dev/shm"]
    for path in _readable():
        walls += ["--ro-bind", str(path), str(path)]
    for name in ("/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(name):
            walls += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            walls += ["--ro-bind", name, name]
    # For root, who owns them, the kernel's settings could be written even from in here.
    if os.path.isdir("/proc/sys"):
        walls += ["--ro-bind", "/proc/sys", "/proc/sys"]
    # Over what was shown above: the oracles and mistakes of every exercise.
    for path in _hidden():
        walls += ["--tmpfs", str(path), "--remount-ro", str(path)]
    # Both are memory without a limit: nothing can be written there.
    walls += ["--remount-ro", "/dev", "--remount-ro", "/"]
    walls += ["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "TMPDIR", "/tmp"]
    return [*walls, "--"]


def _readable() -> list[Path]:
    """What a submission may read: Python, its packages, the library; not the course's folder."""
    wanted = [Path(p) for p in ("/usr", sys.prefix, sys.base_prefix, "/etc/ld.so.cache")]
    # The package and not the folder it lies in, which may be the course's.
    wanted += [*map(Path, _import_paths()[1:]), _PACKAGE]
    return [path for path in dict.fromkeys(wanted) if path.exists()]


def _hidden() -> list[Path]:
    """The answers' folder, by every name that `_readable` gives it (a link may lead there)."""
    return [
        path / _SECRETS.relative_to(path.resolve())
        for path in _readable()
        if _SECRETS.is_relative_to(path.resolve())
    ]
