"""The script of CI: its exit status is that of what it runs, and it leaves nothing behind."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

COURSE = Path(__file__).resolve().parent.parent
LEFT = "NOT RUN, time was up: notebooks/03_ddpm.ipynb"
PASSED = "======================= 2 passed in 0.01s ======================="
# Stands for the course's: each target leaves a line in a file, and fails where it is asked to.
MAKEFILE = f"""
test colab colab-environment:
\t@echo $@ $(WITHOUT)$(QUARTER) >>"$(CALLS)"
\t@echo "$${{UNTIL:-0}}" >"$(CALLS)-$@"
\t@test "$@" != "$(FAILS)" || {{ echo "$@ cannot go on"; exit 1; }}
\t@echo "{PASSED}"
\t@echo "{LEFT}"
.PHONY: test colab colab-environment
"""


@pytest.fixture
def run_ci(tmp_path):
    """Runs `.ci/run` with a Makefile of few lines; gives its result, the targets and what it
    left among the temporary files."""

    def run(fails=""):
        copy, programs, temporary = (tmp_path / name for name in ("copy", "programs", "temporary"))
        shutil.copytree(COURSE / ".ci", copy / ".ci")
        (copy / "Makefile").write_text(MAKEFILE)
        programs.mkdir()
        temporary.mkdir()
        for name in ("chromium", "bwrap"):  # or it would install them
            (programs / name).symlink_to(shutil.which("true"))
        calls = tmp_path / "calls"
        settings = {"CALLS": str(calls), "FAILS": fails, "TMPDIR": str(temporary)}
        settings["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
        # A make that runs these tests hands the variables of its command line down.
        outer = {k: v for k, v in os.environ.items() if k not in ("QUARTER", "WITHOUT")}
        done = subprocess.run(
            [copy / ".ci" / "run"],
            env=outer | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, sorted(calls.read_text().splitlines()), list(temporary.iterdir())

    return run


def test_what_passes_ends_with_success(run_ci):
    done, targets, left = run_ci()
    assert done.returncode == 0, done.stdout + done.stderr
    assert targets == ["colab commit", "colab-environment", "test commit"]
    assert left == []
    wall_time, results = done.stdout.split("wall time")[1].split("\n\n")
    assert [line.split("  ")[1] for line in wall_time.splitlines()[1:]] == [
        "make test",
        "Colab's versions",
    ]
    assert results.splitlines() == [PASSED, LEFT, PASSED, LEFT]


def test_notebooks_begin_until_there_is_time_for_what_follows(run_ci, tmp_path):
    begin = int(time.time())
    run_ci()
    ends = {name: int((tmp_path / f"calls-{name}").read_text()) for name in ("test", "colab")}
    # On the slowest machine so far, unit tests took 28 minutes, Colab's 11, a notebook 8.
    assert begin + 30 * 60 < ends["test"] < ends["colab"] - 39 * 60
    assert ends["colab"] < begin + (90 - 8) * 60


@pytest.mark.parametrize("fails", ["test", "colab"])
def test_what_fails_ends_with_failure(run_ci, fails):
    done, targets, left = run_ci(fails)
    assert done.returncode != 0 and f"{fails} cannot go on" in done.stdout
    assert ("colab commit" in targets) == (fails == "colab") and left == []


def test_an_environment_that_fails_says_why_and_is_tried_again(run_ci):
    done, targets, left = run_ci("colab-environment")
    assert done.returncode == 0 and "colab-environment cannot go on" in done.stdout
    assert "colab commit" in targets and left == []
