"""What a benchmark ran on, without anything that names the computer or its user."""

import datetime
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
LIMIT = 0.1  # cores that other programs may use


def describe() -> dict:
    """Processor, memory, system, versions and today's date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in _flags()],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "load_average_at_start": [round(x, 2) for x in os.getloadavg()],
    }


def line(machine: dict) -> str:
    """The description in one line, for the foot of a table."""
    of = machine["versions"]
    return (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; jax {of['jax']}, flax {of['flax']}, torch {of['torch']}, "
        f"diffusers {of['diffusers']}, Python {machine['python']}"
    )


def need_peers() -> None:
    """Raises: SystemExit if the libraries to compare with are not installed."""
    missing = [name for name in ("torch", "diffusers") if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f'{" and ".join(missing)} not found. Install the peers with: pip install -e ".[bench]"'
        )


class Others:
    """How much of the computer other programs use while a benchmark runs.

    It matters: PyTorch's threads wait for each other after every operation, so that one core
    that is busy elsewhere makes it ten times slower, and JAX less.
    """

    def __init__(self):
        self.start = time.perf_counter(), _busy_seconds()

    def cores(self) -> float | None:
        """Mean number of cores since the start; None where the system does not say.

        Child processes count as others until they have ended.
        """
        begin, busy = self.start
        now = _busy_seconds()
        if busy is None or now is None:
            return None
        return round(max(0.0, now - busy) / (time.perf_counter() - begin), 2)


def disturbance(cores: list[float | None]) -> str:
    """A line for the foot of a table."""
    if None in cores:
        return "What other programs did meanwhile is not known on this system."
    worst = max(cores)
    warning = " DISTURBED: MEASURE AGAIN, the ratios are wrong." if worst > LIMIT else ""
    return f"Other programs used at most {worst:.2f} cores meanwhile.{warning}"


def _busy_seconds() -> float | None:
    """Seconds of all cores that were not idle, less those of this process and ended children."""
    total = _field("/proc/stat", "cpu ", separator="cpu ")
    if total is None:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, total.split()[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _flags() -> list[str]:
    return (_field("/proc/cpuinfo", "flags") or _field("/proc/cpuinfo", "Features") or "").split()


def _memory_gib() -> float | None:
    total = _field("/proc/meminfo", "MemTotal")
    return total and round(int(total.split()[0]) / 2**20, 1)


def _field(file: str, name: str, separator: str = ":") -> str | None:
    """The first value of a field in a file of "name : value" lines; None where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((x.partition(separator)[2].strip() for x in lines if x.startswith(name)), None)
