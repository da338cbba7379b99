"""Running a student's code, which nobody trusts.

On Linux a submission runs in bubblewrap: no network, no other process, no file but those that
`walls` shows, all read-only, and a small temporary folder that dies with it. The answers, the
masters, the other submissions and the seed are not there to be read. What it may use of time,
processor, memory, files and processes is limited; what comes back is checked as `wire` says.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from diffusion_course.grading import text, walls, wire
from diffusion_course.grading.exercise import Arguments, Failure, Result
from diffusion_course.grading.walls import CannotGrade, NoSandbox

START_SECONDS = 120  # for Python and JAX to start, on a machine that is very busy
_GRACE_SECONDS = 5  # for the program in the sandbox to end a child that is late
LOOK_SECONDS = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

__all__ = ["CannotGrade", "Job", "Limits", "NoSandbox", "NotStarted", "require", "run"]

Outcomes = list[list[Result | Failure]]


@dataclass(frozen=True)
class Limits:
    """What one exercise may use.

    Attributes:
      seconds: of wall time, and of processor time of one process.
      notebook: seconds of wall time that all exercises of a notebook may take together.
      memory: bytes of address space of one process, and of memory of all together.
      file: bytes of one file, and of all files together.
      processes: at once.
    """

    seconds: int = 60
    notebook: int = 240
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


class NotStarted(RuntimeError):
    """A sandbox ended before any code of the submission ran: the grader's failure."""


def require(limits: Limits, walled: bool = True) -> list[str]:
    """Checks that submissions can be run here, by the program that runs them, with no jobs.

    Args:
      limits: for each exercise.
      walled: whether they will run in the sandbox.

    Returns: what the walls lack on this machine, for people to read.
    Raises: NoSandbox; CannotGrade if the program that runs submissions does not start.
    """
    if walled:
        return walls.require(_program(1), limits.file)
    walls.require_unwalled(_program(1))
    return []


def _program(out: int, module: str = "diffusion_course.grading.student") -> list[str]:
    # -P: no folder that a submission can write is searched for modules.
    return [sys.executable, "-P", "-m", module, str(out)]


def run(jobs: Sequence[Job], limits: Limits, walled: bool = True) -> dict[str, Outcomes]:
    """What every job's function returns: job -> outcomes of its parts' cases.

    All jobs share one sandbox. Where one of them breaks it, those behind it go on in another, and
    it is repeated at the end, alone: what one exercise does costs that exercise. When the time of
    a notebook is up, what is left gets no points.

    Args:
      jobs: of one submission.
      limits: for each of them.
      walled: False runs them as ordinary processes, with limits only.

    Raises: NotStarted.
    """
    left: float = limits.notebook
    found: dict[str, Outcomes] = {}
    todo, broken = list(jobs), []
    while todo and left > 0:
        seen = _together(todo, limits, walled, left)
        left -= seen.seconds
        found |= seen.found
        todo = [job for job in todo if job.job not in found]
        broken += todo[:1]
        del todo[:1]
    while broken and left > 0:
        seen = _together(broken[:1], limits, walled, left)
        left -= seen.seconds
        if left > 0:
            job = broken.pop(0)
            said = "your code ended the process that runs it, or used too much memory or processes"
            found[job.job] = job.fails("stopped", said)
        found |= seen.found
    late = f"your notebook took longer than {limits.notebook} s in all, and has no result here"
    return {job.job: job.fails("timeout", late) for job in [*todo, *broken]} | found


def _together(jobs: Sequence[Job], limits: Limits, walled: bool, left: float) -> _Seen:
    """What one sandbox says about some jobs, which have so many seconds. Raises: NotStarted."""
    with opened("diffusion_course.grading.student", limits, walled) as (process, ours):
        lines = (json.dumps(job.message(limits, alone=walled)) for job in jobs)
        # In a thread: a program that reads nothing must not stop the grader.
        feeder = threading.Thread(target=_feed, args=(process.stdin, lines), daemon=True)
        feeder.start()
        seen = _Seen(jobs, limits)
        try:
            _collect(process.pid, ours, seen, left)
        finally:
            kill(process)
            feeder.join()
            seen.ends()
    if not seen.began:
        raise NotStarted(not_started())
    return seen


def not_started() -> str:
    """What to say if a sandbox does not start."""
    return (
        f"a sandbox did not start within {START_SECONDS} s; if the machine is very busy or "
        "short of memory, run the same command again later"
    )


@contextlib.contextmanager
def opened(
    module: str, limits: Limits, walled: bool, hide: Iterable[Path] = ()
) -> Iterator[tuple[subprocess.Popen, int]]:
    """A program of the course in a sandbox of its own; it is killed in the end.

    Args:
      module: its name; it is given the number of the file that it writes to.
      limits: of all its processes together; of one process, it sets them itself.
      walled: False runs it as an ordinary process.
      hide: files that it may not read, besides those that no submission may.

    Yields: the process, whose standard input is a pipe, and the file to read from.
    """
    with contextlib.ExitStack() as around:
        ours, theirs = os.pipe()
        around.callback(os.close, ours)
        try:
            folder = tempfile.mkdtemp()
            around.callback(_remove, folder)
            command, files = _program(theirs, module), []
            if walled:
                prefix, files = around.enter_context(walls.opened(limits.file, hide))
                command = [*prefix, *command]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs, *files], env=walls.environment(folder), cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs)
        try:
            yield process, ours
        finally:
            kill(process)


