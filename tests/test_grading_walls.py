"""What a submission can see, in any kind of installation, and a grader that cannot grade."""

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_course
from diffusion_course.app import cli
from diffusion_course.grading import answers, batch, sandbox, seccomp, walls
from diffusion_course.grading.journal import Journal
from diffusion_course.grading.row import Row

COURSE = Path(__file__).resolve().parent.parent
PACKAGE = Path(diffusion_course.__file__).resolve().parent
MEMORY = sandbox.Limits().file
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bwrap") is None,
    reason="bubblewrap is not installed",
)


def inside(*command):
    """What a program in the sandbox prints."""
    with walls.opened(MEMORY) as (prefix, files):
        done = subprocess.run(
            [*prefix, *command], capture_output=True, text=True, pass_fds=files, check=False
        )
    return done.stdout + done.stderr


def fill(folder, names, content="SECRET"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


SECRETS = [
    # A second copy of the package, one below another name, and a clone of the course.
    f"{SITE}/diffusion_course/grading/answers/chapter_01.py",
    f"{SITE}/diffusion_course/grading/answers/__pycache__/chapter_01.cpython-311.pyc",
    f"{SITE}/vendored/grading/answers/chapter_01.py",
    f"{SITE}/diffusion_course-0.1.0.tar.gz",
    "lib/clone/solutions/source/01.py",
    "lib/clone/tests/other_slips.py",
    "lib/clone/.git/objects/00",
    "lib/clone/submissions/anna/answer.py",
    # A class of an earlier year, and an exchange folder.
    "lib/old/anna/01.ipynb",
    "lib/old/grades.csv",
    "lib/old/grades.json",
    "lib/old/grades.unfinished",
    "lib/old/other.csv",
    "lib/old/other_feedback/anna.html",
    "share/nbgrader/exchange/anna.py",
    "solutions/01.py",
]
PUBLIC = [f"{SITE}/numpy_like/tests/a.py", f"{SITE}/solutions.py", "bin/tool"]
PUBLIC += ["lib/clone/diffusion_course/a.py", "lib/old/table.csv"]


def test_nothing_secret_is_seen_wherever_it_lies_below_what_is_shown(tmp_path, monkeypatch):
    environment = tmp_path / "env"
    fill(environment, SECRETS)
    fill(environment, PUBLIC, "PUBLIC")
    # Its name begins like the environment's, and Python was started with it on its path.
    fill(tmp_path, ["env-course/solutions/01.py", "env-course/site.py"])
    (tmp_path / "link").symlink_to(environment)
    for name in ("env-course", f"env/{SITE}"):
        monkeypatch.syspath_prepend(str(tmp_path / name))
    for prefix in ("env", "link"):  # a link leads to the same
        monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
        seen = inside("grep", "-r", "-e", "SECRET", "-e", "PUBLIC", str(tmp_path / prefix))
        assert "SECRET" not in seen and seen.count("PUBLIC") == len(PUBLIC), seen
        assert "SECRET" not in inside("grep", "-r", "SECRET", str(tmp_path))
    assert walls.shows(tmp_path / "env-course") is None
    assert walls.shows(environment / "lib" / "old") == tmp_path / "link" / "lib"


def test_an_exchange_folder_in_usr_and_the_course_are_not_shown():
    for path in ("/usr/local/share/nbgrader/exchange", "/usr/share/exchange", "/srv", "/home"):
        assert walls.shows(Path(path)) is None
    assert walls.shows(COURSE / "solutions") is None and walls.shows(COURSE / "tests") is None
    assert walls.shows(PACKAGE / "data") == PACKAGE
    listed = inside("ls", str(PACKAGE / "grading"), str(Path(answers.__file__).parent))
    assert "student.py" in listed and "chapter" not in listed


def test_the_walls_show_no_folder_that_the_grader_was_started_in(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path) not in walls.import_paths()
    assert COURSE not in walls.shown()


def test_a_filter_of_system_calls_exists_for_this_machine():
    program = seccomp.program()
    assert program and len(program) % 8 == 0
    assert walls._extras() == ("--disable-userns", "--seccomp")  # bubblewrap 0.8 has both


# --------------------------------------------------------------------- the grader cannot grade


@pytest.fixture
def foreign_packages(monkeypatch):
    """Python as if its packages lay outside its prefix and /usr, as `pip install --user` has it."""
    answers.chapters()  # they import packages
    packages = site.getsitepackages()[0]
    base = Path(sys.base_prefix) / "bin" / "python3"
    if sys.prefix == sys.base_prefix or not base.exists():
        pytest.skip("needs a virtual environment")
    monkeypatch.setattr(sys, "executable", str(base))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "exec_prefix", sys.base_exec_prefix)
    monkeypatch.setattr(site, "getsitepackages", lambda: [])
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != packages])
    return packages


