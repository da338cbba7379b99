"""The inside of the sandbox: runs a student's cells and calls the function they define.

    python -m diffusion_course.grading.student FD

It reads jobs, one JSON line each, from its standard input and writes one line of outcomes for each
to the file descriptor FD. It imports JAX once; every job then runs in a child process of its own,
so that what one exercise does to the process, another never sees. This program decides nothing:
the grader outside judges what comes back, and ends it if it is late.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from typing import Any


def main() -> None:
    # First: everything heavy, once. JAX must not start before the children do.
    import jax.numpy
    import jax.scipy.stats  # noqa: F401
    import matplotlib.pyplot  # noqa: F401 (students' cells import it)
    import scipy.special  # noqa: F401 (and this; what is imported now costs them no time)

    from diffusion_course import process  # noqa: F401
    from diffusion_course.grading import calling, check, wire  # noqa: F401
    from diffusion_course.notebook import setup  # noqa: F401

    if sys.platform == "linux":
        import ctypes

        # PR_SET_DUMPABLE: no child can look into this process or use its open files.
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    warnings.filterwarnings("ignore", message=r"os\.fork")  # safe: JAX has no threads yet
    out = int(sys.argv[1])
    os.set_inheritable(out, False)
    jobs = [json.loads(line) for line in sys.stdin.buffer]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nothing is left for a child to read
    for job in jobs:
        name = json.dumps(job["job"]).encode()
        _write(out, b'{"job": %b, "begins": true}\n' % name)
        _write(out, b'{"job": %b, "outcome": %b}\n' % (name, _in_child(job, out)))
        _tidy()


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
    """To a fresh folder: nothing that another exercise has left there is found.

    As in a notebook, modules are searched for in it first: a cell may write one and import it.
    """
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    sys.path.insert(0, folder)
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


class _Missing(Exception):
    """The cells ran, but the function is not there."""


def _run(job: dict) -> Any:
    """Runs the cells and calls the function on every input of every part."""
    from diffusion_course.grading import calling, wire
    from diffusion_course.grading.exercise import Failure

    cases = [[tuple(map(wire.unpack, case)) for case in part] for part in job["cases"]]
    problem: Failure | None = None
    # First what every answer needs and the answer itself. Only if a name is missing there, all
    # the other cells too: they may be slow, or wrong, and are none of this exercise's business.
    for cells in (job["cells"], job["all_cells"]):
        try:
            function = _function(cells, job["function"])
            outcomes = [[calling.call(function, case) for case in part] for part in cases]
        except BaseException as error:
            problem = calling.failure(error) if isinstance(error, Exception) else _exit(error)
            if isinstance(error, _Missing):
                problem = Failure("error", f"your cells define no function {job['function']}")
            continue
        problem = None
        if not any(_names_missing(o) for part in outcomes for o in part):
            break
    if problem is not None:
        outcomes = [[problem] * len(part) for part in cases]
    return [[wire.pack_outcome(outcome) for outcome in part] for part in outcomes]


def _exit(error: BaseException):
    from diffusion_course.grading.exercise import Failure

    return Failure("error", f"your code ends the program ({type(error).__name__})")


def _names_missing(outcome: Any) -> bool:
    return "raised NameError" in getattr(outcome, "message", "")


def _function(cells: list[dict], name: str):
    """The function of that name after these cells. Raises: what the answer's own cell raises."""
    space: dict[str, Any] = {"__name__": "__main__", "get_ipython": _NoShell}
    for number, cell in enumerate(cells, start=1):
        before = space.get(name)
        try:
            _execute(cell["source"], f"<cell {number}>", space)
        except Exception:
            # A cell that fails below the function has defined it all the same.
            if cell["answer"] and space.get(name) is before:
                raise
        except BaseException:
            if cell["answer"]:
                raise
    if not callable(space.get(name)):
        raise _Missing
    return space[name]


def _execute(source: str, name: str, space: dict) -> None:
    """Runs a cell, all its statements; then raises what the first of them raised that failed.

    What fails here may work in the student's notebook, such as Colab's own imports at the head of
    a cell, and the statements after it then ran there.
    """
    try:
        tree = ast.parse(source, name)
    except SyntaxError:
        # Magics and shell lines; the rest of the cell still counts.
        from IPython.core.inputtransformer2 import TransformerManager

        tree = ast.parse(TransformerManager().transform_cell(source), name)
    import linecache

    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    if "IPython" in source:
        _without_a_shell()
    first = None
    for statement in tree.body:
        try:
            exec(compile(ast.Module([statement], []), name, "exec"), space)
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


def _without_a_shell() -> None:
    """Has IPython's own `get_ipython` give what stands in for a shell, too."""
    import IPython

    IPython.get_ipython = IPython.core.getipython.get_ipython = _NoShell


class _NoShell:
    """Stands in for IPython: magics, shell commands and hooks do nothing here."""

    def __getattr__(self, name: str) -> _NoShell:
        return self

    def __call__(self, *arguments, **options) -> _NoShell:
        return self


if __name__ == "__main__":
    main()
