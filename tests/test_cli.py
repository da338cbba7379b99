"""The command line, the doctor, running a chapter, and the Makefile."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from diffusion_course.app import cli, doctor, runner

COURSE = Path(__file__).resolve().parent.parent
COMMANDS = ["lab", "doctor", "run", "train"]


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path
    )


@pytest.fixture
def tiny(tmp_path):
    """A course of three chapters, in a path with a space; the last one fails."""
    folder = tmp_path / "the course"
    notebook(folder / "notebooks" / "00_start_here.ipynb", "1 + 1")
    notebook(
        folder / "notebooks" / "01_good.ipynb", "x = 20", "import os\nprint(x + 1, os.getcwd())"
    )
    notebook(
        folder / "notebooks" / "02_bad.ipynb",
        "fine = 1",
        "def half(x):\n    return x / 0\n\nhalf(\n    fine)",
        "raise SystemError('never reached')",
    )
    return folder


def command(capsys, *arguments):
    """Run the command line in this process: exit code, standard output, standard error."""
    capsys.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


# Help and mistakes.


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_says_what_a_command_is_for(arguments, capsys):
    code, out, _ = command(capsys, *arguments, "--help")
    assert code == 0
    assert len(out.splitlines()) >= 6
    for name in [] if arguments else COMMANDS:
        assert f"\n    {name} " in out


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_course", "--version"],
        cwd=COURSE,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("diffusion-course ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "choose from"),
        (["lab", "--port", "0"], "from 1 to 65535, got '0'"),
        (["lab", "--port", "70000"], "got '70000'"),
        (["lab", "--port", "http"], "got 'http'"),
        (["run"], "chapter"),
        (["run", "01", "--timeout", "-3"], "got '-3'"),
        (["run", "01", "--timeout", "x"], "whole number above 0"),
        (["train", "x", "--steps", "0"], "got '0'"),
        (["train"], "NAME"),
        (["doctor", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, said, capsys):
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err and "--help" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["7", "99", "good", "", "0", "nothing.ipynb"])
def test_an_unknown_chapter_lists_the_chapters(name, tiny, capsys):
    if name == "0":  # 00_start_here: a number is a number
        assert runner.find_chapter(tiny, name).name == "00_start_here.ipynb"
        return
    code, out, err = command(capsys, "run", name, "--course", str(tiny))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "00_start_here, 01_good, 02_bad" in err


@pytest.mark.parametrize("name", ["1", "01", "01_good", "01_good.ipynb", "notebooks/01_good.ipynb"])
def test_a_chapter_is_found_by_number_or_name(name, tiny):
    assert runner.find_chapter(tiny, name).name == "01_good.ipynb"


def test_a_start_that_several_chapters_share_is_asked_about(tiny):
    notebook(tiny / "notebooks" / "01_good_too.ipynb", "1")
    with pytest.raises(
        runner.Mistake, match="several chapters; choose one of: 01_good, 01_good_too"
    ):
        runner.find_chapter(tiny, "1")
    assert runner.find_chapter(tiny, "01_good").name == "01_good.ipynb"


@pytest.mark.parametrize("name", ["run", "lab"])
def test_no_notebooks_is_one_line_with_the_remedy(name, tmp_path, capsys):
    arguments = [name, *(["01"] if name == "run" else []), "--course", str(tmp_path)]
    code, _, err = command(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1 and "--course" in err


def test_the_course_is_found_from_the_package_and_from_a_folder_inside(tiny, monkeypatch):
    inside = tiny / "notebooks" / "deeper"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setattr(runner.paths, "source_tree", lambda: tiny.parent / "elsewhere")
    assert runner.course_folder() == tiny.resolve()
    monkeypatch.setattr(runner.paths, "source_tree", lambda: tiny)
    monkeypatch.chdir(tiny.parent)
    assert runner.course_folder() == tiny.resolve()


# run


def test_run_executes_a_chapter_and_changes_nothing(tiny, capsys):
    path = tiny / "notebooks" / "01_good.ipynb"
    before = path.read_bytes()
    code, out, err = command(capsys, "run", "01", "--course", str(tiny))
    assert code == 0
    assert "2 code cells in" in out
    assert "x = 20" in out and "import os" in out  # the slowest cells, by their first line
    assert "2/2" in err  # the progress bar
    assert path.read_bytes() == before


def test_run_writes_the_executed_notebook_where_it_is_told(tiny, tmp_path, capsys):
    out = tmp_path / "executed.ipynb"
    assert command(capsys, "run", "01", "--course", str(tiny), "--out", str(out))[0] == 0
    (printed,) = nbformat.read(out, as_version=4).cells[1].outputs
    assert printed.text == f"21 {(tiny / 'notebooks').resolve()}\n"


def test_an_executed_notebook_is_written_whole_or_not_at_all(tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "executed.ipynb"
    out.write_text("of before")
    monkeypatch.setattr(runner, "execute", lambda *_, **__: [])  # no kernel is needed here

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = sorted(tmp_path.iterdir())
    code, _, err = command(capsys, "run", "01", "--course", str(tiny), "--out", str(out))
    assert (code, err.splitlines()[-1]) == (
        1, "diffusion-course run: [Errno 28] No space left on device",
    )  # fmt: skip
    assert out.read_text() == "of before" and sorted(tmp_path.iterdir()) == before


REPORT = "student;exercise;points;out_of;status;message;file\nJürgen;01.1;2,5;3;right;;f\n"


def test_report_reads_what_a_spreadsheet_saved_and_replaces_its_own_files(tmp_path, capsys):
    grades = tmp_path / "grades.csv"
    for encoding in ("utf-8-sig", "utf-16"):
        grades.write_bytes(REPORT.encode(encoding))
        code, out, err = command(capsys, "report", str(grades))
        assert (code, err) == (0, "") and "2.5 of 3" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "grades.csv", "grades.html", "grades.png",
    ]  # fmt: skip
    assert (tmp_path / "grades.png").read_bytes().startswith(b"\x89PNG")
    grades.write_bytes(b"\x00\x01binary")
    code, out, err = command(capsys, "report", str(grades))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "grades.csv must" in err


def test_run_refuses_a_place_it_cannot_write_before_it_runs(tiny, tmp_path, capsys):
    for out in (tmp_path, tmp_path / "none" / "x.ipynb"):
        code, _, err = command(capsys, "run", "02", "--course", str(tiny), "--out", str(out))
        assert code == 2
        assert "--out" in err and err.count("\n") == 1


NESTED = pytest.param("[" * 100_000, id="nested without end")


@pytest.mark.parametrize(
    "text", ["no notebook", "{}", "[1]", '{"cells": 5, "nbformat": 4}', "", NESTED]
)
@pytest.mark.parametrize("name", ["run", "slides"])
def test_a_damaged_notebook_is_one_line_with_the_remedy(name, text, tiny, tmp_path, capsys):
    (tiny / "notebooks" / "01_good.ipynb").write_text(text)
    arguments = ["01"] if name == "run" else [str(tmp_path / "decks"), "01"]
    code, _, err = command(capsys, name, *arguments, "--course", str(tiny))
    assert code == 2 and err.count("\n") == 1 and "01_good.ipynb" in err


@pytest.mark.parametrize("name", ["notebooks", "slides"])
def test_what_is_no_folder_is_one_line(name, tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for place in ("file", "file/x", "link", "link/x"):
        code, _, err = command(capsys, name, str(tmp_path / place), "--course", str(tiny))
        assert code == 2 and err.count("\n") == 1 and "is not a folder" in err


def test_a_notebook_without_cells_is_one_line(tiny, tmp_path, capsys):
    notebook(tiny / "notebooks" / "01_good.ipynb")
    for arguments in (["run", "01"], ["slides", str(tmp_path / "decks"), "01"]):
        code, _, err = command(capsys, *arguments, "--course", str(tiny))
        assert code == 2 and err.count("\n") == 1 and "without cells" in err


def test_a_failing_cell_is_shown_with_its_line_and_exit_code_1(tiny, capsys):
    code, out, err = command(capsys, "run", "02", "--course", str(tiny))
    assert (code, out) == (1, "")
    assert "02_bad.ipynb: code cell 2, line 4: half(" in err
    assert "ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err and "never reached" not in err


def test_a_cell_with_a_syntax_error_is_shown(tiny, capsys):
    notebook(tiny / "notebooks" / "03_typo.ipynb", "a = 1\nb = = 2")
    code, _, err = command(capsys, "run", "3", "--course", str(tiny))
    assert code == 1
    assert "line 2: b = = 2" in err and "SyntaxError" in err


def test_a_cell_that_takes_too_long_is_stopped(tiny, capsys):
    notebook(tiny / "notebooks" / "03_slow.ipynb", "import time\ntime.sleep(60)")
    code, _, err = command(capsys, "run", "3", "--course", str(tiny), "--timeout", "1")
    assert code == 1
    assert "longer than 1 s" in err and "Traceback" not in err


def test_a_kernel_that_dies_is_reported(tiny, capsys):
    notebook(tiny / "notebooks" / "03_dies.ipynb", "import os\nos._exit(1)")
    code, _, err = command(capsys, "run", "3", "--course", str(tiny))
    assert code == 1
    assert "kernel died" in err and "Traceback" not in err


# lab


def test_lab_opens_the_first_page_and_looks_nothing_up(tiny, monkeypatch, capsys):
    started = []

    class Server:
        def __init__(self, command, env):
            started.extend(command)

        def wait(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Server)
    arguments = ["lab", "--no-browser", "--port", "9999", "--course", str(tiny)]
    assert command(capsys, *arguments)[0] == 0
    assert f"--ServerApp.root_dir={tiny.resolve()}" in started
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in started
    assert "--ServerApp.port=9999" in started and "--no-browser" in started
    assert any("NeverCheckForUpdate" in part for part in started)
    assert "--LabApp.news_url=None" in started


def test_lab_without_jupyterlab_says_what_to_install(tiny, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = command(capsys, "lab", "--course", str(tiny))
    assert code == 2
    assert err.count("\n") == 1 and 'pip install "diffusion-course[lab]"' in err


# train


@pytest.fixture
def recipes(monkeypatch, tmp_path):
    """A stand-in for the recipes; what it was asked to train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_COURSE_COMPILE_CACHE", "0")
    import types

    import diffusion_course.training

    asked = []
    module = types.ModuleType("diffusion_course.training.recipes")
    module.names = lambda: ("digits_v", "mnist_v")
    module.train = lambda name, **options: asked.append((name, options)) or f"{name}.safetensors"
    monkeypatch.setitem(sys.modules, "diffusion_course.training.recipes", module)
    monkeypatch.setattr(diffusion_course.training, "recipes", module, raising=False)
    return asked


