"""A pytest plugin: no further file begins once UNTIL is over, so that a run ends in time.

UNTIL=1764230400 PYTHONPATH=.ci pytest -p until ...

UNTIL is in seconds since 1970, as `date +%s` prints them; without it everything runs. A notebook
that has begun is run to its end. The others are skipped, and the last lines name each of them.
"""

import os
import time

import pytest

REASON = "not run, time was up"


class Until:
    """Skips what has not begun by the end."""

    def __init__(self, end: float):
        self.end = end
        self.begun = set()

    @pytest.hookimpl(tryfirst=True)  # before the notebook's kernel is started
    def pytest_runtest_setup(self, item):
        if _file(item) not in self.begun and time.time() >= self.end:
            pytest.skip(REASON)
        self.begun.add(_file(item))

    def pytest_terminal_summary(self, terminalreporter):
        skipped = terminalreporter.stats.get("skipped", [])
        left = sorted({_file(report) for report in skipped if REASON in str(report.longrepr)})
        for file in left:
            terminalreporter.write_line(f"NOT RUN, time was up: {file}")


def _file(item_or_report) -> str:
    return item_or_report.nodeid.partition("::")[0]


def pytest_configure(config):
    end = os.environ.get("UNTIL", "")
    if not end:
        return
    if not end.isdecimal():
        raise pytest.UsageError(f"UNTIL must be whole seconds since 1970, got {end!r}")
    config.pluginmanager.register(Until(float(end)))
