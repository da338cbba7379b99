"""Several processes that train one model, each with devices and rows of the batch of its own.

JAX runs the same program in every process, and an array can lie on the devices of all of them. A
process that dies is noticed by the others only when its heartbeat fails, and they then end with a
dump of their stacks; `launch` is a parent that sees it at once and says what happened.
"""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_course import checks

_PLACE = "DIFFUSION_COURSE_PROCESS"  # what `launch` tells `connect`
_PATIENCE = 60  # seconds in which all processes of a run must have come
_GRACE = 1.0  # seconds in which processes that end for the same reason do so
_SHOWN = 25  # lines of what a failed process wrote


class ProcessFailed(RuntimeError):
    """One of the processes of a run ended, or no longer answers; the others were stopped.

    Attributes:
      process: its number.
      code: its exit code, negative for a signal; None if it was stopped with the others.
    """

    def __init__(self, message: str, process: int, code: int | None):
        super().__init__(message)
        self.process, self.code = process, code


def connect(
    address: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    heartbeat: int = 10,
) -> None:
    """Joins this process to the others of a run; it comes before JAX's first computation.

    Without arguments it does what `launch` wants, and nothing in a process that `launch` has not
    started: the same script then trains alone. Afterwards ``jax.devices()`` are those of all
    processes. CPUs of several processes talk by Gloo.

    Args:
      address: "host:port" where process 0 listens, the same in every process.
      processes: their number.
      index: of this one, from 0.
      heartbeat: seconds of silence after which a process counts as dead, and the others end.

    Raises: ValueError if some of the three are missing or out of range. If the others do not come
      within a minute, the process says so and ends with exit code 1.
    """
    if address is None and processes is None and index is None:
        if _PLACE not in os.environ:
            return
        address, *numbers = os.environ[_PLACE].split(",")
        processes, index, heartbeat, devices = map(int, numbers)
        jax.config.update("jax_num_cpu_devices", devices)
    if address is None or processes is None or index is None:
        raise ValueError(
            "address, processes and index belong together, "
            f"got address={address}, processes={processes}, index={index}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"address must be HOST:PORT, got {address!r}")
    if not 0 < int(port) < 2**16:
        raise ValueError(f"address must have a port from 1 to 65535, got {address!r}")
    checks.integer("processes", processes, minimum=1)
    checks.integer("index", index, minimum=0, maximum=processes - 1)
    checks.integer("heartbeat", heartbeat, minimum=1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX ends a process that it cannot connect with a dump of its stack: it must not come to that.
    late = threading.Timer(_PATIENCE, _end_alone, (address, processes, index))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address, processes, index,
            initialization_timeout=2 * _PATIENCE, heartbeat_timeout_seconds=heartbeat,
        )  # fmt: skip
    finally:
        late.cancel()
    sys.excepthook = _end_at_once


def _end_alone(address: str, processes: int, index: int) -> None:
    print(
        f"error: process {index} of {processes} has waited {_PATIENCE} s at {address}, and not all "
        f"have come. Each number from 0 to {processes - 1} must be started, with the same address, "
        "where process 0 can be reached",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)


def _end_at_once(kind, error, traceback) -> None:
    """Prints an error and ends. The usual way out of Python would wait for the other processes."""
    sys.__excepthook__(kind, error, traceback)
    leave(1)


def leave(code: int) -> None:
    """Ends this process at once, if it is one of several; alone it does nothing.

    The usual way out of Python would wait for the others, which may wait for this one.

    Args:
      code: its exit code.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def meet() -> None:
    """Waits for the other processes, and connects all devices of all of them.

    Otherwise the first step would do that, and Gloo gives up where one of them comes half a minute
    later than the others, such as after a download of its own.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("meet")


def own_rows(size: int) -> slice:
    """The rows of a batch that this process gives to `loop.fit`; for ``data.batches(rows=…)``.

    >>> own_rows(6)  # in a run of one process
    slice(0, 6, None)

    Args:
      size: of the whole batch, a multiple of the number of processes.

    Raises: ValueError if it is not.
    """
    count, index = jax.process_count(), jax.process_index()
    if checks.integer("size", size, minimum=1) % count:
        raise ValueError(f"size must be a multiple of the {count} processes, got {size}")
    return slice(index * size // count, (index + 1) * size // count)


def from_first(make: Callable[[], Any]) -> Any:
    """What a function returns in process 0, in every process; an error of it too.

    Every process must call it, and none goes on before process 0 is done.

    >>> from_first(lambda: 2 + 3)
    5

    Args:
      make: a function of no arguments, called in process 0 alone. Its result must be something that
        pickle can store, such as NumPy arrays.
    """
    if jax.process_count() == 1:
        return make()
    error, text = None, b""
    if jax.process_index() == 0:
        try:
            text = pickle.dumps((make(), None))
        except Exception as raised:
            error, text = raised, pickle.dumps((None, raised))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = np.frombuffer(text, np.uint8) if text else np.zeros(size, np.uint8)
    result, raised = pickle.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())
    if error is not None or raised is not None:
        raise error if error is not None else raised
    return result


def launch(
    script: str | Path,
    *arguments: str,
    processes: int = 2,
    devices: int = 1,
    heartbeat: int = 10,
    timeout: float = 600,
) -> list[str]:
    """Runs a Python file in several processes of this machine, which talk over the loopback.

    The file calls `connect` first. When a process ends with an error the others are stopped.

    Args:
      script: the file.
      arguments: for it, from ``sys.argv[1]`` on.
      processes: how many.
      devices: simulated CPU devices of each.
      heartbeat: see `connect`.
      timeout: seconds for the whole run.

    Returns: what each process wrote to its standard output.
    Raises:
      ValueError: a number is out of range.
      FileNotFoundError: there is no such file.
      ProcessFailed: a process ended with an error, no longer answers, or the time is over.
    """
    checks.integer("processes", processes, minimum=1)
    checks.integer("devices", devices, minimum=1)
    checks.integer("heartbeat", heartbeat, minimum=1)
    checks.above("timeout", timeout, 0)
    if not Path(script).is_file():
        raise FileNotFoundError(f"script must be a Python file, got {script}")
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, str(script), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        children = []
        try:
            for index in range(processes):
                place = f"{address},{processes},{index},{heartbeat},{devices}"
                children.append(_Child(command, place, Path(folder) / str(index)))
            _watch(children, heartbeat, timeout)
        finally:
            for child in children:
                child.stop()
        return [child.printed() for child in children]


class _Child:
    """One process of a run, and the files that it writes to."""

    def __init__(self, command: list[str], place: str, files: Path):
        self.out, self.err = files.with_suffix(".out"), files.with_suffix(".err")
        env = os.environ | {_PLACE: place, "JAX_PLATFORMS": "cpu"}
        flags = env.get("XLA_FLAGS", "").split()
        # `connect` says how many devices it simulates; JAX does not start if it is told twice.
        env["XLA_FLAGS"] = " ".join(f for f in flags if "host_platform_device_count" not in f)
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=err)

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # one that waits for a dead process hears nothing gentler
        self.process.wait()

    def printed(self) -> str:
        lines = self.out.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        # Two threads of Gloo may write at once: the end of such a line then stands on its own.
        of_gloo = ("[Gloo]", "connected peer ranks")
        return "".join(line for line in lines if not any(part in line for part in of_gloo))

    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8", errors="replace")