def test_packages_of_the_user_alone_are_seen(foreign_packages, tmp_path, monkeypatch):
    user = tmp_path / ".local" / SITE
    user.parent.mkdir(parents=True)
    user.symlink_to(foreign_packages)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(user))
    monkeypatch.setattr(sys, "path", [str(user), *sys.path])
    assert sandbox.require(sandbox.Limits()) == []


def test_where_packages_are_not_seen_the_run_ends_with_an_error(
    foreign_packages, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(walls, "_NEEDED", ())
    with pytest.raises(sandbox.CannotGrade, match="No module named"):
        sandbox.require(sandbox.Limits())
    (tmp_path / "subs").mkdir()
    out = tmp_path / "grades.csv"
    assert cli.main(["grade", str(tmp_path / "subs"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "No module named" in said and "nobody was given a 0" in said and not out.exists()


def test_a_program_that_needs_what_is_not_there_is_told_without_walls_too(monkeypatch):
    monkeypatch.setattr(
        sandbox, "_program", lambda *arguments: [sys.executable, "-c", "import missing"]
    )
    with pytest.raises(sandbox.CannotGrade, match=r"do not start: .*No module named 'missing'"):
        sandbox.require(sandbox.Limits(), walled=False)


def submissions_of(count, folder):
    """The exercises of a chapter, handed in as they are by so many students."""
    folder.mkdir()
    for n in range(count):
        shutil.copy(COURSE / "exercises" / "01_forward_process.ipynb", folder / f"s{n}.ipynb")


def test_a_sandbox_that_says_nothing_ends_the_run_and_no_grades_are_written(
    tmp_path, monkeypatch, capsys
):
    submissions_of(2, tmp_path / "subs")
    monkeypatch.setattr(sandbox, "require", lambda *a, **k: [])
    monkeypatch.setattr(sandbox, "_program", lambda *arguments: ["true"])
    out = tmp_path / "grades.csv"
    assert cli.main(["grade", str(tmp_path / "subs"), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "did not start" in said and not out.exists()


def test_a_sandbox_that_did_not_start_beside_others_is_tried_again_alone(tmp_path, monkeypatch):
    submissions_of(3, tmp_path / "subs")
    tries = []

    def grade_one(submission, settings, only=None):
        tries.append(submission.student)
        if tries.count(submission.student) == 1 and submission.student == "s1":
            raise sandbox.NotStarted
        return [Row(submission.student, "01.1", 1, 2, "wrong", "", submission.path)]

    monkeypatch.setattr(batch, "grade_one", grade_one)
    with Journal(tmp_path / "j") as notes:
        graded = batch.grade(tmp_path / "subs", notes, batch.Settings("seed"))
    assert [row.points for row in graded.rows] == [1, 1, 1] and tries[3:] == ["s1"]


def test_a_notebook_on_which_the_grader_fails_is_named_and_the_others_are_graded(
    tmp_path, monkeypatch, capsys
):
    submissions_of(3, tmp_path / "subs")
    monkeypatch.setattr(sandbox, "require", lambda *a, **k: [])

    def grade_one(submission, settings, only=None):
        if submission.student == "s1":
            raise KeyError("\ud800")
        return [Row(submission.student, "01.1", 2, 2, "right", "", submission.path)]

    monkeypatch.setattr(batch, "grade_one", grade_one)
    out = tmp_path / "grades.csv"
    assert cli.main(["grade", str(tmp_path / "subs"), "--out", str(out)]) == 1
    assert "s1.ipynb" in capsys.readouterr().err
    table = out.read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:5] for line in table[1:]] == [
        ["s0", "01.1", "2", "2", "right"],
        ["s1", "", "", "", "not graded"],
        ["s2", "01.1", "2", "2", "right"],
    ]
    # Run again, only this one is graded.
    late = lambda s, *_: [Row(s.student, "01.1", 1, 2, "", "", "")]  # noqa: E731
    monkeypatch.setattr(batch, "grade_one", late)
    assert cli.main(["grade", str(tmp_path / "subs"), "--out", str(out)]) == 0
    assert [line.split(",")[2] for line in out.read_text().splitlines()[1:]] == ["2", "1", "2"]


# ------------------------------------------------------------------------- the time of a notebook


def jobs(count):
    return [sandbox.Job(f"01.{n}", "f", [], [], [[()]]) for n in range(1, count + 1)]


def says(script, monkeypatch):
    """Has a program that does this run instead of the one for submissions; notes its starts."""
    starts = []

    def program(out, module):
        starts.append(out)
        head = f"import json, os, signal, sys, time\nout = {out}\n"
        head += "job = json.loads(sys.stdin.readline())['job']\n"
        head += "os.write(out, json.dumps({'job': job, 'begins': True}).encode() + b'\\n')\n"
        return [sys.executable, "-S", "-c", head + script]

    monkeypatch.setattr(sandbox, "_program", program)
    return starts


def test_all_exercises_together_have_a_limit_of_time(monkeypatch):
    monkeypatch.setattr(sandbox, "_GRACE_SECONDS", 0)
    starts = says("time.sleep(3600)", monkeypatch)
    found = sandbox.run(jobs(7), sandbox.Limits(seconds=1, notebook=3), walled=False)
    assert set(found) == {f"01.{n}" for n in range(1, 8)} and len(starts) <= 3
    assert {found[name][0][0].status for name in found} == {"timeout"}
    assert "your notebook took longer than 3 s" in found["01.7"][0][0].message


def test_a_program_that_is_halted_is_not_waited_for(monkeypatch):
    starts = says("os.kill(os.getpid(), signal.SIGSTOP)", monkeypatch)
    found = sandbox.run(jobs(3), sandbox.Limits(seconds=3000), walled=False)
    assert {found[name][0][0].status for name in found} == {"stopped"} and len(starts) == 6


def test_what_was_not_reached_is_graded_before_what_was_late(monkeypatch):
    asked = []

    def run(jobs, limits, walled):
        asked.append([job.job for job in jobs])
        return {job.job: job.fails("timeout", "late") for job in jobs}

    monkeypatch.setattr(sandbox, "run", run)
    monkeypatch.setattr(batch, "_job", lambda s, e, cases: sandbox.Job(e.id, "f", [], [], cases))
    submission = batch.Submission("s", "01", "s.ipynb", (), "")
    rows = list(batch._in_turns([submission] * 2, batch.Settings("seed")))
    assert asked[2] == asked[0][::-1] and len(asked) == 4
    assert [row.exercise for row in rows[0][1]] == [e.id for e in answers.chapters()["01"]]


# ---------------------------------------------------------------- what is imported for all at once


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        ("import jax.scipy.stats as js", [0, 0]),
        ("from scipy import stats, special", [1, 0]),
        ("def late():\n    import scipy.stats\n    import matplotlib.pyplot as plt", [1, 1]),
        ("import no_such_package, optax.stats", [1, 0]),
    ],
)
def test_what_the_cells_speak_of_is_there_before_an_exercise_begins(cell, there):
    looks = "import sys\nnames = ('scipy.stats', 'matplotlib.pyplot')\n"
    looks += "there = [name in sys.modules for name in names]"  # in no cell that is searched
    function = "def f():\n    return [float(found) for found in there]"
    cells = [{"source": source, "answer": True} for source in (looks, cell, function)]
    every = [{"source": source, "answer": True} for source in (cell, function)]
    job = sandbox.Job("01.1", "f", cells, every, [[()]])
    found = sandbox.run([job], sandbox.Limits(), walled=False)
    assert found["01.1"][0][0][0].tolist() == there
