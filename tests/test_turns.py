"""What takes turns in CI: every notebook and test runs, with one set of versions or the other."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest
import turns

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / ".ci"))
quarter = importlib.import_module("quarter")
requirements = importlib.import_module("requirements")


@pytest.mark.parametrize("number", "0123")
def test_what_one_part_leaves_out_the_other_runs(number):
    assert turns.elsewhere(number) == turns.version_files(number) != set()
    there = set(quarter.notebooks("all")) - set(quarter.notebooks("all", without=number))
    assert there == set(quarter.notebooks(number)) != set()


def test_the_quarters_are_the_whole_and_share_nothing():
    for part_of, whole in (
        (turns.version_files, turns.version_files("all")),
        (quarter.chosen, {path.stem for path in (COURSE / "notebooks").glob("*.ipynb")}),
    ):
        parts = [part_of(number) for number in "0123"]
        assert set.union(*parts) == whole and sum(map(len, parts)) == len(whole)


def test_without_a_quarter_nothing_is_left_out(monkeypatch):
    assert turns.elsewhere(None) == turns.elsewhere("all") == set()
    monkeypatch.setattr(quarter, "of_the_commit", lambda: None)  # a folder without Git
    assert turns.elsewhere("commit") == set()


def test_requirements_hold_those_of_the_extras_that_an_extra_names():
    project = {
        "name": "a-b",
        "dependencies": ["x>=1"],
        "optional-dependencies": {"lab": ["y"], "dev": ["a-b[lab]", "z<2", "x>=1"], "site": ["w"]},
    }
    assert requirements.needed(project, []) == ["x>=1"]
    assert requirements.needed(project, ["dev"]) == ["x>=1", "y", "z<2"]
    project["optional-dependencies"]["all"] = ["a-b[dev,site]"]
    assert requirements.needed(project, ["all"]) == ["x>=1", "y", "z<2", "w"]
    ours = tomllib.loads((COURSE / "pyproject.toml").read_text("utf-8"))["project"]
    assert not any(line.startswith(ours["name"]) for line in requirements.needed(ours, ["dev"]))
