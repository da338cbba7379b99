"""Both ends of a pipe: a parent that drives worker processes, and the workers' loop.

Each side of a benchmark lives in a process of its own, so that no library shares its threads or
its allocator with another. A command and its answer are one line of JSON each.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Worker threads of OpenMP and Eigen spin for a moment after their last task.
PAUSE = 0.02


class Worker:
    """The parent's end: ``worker("train", repeat=5)`` returns the answer of the other end.

    Args:
      script: file name in this folder.
      *arguments: of its command line.
      **environment: variables added to this process's own.

    Attributes:
      age: seconds from the process's start to its last answer.
    """

    def __init__(self, script: str, *arguments: str, **environment: str):
        self.name = " ".join([script, *arguments])
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        )

    def __call__(self, command: str, **arguments):
        """Runs one command to its end. Raises: SystemExit if the worker dies."""
        line = ""
        try:
            self.process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            said = "".join(self.errors.readlines()[-30:]).strip() or "(it said nothing)"
            raise SystemExit(f"{said}\n\nworker {self.name} died with {code} in {command}")
        self.age = time.perf_counter() - self.started
        time.sleep(PAUSE)
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def compile_cache(folder: str) -> dict[str, str]:
    """Environment in which JAX's compiled programs are kept in this folder, whatever the user's."""
    return {
        "DIFFUSION_COURSE_CACHE": folder,
        "DIFFUSION_COURSE_COMPILE_CACHE": "1",
        "JAX_COMPILATION_CACHE_DIR": "",
    }


def serve(commands: dict[str, Callable]) -> None:
    """The worker's end: answers commands until the parent closes the pipe."""
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("command")](**arguments)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def seconds_per_call(function: Callable[[], object], repeat: int) -> float:
    """Mean wall time of a call that returns when its work is done."""
    begin = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - begin) / repeat


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB."""
    try:  # ru_maxrss would count the parent's memory from before this program was loaded
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        import resource

        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