def _remove(folder: str) -> None:
    # Without walls code may have left anything there, such as folders a thousand deep.
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def _feed(pipe, lines: Iterable[str]) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:
        for line in lines:
            pipe.write(line.encode() + b"\n")


def kill(process: subprocess.Popen) -> None:
    """Ends a sandbox: bubblewrap's death is that of every process inside."""
    if process.returncode is not None:
        return
    members = _members(process.pid)
    for pid in [process.pid, *members]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 9)
    process.wait()


@dataclass
class _Seen:
    """What a sandbox has said so far.

    Attributes:
      jobs: that it was given.
      limits: of each.
      began: when it said that the first job begins; 0 before that, when no submission's code runs.
      seconds: that it took since then.
      found: the outcomes of the jobs that are done.
    """

    jobs: Sequence[Job]
    limits: Limits
    began: float = 0.0
    seconds: float = 0.0
    found: dict[str, Outcomes] = field(default_factory=dict)
    _rest: bytes = b""

    def read(self, pipe: int) -> bool:
        """Reads what is there to be read; whether there may be more."""
        piece = os.read(pipe, 1 << 16)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self.take(line)
        return bool(piece) and len(self._rest) <= 2 * wire.MAX_BYTES

    def ends(self) -> None:
        """Takes note of the time."""
        self.seconds = time.monotonic() - self.began if self.began else 0.0

    def take(self, line: bytes) -> None:
        """Takes note of a line; the first outcome of a job counts, and nonsense does not."""
        try:
            message = wire.decode(line)
        except wire.Malformed:
            return
        if not isinstance(message, dict) or not isinstance(message.get("job"), str):
            return
        self.began = self.began or time.monotonic()
        job = next((job for job in self.jobs if job.job == message["job"]), None)
        if job is not None and job.job not in self.found and "outcome" in message:
            self.found[job.job] = _outcomes(message["outcome"], job, self.limits)


def _collect(root: int, pipe: int, seen: _Seen, left: float) -> None:
    """Reads what a sandbox says until it is done, late, too large, or silent for good."""
    limits = seen.limits
    deadline, next_look = time.monotonic() + START_SECONDS, 0.0
    before, known = shared(), -1
    while len(seen.found) < len(seen.jobs):
        ready, _, _ = select.select([pipe], [], [], LOOK_SECONDS)
        now = time.monotonic()
        if now > deadline:
            break
        if now > next_look:
            next_look = now + LOOK_SECONDS
            if too_much(root, limits, before):
                break
        if ready and not seen.read(pipe):
            break
        # The first line says that Python has started; from then on only outcomes earn time, or a
        # flood of other lines could go on for ever.
        if seen.began and len(seen.found) > known:
            known = len(seen.found)
            deadline = time.monotonic() + limits.seconds + _GRACE_SECONDS
            deadline = min(deadline, seen.began + left)
    # It may have said that it begins, and at once given a reason to be ended.
    if not seen.began and select.select([pipe], [], [], 0)[0]:
        seen.read(pipe)


def _outcomes(message, job: Job, limits: Limits) -> Outcomes:
    if isinstance(message, dict) and message.get("stopped") == "time":
        return job.fails("timeout", f"your code took longer than {limits.seconds} s")
    if isinstance(message, dict) and "stopped" in message:
        return job.fails("stopped", "your code returned too much")
    if isinstance(message, dict) and isinstance(message.get("died"), str):
        died = text.line(message["died"][:40])
        return job.fails("stopped", f"your code ended the process ({died})")
    sizes = [len(part) for part in job.cases]
    try:
        if not isinstance(message, list) or [len(part) for part in message] != sizes:
            raise wire.Malformed("an outcome must have one entry for every input")
        return [[wire.unpack_outcome(entry) for entry in part] for part in message]
    except (wire.Malformed, TypeError) as error:
        return job.fails("stopped", f"your code interfered with its own grading: {error}")


def too_much(root: int, limits: Limits, before: int) -> bool:
    """Whether this process and those below are too many, hold too much memory, or are halted."""
    members = [root, *_members(root)]
    pages = threads = halted = 0
    for pid in members:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = _stat(pid)
            halted += fields[0] == "T"  # by a signal: it would never come to an end
            threads, pages = threads + int(fields[17]), pages + int(fields[21])
    # The system counts no threads for root, and shared memory for nobody in particular.
    return (
        halted > 0
        or len(members) - 1 > limits.processes
        or threads > limits.threads
        or pages * _PAGE > limits.memory
        or shared() - before > limits.memory
    )


def _stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on."""
    # pid (name) state parent …; a name may hold spaces and brackets.
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()


def shared() -> int:
    """Bytes that the whole machine holds for no process in particular.

    That is shared memory, files that are memory, and what the kernel must keep of files without
    any content, sockets and the like.
    """
    kept = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        for name in ("Shmem", "SUnreclaim"):
            kept += int(text.partition(f"\n{name}:")[2].split()[0]) << 10
    return kept


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