def _watch(children: list[_Child], heartbeat: int, timeout: float) -> None:
    """Returns when all have ended well. Raises: ProcessFailed."""
    begin = time.monotonic()
    while True:
        codes = [child.code() for child in children]
        if codes == [0] * len(codes):
            return
        seconds = time.monotonic() - begin
        if any(codes):
            time.sleep(_GRACE)
            raise _failure(children, seconds, heartbeat)
        if seconds > timeout:
            late = codes.index(None)
            text = f"process {late} of {len(codes)} has not ended after {timeout:g} s (timeout)"
            raise ProcessFailed(f"{text}; all were stopped", late, None)
        time.sleep(0.05)


def _failure(children: list[_Child], seconds: float, heartbeat: int) -> ProcessFailed:
    codes = [child.code() for child in children]
    failed = [i for i, code in enumerate(codes) if code]
    # One that was killed, or ended by an error of its own, is the cause. Those that abort because
    # they miss it are not; nor are those in which what it had begun to send no longer fits.
    missing = [i for i in failed if _misses_another(children[i])]
    ends = [i for i in failed if i not in missing]
    causes = [i for i in ends if not _of_gloo(children[i])] or ends
    after = f"after {seconds:.0f} s"
    rest = "The other processes were stopped; the run can go on from its last saved state"
    if not causes:
        silent = [i for i in range(len(codes)) if i not in missing]
        first = silent[0] if silent else missing[0]
        return ProcessFailed(
            f"process {first} of {len(codes)} no longer answers: {after} the others had heard "
            f"nothing from it for {heartbeat} s. {rest}",
            first, codes[first],
        )  # fmt: skip
    first = causes[0]
    lines = children[first].errors().strip().splitlines()[-_SHOWN:]
    said = "\n".join([". The last that it wrote:", *lines]) if lines else ""
    return ProcessFailed(
        f"process {first} of {len(codes)} {_how(codes[first])} {after}. {rest}{said}",
        first, codes[first],
    )  # fmt: skip


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _misses_another(child: _Child) -> bool:
    """Whether a process ended because it lost another one: by its heartbeat, or in the middle of a
    collective operation."""
    errors = child.errors()
    # It aborts, or in older versions ends with exit code 1.
    aborted = "JAX distributed service detected fatal errors" in errors
    cut_off = re.search("closed by peer|reset by peer|refused", errors)
    return aborted or bool(_of_gloo(child) and cut_off)


def _of_gloo(child: _Child) -> bool:
    """Whether the collective operations between CPUs had a part in how a process ended."""
    return bool(re.search(r"gloo::|\bGloo\b", child.errors()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
