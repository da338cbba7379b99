"""The inside of the sandbox: runs a submission's cells, and `sample` for every budget.

    python -m diffusion_course.leaderboard.player FD

It reads JSON lines from its standard input and writes some to the file descriptor FD. Nothing here
is trusted: the harness outside keeps the network, the rotations and the count, and whatever this
program says can only cost the submission its own result.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from typing import Any

import numpy as np


def main() -> None:
    import jax.numpy  # noqa: F401

    from diffusion_course import samplers, sampling, solvers  # noqa: F401
    from diffusion_course.grading import calling, kernel, wire
    from diffusion_course.leaderboard import playing  # noqa: F401

    if sys.platform == "linux":
        import ctypes

        # PR_SET_DUMPABLE: no child can look into this process or use its open files.
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    line = _Line(sys.stdin.buffer, int(sys.argv[1]))
    hello = line.read()
    _limit(hello["limits"])
    line.write({"began": True})
    notebook = kernel.Notebook()
    sys.modules["__main__"] = notebook.module
    sys.path.append(os.getcwd())
    raised = None
    for number, source in enumerate(hello["cells"], start=1):
        try:
            notebook.run(source, f"<cell {number}>")
        except BaseException as error:  # also an exit: a notebook goes on with its next cell
            raised = error
    sample = notebook.space.get("sample")
    if not callable(sample):
        text = "your cells define no function sample"
        line.write({"failed": text if raised is None else f"{text}; {_told(calling, raised)}"})
        return
    line.write({"ready": True})
    while True:
        game = line.read()
        noise = wire.unpack_array(game["noise"])
        random.seed(game["seed"])
        np.random.seed(game["seed"])
        try:
            y = np.asarray(sample(_asks(line, wire), noise, game["evaluations"], game["seed"]))
            if y.shape != noise.shape or y.dtype.kind not in "fiu":
                raise ValueError(
                    f"sample must return numbers of shape {list(noise.shape)}, got {y.dtype} of "
                    f"shape {list(y.shape)}"
                )
            answer = {"done": wire.pack(y.astype(np.float32))}
        except BaseException as error:
            answer = {"failed": _told(calling, error)}
        line.write(answer)


def _asks(line: _Line, wire):
    """`denoise`, as the submission sees it: it asks the harness."""
    from diffusion_course.leaderboard.game import array

    def denoise(x, t, images=None, null=False):
        asked = [wire.pack(array("x", x)), wire.pack(array("t", t))]
        asked.append(None if images is None else wire.pack(np.asarray(images)))
        line.write({"ask": asked, "null": bool(null)})
        said = line.read()
        if "refused" in said:
            raise RuntimeError(said["refused"])
        if "wrong" in said:
            raise ValueError(said["wrong"])
        return wire.unpack_array(said["said"])

    return denoise


class _Line:
    """To the harness and back, a JSON line at a time."""

    def __init__(self, reader, writer: int):
        self._reader, self._writer = reader, writer

    def read(self) -> Any:
        line = self._reader.readline()
        if not line:
            os._exit(0)  # the harness has seen enough
        return json.loads(line)

    def write(self, message: Any) -> None:
        content = json.dumps(message).encode() + b"\n"
        while content:
            content = content[os.write(self._writer, content) :]


def _told(calling, error: BaseException) -> str:
    if isinstance(error, Exception):
        return calling.failure(error).message
    return f"your code ends the program ({type(error).__name__})"


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
