"""The inside of the sandbox: runs a student's cells and calls the function they define.

    python -m diffusion_course.grading.student FD

It reads jobs, one JSON line each, from its standard input and writes one line of outcomes for each
to the file descriptor FD. It imports JAX once; every job then runs in a child process of its own,
so that what one exercise does to the process, another never sees. This program decides nothing:
the grader outside judges what comes back, and ends it if it is late.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


def main() -> None:
    # First: everything heavy, once. JAX must not start before the children do.
    gc.disable()  # to look for garbage among what is imported takes a tenth of the time, in vain
    import jax.numpy
    import jax.scipy.stats  # noqa: F401

    from diffusion_course import process  # noqa: F401
    from diffusion_course.grading import alone, calling, check, kernel, small, wire  # noqa: F401
    from diffusion_course.notebook import setup  # noqa: F401

    small.install()  # nearly all the time of an answer went to compiling its operations
    if sys.platform == "linux":
        import ctypes

        # PR_SET_DUMPABLE: no child can look into this process or use its open files.
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    warnings.filterwarnings("ignore", message=r"os\.fork")  # safe: JAX has no threads yet
    out = int(sys.argv[1])
    os.set_inheritable(out, False)
    jobs = [json.loads(line) for line in sys.stdin.buffer]
    _import_once(jobs)
    gc.freeze()  # what is there stays: no child need ever look through it again
    gc.enable()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing is left for a child to read
    for job in jobs:
        name = json.dumps(job["job"]).encode()
        _write(out, b'{"job": %b, "begins": true}\n' % name)
        _write(out, b'{"job": %b, "outcome": %b}\n' % (name, _in_child(job, out)))
        _tidy()


# What cells may import that takes half a second or more -> a word that they say it with.
_SLOW = {
    "matplotlib.pyplot": r"matplotlib|pyplot|plots?",
    "scipy.special": r"(?<!jax\.)scipy",
    "scipy.optimize": r"optimize",
    "scipy.stats": r"(?<!jax\.scipy\.)stats",
    "flax.nnx": r"flax",
    "optax": r"optax",
}


def _import_once(jobs: list[dict]) -> None:
    """Imports what some cell speaks of, so that it costs no child any time; nothing of theirs."""
    code = "\n".join({cell["source"] for job in jobs for cell in job["all_cells"]})
    for name, word in _SLOW.items():
        if re.search(rf"\b(?:{word})\b", code):
            with contextlib.suppress(Exception):  # it is said where a cell imports it
                importlib.import_module(name)


def _in_child(job: dict, out: int) -> bytes:
    """The outcome of a job as JSON, from a child that may do anything."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(job, out, here, there)
    os.close(there)
    content, why = _read(here, job["timeout"], job["max_bytes"])
    os.close(here)
    _end(child, job["alone"])
    _, status = os.waitpid(child, 0)
    if why:
        return json.dumps({"stopped": why}).encode()
    line, end, _ = content.partition(b"\n")
    if not end:
        text = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an exit of its own"
        return json.dumps({"died": text}).encode()
    return line


def _be_the_child(job: dict, out: int, here: int, there: int) -> None:
    try:
        os.setsid()
        os.close(out)
        os.close(here)
        _move()
        _limit(job["limits"])
        answer = json.dumps(_run(job)).encode()
        _write(there, answer + b"\n")
    finally:
        os._exit(0)  # no exit handlers: they are the student's by now


def _move() -> None:
    """To a fresh folder: nothing that another exercise has left there is found."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.environ |= {"HOME": folder, "TMPDIR": folder}
    tempfile.tempdir = None


def _tidy() -> None:
    """Removes what a job has left, whatever it is and whoever may write there."""
    todo, folders = [os.environ["TMPDIR"]], []
    while todo:
        folders.append(todo.pop())
        entries = []
        with contextlib.suppress(OSError):
            os.chmod(folders[-1], 0o700)
            entries = list(os.scandir(folders[-1]))
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    os.unlink(entry)
    for folder in folders[:0:-1]:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _read(pipe: int, timeout: float, most: int) -> tuple[bytes, str]:
    """What arrives until the end of a line, and why reading stopped before it."""
    content, deadline = bytearray(), time.monotonic() + timeout
    while not content.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return b"", "time"
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        content += piece
        if len(content) > most:
            return b"", "size"
    return bytes(content), ""


def _write(pipe: int, content: bytes) -> None:
    while content:
        content = content[os.write(pipe, content) :]


def _end(child: int, alone: bool) -> None:
    """Ends the child and, in a process space of its own, everything that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    if alone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # reaches every process here but this one


class _Late(BaseException):
    """The time for running cells is over."""