def test_train_passes_on_what_it_was_given(recipes, capsys, tmp_path):
    code, out, _ = command(capsys, "train", "digits_v")
    assert (code, out) == (0, "wrote digits_v.safetensors\n")
    arguments = ["train", "mnist_v", "--steps", "3", "--out", str(tmp_path)]
    assert command(capsys, *arguments)[0] == 0
    assert command(capsys, "train", "mnist_v", "--resume")[0] == 0
    assert recipes == [
        ("digits_v", {"steps": None, "out": Path("runs"), "resume": False}),
        ("mnist_v", {"steps": 3, "out": tmp_path, "resume": False}),
        ("mnist_v", {"steps": None, "out": Path("runs"), "resume": True}),
    ]


def test_an_unknown_recipe_lists_the_recipes(recipes, capsys):
    code, _, err = command(capsys, "train", "digit")
    assert code == 2
    assert err.count("\n") == 1 and "digits_v, mnist_v" in err
    assert recipes == []


def test_a_run_that_cannot_be_resumed_is_one_line(recipes, capsys, monkeypatch):
    from diffusion_course.training.resume import ResumeError

    def train(name, **options):
        raise ResumeError("there is nothing to resume")

    monkeypatch.setattr(sys.modules["diffusion_course.training.recipes"], "train", train)
    code, _, err = command(capsys, "train", "mnist_v", "--resume")
    assert code == 2 and err.endswith(": there is nothing to resume\n")


