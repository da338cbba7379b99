"""Where the test suite's time and memory go: a plugin for pytest.

    PYTHONPATH=benchmarks python -m pytest tests -n 2 --dist loadfile -p suite_profile \\
      --profile-out benchmarks/results/suite_profile.json

For every file of tests: the seconds of its tests, how many of them JAX spent on tracing and on
XLA's compiler (or on reading what an earlier run compiled), the number of programs, and the largest
memory of the worker while it ran them. tests/conftest.py takes the order of the files, and what
is quick, from the committed profile.
"""

import json
import os
from collections import defaultdict

import machine
import pytest

_TIMES = {
    "/jax/core/compile/backend_compile_duration": "xla",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
}
_COLUMNS = {"tests": 0, "seconds": 1, "trace": 1, "xla": 1, "programs": 0, "megabytes": 0}
_spent = defaultdict(float)
_listening = False


def pytest_addoption(parser):
    parser.addoption("--profile-out", metavar="FILE", help="write the profile as JSON")


def _heard(event: str, seconds: float, **_) -> None:
    if event in _TIMES:
        _spent[_TIMES[event]] += seconds
        _spent["programs"] += _TIMES[event] == "xla"


def _resident() -> float:
    """This process's memory, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    global _listening
    if not _listening:
        import jax

        jax.monitoring.register_event_duration_secs_listener(_heard)
        _listening = True
    outcome = yield
    # A report's attributes travel from the worker to the process that prints the table.
    outcome.get_result().suite_profile = dict(_spent) | {"megabytes": _resident()}
    _spent.clear()


class _Table:
    def __init__(self, config):
        self.config = config
        self.files = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0.0))

    def pytest_runtest_logreport(self, report):
        row = self.files[report.nodeid.partition("::")[0]]
        found = getattr(report, "suite_profile", {})
        row["seconds"] += report.duration
        row["tests"] += report.when == "call"
        for name in ("trace", "xla", "programs"):
            row[name] += found.get(name, 0)
        row["megabytes"] = max(row["megabytes"], found.get("megabytes", 0))

    def pytest_terminal_summary(self, terminalreporter):
        rows = sorted(self.files.items(), key=lambda item: -item[1]["seconds"])
        total = {name: sum(row[name] for _, row in rows) for name in _COLUMNS}
        total["megabytes"] = max((row["megabytes"] for _, row in rows), default=0)
        write = terminalreporter.write_line
        write(f"\n{'file':<34}" + "".join(f"{name:>10}" for name in _COLUMNS))
        for name, row in [*rows, ("all", total)]:
            cells = (f"{row[column]:>10.{digits}f}" for column, digits in _COLUMNS.items())
            write(f"{name:<34}" + "".join(cells))
        if target := self.config.getoption("--profile-out"):
            self._save(target, rows)

    def _save(self, target, rows):
        files = {name: {k: round(v, _COLUMNS[k]) for k, v in row.items()} for name, row in rows}
        document = {
            "machine": machine.describe(),
            "workers": self.config.getoption("numprocesses", None) or 1,
            "files": files,
        }
        with open(target, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False)
            file.write("\n")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # not in a worker
        config.pluginmanager.register(_Table(config))