def _run(job: dict) -> Any:
    """Runs the cells and calls the function on every input of every part."""
    from diffusion_course.grading import wire

    begin = time.monotonic()
    # As in a notebook, modules that lie beside it are found. Last, so that none hides a package.
    sys.path.append(os.getcwd())
    cases = [[tuple(map(wire.unpack, case)) for case in part] for part in job["cases"]]
    # First what every answer needs and the answer itself: the other cells may be slow, or wrong,
    # and are none of this exercise's business. If something is missing there: all cells down to
    # the exercise's check, as in a notebook that runs from the top. If a name is missing even
    # then: those below as well, which a student may have run before.
    best = _attempt(job["cells"], cases, job, job["timeout"] / 2)
    above = [cell for cell in job["all_cells"] if not cell.get("after")]
    for cells in (above, job["all_cells"]):
        left = 0.7 * job["timeout"] - (time.monotonic() - begin)
        if not best.failed or (cells is not above and not best.lacks_names) or left <= 0:
            break
        try:
            found = _attempt(cells, cases, job, left, give_up=True)
        except _Late:
            break
        if found.failed < best.failed or best.lacks_names:
            best = found
    return [[wire.pack_outcome(outcome) for outcome in part] for part in best.outcomes]


@contextlib.contextmanager
def _limited(seconds: float, may_end: Callable[[], bool]) -> Iterator[None]:
    """After so many seconds ends what runs inside, as soon as it may. Raises: _Late."""

    def late(*_):
        if may_end():
            raise _Late

    signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True)
class _Attempt:
    """What came of running some cells: the outcomes of every part's cases.

    ``final`` says that other cells would change nothing.
    """

    outcomes: list[list[Any]]
    final: bool = False

    @property
    def failed(self) -> int:
        """How many calls failed so that other cells might help."""
        return 0 if self.final else sum(map(_lacks_something, self._failures))

    @property
    def lacks_names(self) -> bool:
        return any("raised NameError" in m or m.startswith(_NOWHERE) for _, m in self._failures)

    @property
    def _failures(self) -> list[tuple[str, str]]:
        every = [outcome for part in self.outcomes for outcome in part]
        return [(o.status, o.message) for o in every if hasattr(o, "status")]


_NOWHERE = "your cells define no function "
_LACKING = ("Name", "Attribute", "Key", "Type", "Import", "ModuleNotFound")


def _lacks_something(failure: tuple[str, str]) -> bool:
    """Whether another cell may define, import or fill what was missing."""
    starts = (_NOWHERE, *(f"your code raised {kind}Error" for kind in _LACKING))
    return failure[0] == "error" and failure[1].startswith(starts)


def _attempt(
    cells: list[dict], cases: list[list[tuple]], job: dict, seconds: float, give_up: bool = False
) -> _Attempt:
    """Runs these cells, and calls the function that they define.

    Args:
      cells: to run; when the seconds are over and the function is there, the others are left out.
      cases: the inputs of every part.
      job: what the grader wants.
      seconds: for the cells.
      give_up: raises _Late if the function is not even there by then.
    """
    from diffusion_course.grading import alone, calling
    from diffusion_course.grading.exercise import Failure

    def everywhere(failure: Failure, final: bool = False) -> _Attempt:
        return _Attempt([[failure] * len(part) for part in cases], final)

    terms = job["terms"]
    try:
        function, raised = _function(cells, job["function"], seconds, give_up)
        if function is None and raised is None:
            return everywhere(Failure("error", f"{_NOWHERE}{job['function']}"))
        if function is None:
            return everywhere(_failure(raised))
        text = alone.refusal(function, terms["others"], terms["library"])
        if text:
            return everywhere(Failure("error", text), final=True)
        names = terms["parameters"]
        found = _Attempt([[calling.call(function, c, names) for c in part] for part in cases])
    except Exception as error:
        return everywhere(_failure(error))
    stub = all(status == "not attempted" for status, _ in found._failures) and found._failures
    # The student's own cell below the stub has failed.
    return everywhere(_failure(raised)) if stub and raised is not None else found


def _failure(error: BaseException):
    from diffusion_course.grading import calling
    from diffusion_course.grading.exercise import Failure

    if isinstance(error, Exception):
        return calling.failure(error)
    return Failure("error", f"your code ends the program ({type(error).__name__})")


def _function(
    cells: list[dict], name: str, seconds: float, give_up: bool
) -> tuple[Any, BaseException | None]:
    """The function of that name after these cells, or None; what an answer's own cell raised."""
    from diffusion_course.grading.kernel import Notebook

    notebook, raised, checked = Notebook(), None, None
    sys.modules["__main__"] = notebook.module

    def is_there() -> bool:
        return callable(notebook.space.get(name))

    try:
        with _limited(seconds, lambda: give_up or is_there()):
            for number, cell in enumerate(cells, start=1):
                if cell.get("after") and checked is None and is_there():
                    checked = notebook.space[name]  # what cells below do to the name is another's
                try:
                    notebook.run(cell["source"], f"<cell {number}>")
                except _Late:
                    raise
                except BaseException as error:  # also an exit: a notebook goes on with its next
                    if cell["answer"]:
                        raised = error
    except _Late:
        if not is_there():
            raise
    function = checked if checked is not None else notebook.space.get(name)
    return function if callable(function) else None, raised


if __name__ == "__main__":
    main()
