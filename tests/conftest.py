"""What every test gets, and which tests a run takes.

pytest tests                 all of them
pytest tests --quick         without the files that take long (make quick)
pytest tests --versions      those that other versions of the libraries could break (.ci/run)
pytest tests --quarter 2     what takes turns: a quarter (make test: the one the commit chooses)
pytest tests --without 2     without the files that --versions --quarter 2 runs

Turns are taken by the chapters whose explorers the browser moves and, with --versions, by files.
"""

import asyncio
import ctypes
import gc
import os
import sys
from pathlib import Path

import compiler
import pytest
import turns
from browser import chromium, lab  # noqa: F401 (fixtures)

from diffusion_course import paths

LONG = 5  # seconds of a file, in the committed profile
# Variables of the course, and of the make around the tests, which a make that a test starts reads.
OUTSIDE = (
    *("DIFFUSION_COURSE_PROFILE", "DIFFUSION_COURSE_COMPILE_CACHE", "PHASES"),
    *("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON"),
)
MOST_MEGABYTES = 1500  # of a worker, before it lets go of compiled programs

# Compiled programs are kept on disk, for the next run and for the other worker. JAX reads this
# when it is imported, and so do the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(paths.cache_dir() / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
compiler.quick()


@pytest.fixture(scope="module")
def quickly_compiled():
    """For files whose tests compile many small networks: see `networks.quick_compiler`."""
    from networks import quick_compiler  # it imports JAX, which must find the variables above

    with quick_compiler():
        yield


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out the files that take long")
    parser.addoption(
        "--versions", action="store_true", help="only what other versions of JAX could break"
    )
    parser.addoption("--quarter", default="all", help="of what takes turns: see .ci/quarter.py")
    parser.addoption("--without", help="leave out what --versions runs of this quarter")


def pytest_configure(config):
    config.addinivalue_line("markers", "in_turn: of a chapter; --quarter leaves others out")


def pytest_ignore_collect(collection_path, config):
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if config.getoption("--quick") and turns.seconds().get(collection_path.name, 0) > LONG:
        return True
    if collection_path.name in turns.elsewhere(config.getoption("--without")):
        return True
    if config.getoption("--versions"):
        return (
            collection_path.name not in turns.version_files(config.getoption("--quarter")) or None
        )
    return None


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--quarter")
    waiting = [item for item in items if turns.waits(item, wanted)]
    config.hook.pytest_deselected(items=waiting)
    # The longest files first, so that the workers end together; an unknown file may be long.
    seconds = turns.seconds()
    items[:] = sorted(
        (item for item in items if item not in waiting),
        key=lambda item: -seconds.get(item.path.name, float("inf")),
    )


def pytest_collection_finish(session):
    # What is there now stays to the end: eight thousand tests need not be looked through each time
    # garbage is collected, which took 7 % of a file that compiles much.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside():
    """Tests see the course's defaults, whatever the shell that runs them has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_to_the_next_file():
    """A worker holds the programs of one file of tests, not of all: they are gigabytes. Nor does
    the next file find figures, or an event loop that still runs (a browser's, which forbids the
    next one)."""
    yield
    _let_go()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    assert asyncio._get_running_loop() is None, "an event loop still runs: close what started it"


@pytest.fixture(autouse=True)
def _a_worker_stays_small():
    """Programs are let go within a file too, if they are many."""
    yield
    if _megabytes() > MOST_MEGABYTES:
        _let_go()


def _let_go() -> None:
    if "jax" not in sys.modules:
        return
    sys.modules["jax"].clear_caches()
    gc.collect()
    # glibc keeps freed memory that lies between pieces in use, unless asked to hand it back.
    trim = sys.platform == "linux" and getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _megabytes() -> float:
    """This process's memory; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0.0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
