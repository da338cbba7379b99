"""What a run takes of the tests that take turns: a quarter of them, or all (`.ci/quarter.py`)."""

import json
import sys
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / ".ci"))

import quarter  # noqa: E402 (.ci/quarter.py)

PROFILE = TESTS.parent / "benchmarks" / "results" / "suite_profile.json"
UNKNOWN = 10  # seconds of a file that the profile does not have


@cache
def seconds() -> dict[str, float]:
    """Measured time of each file of tests; empty before the first profile."""
    if not PROFILE.exists():
        return {}
    rows = json.loads(PROFILE.read_text(encoding="utf-8"))["files"]
    return {Path(name).name: row["seconds"] for name, row in rows.items()}


@cache
def version_files(wanted: str) -> set[str]:
    """Names of the files that other versions of the libraries could break, of a quarter or all."""
    from versions import depends_on_versions

    files = [path.name for path in sorted(TESTS.glob("test_*.py")) if depends_on_versions(path)]
    parts = quarter.parts({name: seconds().get(name, UNKNOWN) for name in files})
    number = quarter.number(wanted)
    return {name for n, part in enumerate(parts) if number in (None, n) for name in part}


def elsewhere(without: str | None) -> set[str]:
    """Names of the files that this run leaves to other versions of the libraries: a quarter's."""
    if without is None or quarter.number(without) is None:
        return set()
    return version_files(without)


def waits(item, wanted: str) -> bool:
    """Whether a test marked `in_turn` is about a chapter of another quarter."""
    chapters = quarter.chosen(wanted)
    if chapters is None or not item.get_closest_marker("in_turn"):
        return False
    return item.callspec.params["chapter"].stem not in chapters
