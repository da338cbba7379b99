"""The commands assign, grade and report."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from diffusion_course.app import cli
from diffusion_course.grading import answers

COURSE = Path(__file__).resolve().parent.parent


@pytest.fixture
def submissions(tmp_path):
    """One student who has solved chapter 01, one who has not begun."""
    for student, folder in (("ada", "solutions"), ("ben", "exercises")):
        (tmp_path / "subs" / student).mkdir(parents=True)
        shutil.copy(COURSE / folder / "01_forward_process.ipynb", tmp_path / "subs" / student)
    return tmp_path / "subs"


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_folder_is_graded_and_reported(submissions, tmp_path, capsys):
    out = tmp_path / "grades.csv"
    assert run("grade", submissions, "--out", out, "--seed", "s") == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said and "2 notebooks in" in said and "s each" in said
    rows = json.loads(out.with_suffix(".json").read_text())
    points = {
        student: sum(row["points"] or 0 for row in rows if row["student"] == student)
        for student in ("ada", "ben")
    }
    automatic = sum(e.points for e in answers.chapters()["01"] if hasattr(e, "oracle"))
    assert points == {"ada": automatic, "ben": 0}
    assert len(list((tmp_path / "grades_feedback").glob("*.html"))) == 2
    assert not list(tmp_path.glob("*.unfinished"))
    waiting = (tmp_path / "grades_by_hand.csv").read_text()
    assert waiting.count("ada,01.") == 1 and "ben" not in waiting

    assert run("report", out) == 0
    said = capsys.readouterr().out
    assert f"below half of the points: ben (0 of {automatic + 2})" in said
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = out.with_suffix(".html").read_text()
    assert "One step of noise" in page and "grades_feedback/ada-" in page
    feedback = next((tmp_path / "grades_feedback").glob("ben-*.html")).read_text()
    assert "One step of noise" in feedback and "chapter 01, section 1 · One small step" in feedback
    assert "https://" not in feedback

    assert run("report", out, "--site", "https://x.org/c") == 0
    feedback = next((tmp_path / "grades_feedback").glob("ben-*.html")).read_text()
    assert 'href="https://x.org/c/notebooks/01_forward_process.html#1-%C2%B7-One-' in feedback

    assert run("report", out, "--before", out) == 0
    assert "moved" in out.with_suffix(".html").read_text()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_secret_that_was_not_given_is_told(submissions, tmp_path, capsys):
    arguments = ["grade", submissions, "--out", tmp_path / "grades.csv", "--chapter", "1"]
    assert run(*arguments) == 0
    assert "inputs are drawn from --seed " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"submissions": "nowhere"}, "is not a folder"),
        ({"--out": "grades.txt"}, "give a name that ends in .csv"),
        ({"--out": "nowhere/grades.csv"}, "in a folder that exists"),
        ({"--chapter": "77"}, "choose one of 01, 02, 03"),
        ({"--site": "x.org"}, "--site must be an address"),
    ],
)
def test_mistakes_are_one_line(submissions, tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    options = {"submissions": "subs", "--out": "grades.csv", "--chapter": "01"} | change
    folder = options.pop("submissions")
    assert run("grade", folder, *(word for pair in options.items() for word in pair)) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("folder", "out"),
    [("subs", "subs/grades.csv"), (".", "grades.csv"), ("subs", "subs/ada/grades.csv"),
     ("subs", "link/grades.csv"), ("grades_feedback/x", "grades.csv")],
)  # fmt: skip
def test_results_do_not_lie_with_the_submissions(
    submissions, tmp_path, monkeypatch, capsys, folder, out
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(submissions)
    (tmp_path / "grades_feedback" / "x").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert run("grade", folder, "--out", out) == 2
    said = capsys.readouterr().err
    assert "lies with the submissions" in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_neither_submissions_nor_results_lie_where_submissions_can_read(
    submissions, tmp_path, monkeypatch, capsys
):
    from diffusion_course.grading import walls

    (tmp_path / "results").mkdir()
    for seen in (submissions, tmp_path / "results"):
        monkeypatch.setattr(walls, "shown", lambda seen=seen: [seen])
        assert run("grade", submissions, "--out", tmp_path / "results" / "grades.csv") == 2
        said = capsys.readouterr().err
        assert f"lies in {seen}, which every submission can read" in said


def test_links_in_the_place_of_results_are_refused(submissions, tmp_path, monkeypatch, capsys):
    from diffusion_course.grading import sandbox

    monkeypatch.setattr(sandbox, "require", lambda *a, **k: [])
    (tmp_path / "precious").write_text("mine")
    for name in ("grades.csv", "grades.json", "grades_feedback", "grades.unfinished"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
        assert run("grade", submissions, "--out", tmp_path / "grades.csv") == 2
        said = capsys.readouterr().err
        assert f"{name}" in said and "remove it" in said and said.count("\n") == 1
        (tmp_path / name).unlink()
        assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("option", [["--jobs", "0"], ["--timeout", "x"], ["--chapter", "two"]])
def test_bad_options_end_with_two(submissions, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("grade", submissions, *option)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_report_shows_any_name_on_a_terminal_of_another_alphabet(tmp_path, monkeypatch):
    from diffusion_course.grading import results
    from diffusion_course.grading.row import Row

    rows = [Row("毛泽东 ×", "01.1", 0, 2, "wrong", "σ…", "01.ipynb")]
    out, *_ = results.write(tmp_path / "grades.csv", rows, "s")
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="ascii"))
    assert run("report", out) == 0
    sys.stdout.flush()
    assert rb"\u6bdb\u6cfd\u4e1c" in said.getvalue()


def test_a_report_of_something_else_is_refused(tmp_path, capsys):
    assert run("report", tmp_path / "none.csv") == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert run("report", tmp_path / "other.csv") == 2
    assert "other.csv must have the columns" in capsys.readouterr().err


def test_assign_writes_the_exercises_of_a_course(tmp_path, capsys):
    for folder in ("notebooks", "solutions"):
        shutil.copytree(COURSE / folder, tmp_path / folder)
    assert run("assign", "--course", tmp_path) == 0
    assert "wrote exercises/01_forward_process.ipynb" in capsys.readouterr().out
    made = (tmp_path / "exercises" / "01_forward_process.ipynb").read_bytes()
    assert made == (COURSE / "exercises" / "01_forward_process.ipynb").read_bytes()