def test_a_full_disk_is_one_line_and_the_state_is_kept(recipes, capsys, monkeypatch):
    def train(name, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["diffusion_course.training.recipes"], "train", train)
    code, _, err = command(capsys, "train", "mnist_v")
    assert code == 1 and err.count("\n") == 1
    assert "No space left on device" in err and "--resume" in err


def test_an_unknown_profile_is_one_line_before_anything_is_trained(recipes, capsys, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", "bad")
    code, _, err = command(capsys, "train", "mnist_v")
    assert code == 2 and err.count("\n") == 1 and recipes == []
    assert "profile must be one of cpu, accelerator, got 'bad'" in err


def test_data_that_cannot_be_had_are_one_line_with_the_remedy(recipes, capsys, monkeypatch):
    from diffusion_course.data import DataUnavailableError

    def train(name, **options):
        raise DataUnavailableError("mnist is not here.\nSet DIFFUSION_COURSE_DATA")

    monkeypatch.setattr(sys.modules["diffusion_course.training.recipes"], "train", train)
    code, _, err = command(capsys, "train", "mnist_v")
    assert code == 2
    assert err.endswith(": mnist is not here. Set DIFFUSION_COURSE_DATA\n")


@pytest.mark.parametrize("name", ["file", "file/sub"])
def test_train_refuses_a_folder_that_cannot_be_made_before_it_trains(
    recipes, capsys, tmp_path, name
):
    (tmp_path / "file").write_text("")
    code, _, err = command(capsys, "train", "digits_v", "--out", str(tmp_path / name))
    assert code == 2
    assert err.count("\n") == 1 and "cannot be made" in err and recipes == []


# doctor


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test of this file asks the hub."""
    from diffusion_course import data

    monkeypatch.setattr(data, "hub_reachable", lambda timeout=5.0: False)


def line(out, name):
    return next(
        row for row in out.splitlines() if row.split()[1 : 1 + len(name.split())] == name.split()
    )


def test_the_doctor_finds_this_environment_well(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path))
    code, out, _ = command(capsys, "doctor")
    assert code == 0, out
    assert "The course runs here." in out and "PROBLEM" not in out
    for name in ("Python", "jax", "flax", "devices", "memory", "compile cache", "bundled data"):
        assert line(out, name)
    # Bundled data are enough: an unreachable hub is a note.
    assert line(out, "hub").startswith("note")


def test_an_unknown_profile_is_a_problem_with_the_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path))
    assert doctor.profile() == doctor.Check("profile", "ok", "chosen by the device")
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", "bad")
    code, out, _ = command(capsys, "doctor")
    assert code == 1 and line(out, "profile").startswith("PROBLEM")
    assert "set DIFFUSION_COURSE_PROFILE to cpu or accelerator, or unset it" in out


def test_the_doctor_looks_at_every_declared_dependency():
    names = {check.name for check in doctor.dependencies()}
    assert {"jax", "flax", "optax", "numpy", "ipywidgets", "datasets"} <= names
    assert "pytest" not in names  # tests need it, the course does not


def pretend(monkeypatch, **versions):
    """metadata.version as if these were installed; None is missing."""
    real = metadata.version

    def version(name):
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)


def test_a_jax_that_is_too_old_is_a_problem_with_the_remedy(monkeypatch, capsys):
    pretend(monkeypatch, jax="0.4.30")
    code, out, _ = command(capsys, "doctor")
    assert code == 1
    assert line(out, "jax").startswith("PROBLEM") and "0.4.30, needs >=0.7.2" in line(out, "jax")
    assert '→ pip install "jax>=0.7.2"' in out
    assert "would not run here: see jax above" in out


def test_a_missing_jupyterlab_is_a_problem_with_the_remedy(monkeypatch, capsys):
    pretend(monkeypatch, jupyterlab=None)
    code, out, _ = command(capsys, "doctor")
    assert code == 1
    assert line(out, "jupyterlab").startswith("PROBLEM")


def test_a_missing_jax_is_a_problem_and_no_crash(monkeypatch, capsys):
    pretend(monkeypatch, jax=None)
    real = doctor.importlib.import_module

    def without_jax(name, *rest):
        if name == "jax":
            raise ImportError("No module named 'jax'")
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", without_jax)
    code, out, _ = command(capsys, "doctor")
    assert code == 1
    assert "not installed, needs >=0.7.2" in line(out, "jax")
    assert line(out, "devices").startswith("PROBLEM") and "No module named" in line(out, "devices")


def test_the_doctor_starts_in_a_python_with_nothing_installed():
    # -S: without site-packages; the same as a Python in which nothing was installed.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "diffusion_course", "doctor"],
        cwd=COURSE,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert line(done.stdout, "Python").startswith("ok")
    assert "would not run here" in done.stdout


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 14, "final", 0))
    check = doctor.python()
    assert (check.status, check.found) == ("PROBLEM", "3.10.14, needs 3.11")
    assert "make lab PYTHON=" in check.remedy


def test_a_newer_version_than_the_tested_one_is_fine(monkeypatch):
    pretend(monkeypatch, jax="99.0")
    check = next(check for check in doctor.dependencies() if check.name == "jax")
    assert check.status == "ok" and "tested with" in check.found


def test_a_cache_that_cannot_be_written_is_only_a_note(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "file"))
    code, out, _ = command(capsys, "doctor")
    assert code == 0
    assert line(out, "compile cache").startswith("note")
    assert "DIFFUSION_COURSE_CACHE" in out


def test_local_data_are_listed_and_a_wrong_folder_is_a_note(monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path))
    assert doctor.local_data().found.endswith(": mnist")
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path / "none"))
    assert doctor.local_data().status == "note" and doctor.local_data().remedy


def test_an_error_of_the_data_is_a_line_and_not_a_traceback(monkeypatch, capsys):
    from diffusion_course import data

    def broken(*_):
        raise OSError("disk on fire\nmore")

    monkeypatch.setattr(data, "load", broken)
    monkeypatch.setattr(data, "hub_reachable", broken)
    code, out, _ = command(capsys, "doctor")
    assert code == 1
    assert "OSError: disk on fire)" in line(out, "bundled data")
    assert line(out, "hub").startswith("note")


# Makefile and pinned versions

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def copy(tmp_path):
    """The Makefile and what it depends on, in a path with a space."""
    folder = tmp_path / "my course"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(COURSE / name, folder)
    return folder


def make(folder, *arguments):
    """`make` as a user starts it: these tests may themselves run under a `make` with variables of
    its own (`.ci/run` calls `make test WITHOUT=commit`), which a second one would inherit."""
    ours = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PHASES"}
    ours |= set(re.findall(r"^(\w+) +\?=", (COURSE / "Makefile").read_text("utf-8"), re.M))
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        env={name: value for name, value in os.environ.items() if name not in ours},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def installed(folder, *stamps):
    """Pretend that these installations were made, after the requirements were written."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in (".created", *stamps):
        (folder / ".venv" / name).touch()


@needs_make
def test_the_first_make_lab_installs_with_constraints_and_opens_the_course(copy):
    plan = make(copy, "-n", "lab").stdout
    assert "-m venv" in plan
    assert '-c constraints.txt -e ".[lab]"' in plan
    assert plan.strip().endswith("-m diffusion_course lab")


@needs_make
@pytest.mark.parametrize("stamps", [[".installed-lab"], [".installed-lab", ".installed-dev"]])
def test_the_second_make_lab_installs_nothing(copy, stamps):
    installed(copy, *stamps)
    assert make(copy, "-n", "lab").stdout.splitlines() == [
        ".venv/bin/python -m diffusion_course lab"
    ]


@needs_make
def test_make_site_installs_what_it_needs_once_and_takes_a_repository(copy):
    assert '-c constraints.txt -e ".[site]"' in make(copy, "-n", "site").stdout
    installed(copy, ".installed-site")
    plan = make(copy, "-n", "site", "REPOSITORY=someone/course").stdout
    assert "pip" not in plan
    assert plan.strip().endswith("site/build.py --repository someone/course")


@needs_make
def test_new_requirements_are_installed(copy):
    installed(copy, ".installed-lab")
    later = (copy / ".venv" / ".installed-lab").stat().st_mtime + 10
    os.utime(copy / "constraints.txt", (later, later))
    assert "pip install" in make(copy, "-n", "lab").stdout


@needs_make
def test_make_test_runs_linter_then_notebooks_then_unit_tests(copy):
    installed(copy, ".installed-lab")
    notebook(copy / "notebooks" / "00_start_here.ipynb", "1")
    (copy / "solutions").mkdir()
    plan = make(copy, "-n", "test").stdout
    steps = [
        '".[dev,site]"',
        "ruff check",
        "ruff format --check",
        "--nbval-lax",
        "quarter.py commit --every-chapter )",
        "pytest tests",
        "--quarter commit",
    ]
    places = [plan.index(step) for step in steps]
    assert places == sorted(places)


@needs_make
def test_an_old_python_is_named_with_the_remedy(copy):
    old = copy / "old python"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9.1;; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = make(copy, "lab", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr and "is Python 3.9.1" in done.stderr
    assert "make lab PYTHON=python3.12" in done.stderr
    assert not (copy / ".venv").exists()


@needs_make
def test_a_python_that_is_not_there_is_named_with_the_remedy(copy):
    done = make(copy, "test", "PYTHON=python-of-nowhere")
    assert done.returncode != 0
    assert "python-of-nowhere does not run" in done.stderr
    assert "make test PYTHON=python3.12" in done.stderr


@needs_make
def test_make_alone_shows_what_there_is(copy):
    done = make(copy)
    assert done.returncode == 0
    for target in ("lab", "test", "lint", "notebooks", "site", "clean"):
        assert f"make {target}" in done.stdout


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("constraints.txt", ("", "lab", "dev", "site", "bench")),
        (".ci/colab-constraints.txt", ("", "lab", "dev")),  # the peers are not timed there
    ],
)
def test_every_dependency_is_pinned_to_a_version_within_its_bounds(name, extras):
    from packaging.requirements import Requirement

    pins = {}
    for row in (COURSE / name).read_text().splitlines():
        if row and not row.startswith("#"):
            package, separator, version = row.partition("==")
            assert separator and package not in pins, row
            pins[package.lower().replace("_", "-")] = version
    for requirement in map(Requirement, doctor.declared()):
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and requirement.name != doctor.DISTRIBUTION:
            assert requirement.specifier.contains(pins[requirement.name]), requirement
