"""The table of chapters, what is made from it, and the layout of a new chapter."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_course import paths
from diffusion_course.grading import answers, assign
from diffusion_course.grading.arrays import as_result
from diffusion_course.grading.calling import call
from diffusion_course.grading.judging import Key

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
import build  # noqa: E402
import chapters  # noqa: E402
import new_chapter  # noqa: E402

TABLE = chapters.read()
EXISTING = [chapter for chapter in TABLE.chapters if chapter.file]


@pytest.fixture
def course(tmp_path):
    """A copy of what a new chapter changes, in which chapter 09 is still to be written."""
    for name in (chapters.TABLE, chapters.FIRST_PAGE, "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(COURSE / name, tmp_path / name)
    table = tmp_path / chapters.TABLE
    before, head, row = table.read_text(encoding="utf-8").partition('number = "09"\n')
    row, gap, after = row.partition("\n\n")
    row = re.sub(r"(?m)^(file|warm) = .*\n?", "", row).rstrip()
    table.write_text(f"{before}{head}{row}{gap}{after}", encoding="utf-8")
    chapters.write(tmp_path)
    for place in new_chapter.LAYOUTS.values():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The table, and what agrees with it.


def test_the_table_holds_the_chapters_00_to_26_and_the_clinic():
    numbers = [chapter.number for chapter in TABLE.chapters]
    assert numbers == [*(f"{n:02d}" for n in range(27)), "clinic"]


def test_numbered_files_and_the_clinic_are_chapters_and_nothing_else_is(tmp_path):
    other = ("clinic_copy", "clinics", "draft", "1_one", "03", "03-ddpm", "003_ddpm")
    for name in ("clinic", "10_b", "09_a", *other):
        (tmp_path / f"{name}.ipynb").touch()
    (tmp_path / "01_source.py").touch()
    assert [path.stem for path in paths.chapters(tmp_path)] == ["09_a", "10_b", "clinic"]
    assert [path.stem for path in paths.chapters(tmp_path, ".py")] == ["01_source"]
    assert paths.chapters(tmp_path / "none") == []
    names = ("09_score_sdes", "09_score_sdes.ipynb", "clinic", "clinic.ipynb")
    assert [paths.chapter_number(name) for name in names] == ["09", "09", "clinic", "clinic"]


def test_the_files_of_the_table_are_the_notebooks_that_exist():
    found = [path.stem for path in paths.chapters(COURSE / "notebooks")]
    assert [chapter.file for chapter in EXISTING] == found


def test_readme_and_first_page_agree_with_the_table():
    for path, text in chapters.updated().items():
        assert path.read_text(encoding="utf-8") == text, "run: python notebooks/chapters.py"


@pytest.mark.parametrize("chapter", EXISTING, ids=lambda chapter: chapter.file)
def test_the_title_of_the_table_is_that_of_the_chapter(chapter):
    text = (COURSE / f"notebooks/source/{chapter.file}.py").read_text(encoding="utf-8")
    assert f"\n# # {chapter.number} · {chapter.title}\n" in text


@pytest.mark.parametrize("chapter", EXISTING, ids=lambda chapter: chapter.file)
def test_a_chapter_that_exists_has_its_times_measured(chapter):
    assert 0 < chapter.warm < 200  # a chapter takes about three minutes at most


WARM = f"warm = {chapters.read().chapters[3].warm:g}"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('title = "DDPM"', 'title = "DD|PM"', "chapter 03: title must be a text of one line"),
        ('title = "DDPM"', "", "chapter 03: title must be a text of one line without |, got None"),
        ('number = "03"', 'number = "3"', "number must be two digits or \"clinic\", got '3'"),
        ('number = "03"', 'number = "04"', "chapter 04: file must be NN_name"),
        ('number = "09"', 'number = "27"', "numbered 00, 01, … without a gap"),
        ('file = "03_ddpm"', 'file = "03-ddpm"', "chapter 03: file must be NN_name"),
        ('file = "03_ddpm"\n', "", "chapter 03: warm needs a file"),
        ('file = "clinic"', 'file = "27_clinic"', "chapter clinic: file must be clinic, got"),
        (WARM, "warm = 0", "chapter 03: warm must be a number of seconds above 0, got 0"),
        (WARM, 'warm = "74"', "chapter 03: warm must be a number of seconds above 0"),
        (WARM, "hot = 74", "chapter 03: keys must be of number, .*; got 'hot'"),
        ("[[part]]", "[part", "chapters.toml is not valid TOML"),
        ("measured = ", "when = ", "keys must be of measured, part; got 'when'"),
        ('title = "Foundations"', 'name = "Foundations"', "keys must be of title, chapter"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(course, old, new, says):
    path = course / chapters.TABLE
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        chapters.read(course)
    assert "\n" not in str(caught.value)


def test_a_changed_table_is_noticed_and_written(course, capsys):
    path = course / chapters.TABLE
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("gates that open", "doors that open"), encoding="utf-8")
    assert chapters.main(["--check", "--course", str(course)]) == 1
    assert capsys.readouterr().out.count("is out of date") == 2
    assert chapters.main(["--course", str(course)]) == 0
    assert "python notebooks/build.py --text 00" in capsys.readouterr().out
    assert chapters.main(["--check", "--course", str(course)]) == 0
    for name in ("README.md", chapters.FIRST_PAGE):
        assert "| doors that open during training |" in (course / name).read_text(encoding="utf-8")


def test_a_file_without_its_marks_is_refused(course, capsys):
    text = (course / "README.md").read_text(encoding="utf-8")
    (course / "README.md").write_text(text.replace(chapters.END, ""), encoding="utf-8")
    assert chapters.main(["--course", str(course)]) == 2
    assert capsys.readouterr().err.startswith("chapters.py: README.md must hold two lines")


# A new chapter.


def lay_out(course, number="09", name="score_sdes", title="Score matching & SDEs"):
    new_chapter.new_chapter(course, number, name, title)
    return course / f"notebooks/source/{number}_{name}.py"


def specification(course, monkeypatch):
    """The new chapter's exercises, known to the masters as if its file were in the package."""
    path = course / "diffusion_course/grading/answers/chapter_09.py"
    spec = importlib.util.spec_from_file_location("chapter_09", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chapter_09", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(answers, "find", {module.MIXED.id: module.MIXED}.__getitem__)
    return module.MIXED


def test_the_table_gets_the_file_and_the_pages_a_link(course):
    lay_out(course)
    row = chapters.read(course).chapters[9]
    assert (row.file, row.title) == ("09_score_sdes", "Score matching & SDEs")
    assert row.insight == TABLE.chapters[9].insight
    assert chapters.main(["--check", "--course", str(course)]) == 0
    link = "| 09 | [Score matching & SDEs](notebooks/09_score_sdes.ipynb) |"
    assert link in (course / "README.md").read_text(encoding="utf-8")


def test_a_chapter_after_the_last_gets_a_row_before_the_clinic(course):
    lay_out(course, "27", "more", "It's more")
    last, clinic = chapters.read(course).chapters[-2:]
    assert (last.number, last.file, last.title) == ("27", "27_more", "It's more")
    assert clinic.number == "clinic"


def test_the_title_of_the_table_is_taken_where_none_is_given(course):
    source = lay_out(course, title="")
    assert "# # 09 · Score matching and SDEs\n" in source.read_text(encoding="utf-8")


def test_a_new_chapter_keeps_the_house_style(course):
    path = lay_out(course)
    cells = build.read_source(path).cells
    heads = [c.source.split("\n")[0] for c in cells if c.source.startswith("#")]
    order = ["One picture", "written out", "explorer", "Break it", "inspect", "Recap"]
    places = [next(i for i, h in enumerate(heads) if word in h) for word in order]
    assert places == sorted(places)
    known = [build.read_source(COURSE / f"notebooks/source/{EXISTING[1].file}.py").cells]
    first = [next(c.source for c in group if c.cell_type == "code") for group in (cells, *known)]
    assert first[0] == first[1]
    marked = [set(c.metadata.get("tags", [])) for c in cells if "assert" in c.source]
    assert {"comparison"} in marked and {"claims"} in marked
    for cell in cells:
        if cell.cell_type == "code":
            assert sum(bool(line.strip()) for line in cell.source.split("\n")) <= 24
            is_claim = re.search(r"(?m)^(assert |np\.testing)", cell.source)
            assert bool(is_claim) == bool(cell.metadata.get("tags"))


def test_the_cells_of_a_new_chapter_run(course):
    # Three steps instead of twenty, and no setup cell: it is that of every chapter.
    cells = [c for c in build.read_source(lay_out(course)).cells if c.cell_type == "code"][1:]
    space = {}
    for cell in cells:
        exec(cell.source.replace("sampling.uniform(20)", "sampling.uniform(3)"), space)
    assert space["states"].shape == (4, 300, 2)
    assert np.isfinite(space["ours"]).all()
    space["plt"].close("all")


def test_the_exercise_of_a_new_chapter_is_judged(course, monkeypatch):
    lay_out(course)
    exercise = specification(course, monkeypatch)
    master = build.read_source(course / "solutions/source/09_score_sdes.py")
    student = assign.student_version(master)
    assert "SOLUTION" not in "".join(cell.source for cell in student.cells)
    (answer,) = (
        c for c in master.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "answer-09-1"
    )
    assert f'check("09.1", {exercise.function})' in [cell.source for cell in master.cells]
    space = {}
    exec("import jax.numpy as jnp\n" + answer.source, space)
    key = Key(exercise, exercise.cases((0,)))
    right = key.verdict([[call(space["mixed"], case) for case in part] for part in key.cases])
    assert right.points == exercise.points == 2
    assert len(exercise.mistakes) >= 3
    for message, mistake in exercise.mistakes.items():
        made = [[as_result(mistake(*case)) for case in part] for part in key.cases]
        verdict = key.verdict(made)
        assert verdict.points == 0 and message in verdict.message


def test_what_a_new_chapter_writes_passes_the_linter(course):
    path = lay_out(course).relative_to(course)
    shutil.copy(COURSE / "pyproject.toml", course)
    for command in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *command, "--no-cache"]
        command += [path, "solutions", "diffusion_course"]
        done = subprocess.run(command, cwd=course, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("left", [(), ("runs", "build")])
def test_folders_that_a_run_or_a_wheel_leaves_do_not_change_what_the_linter_says(tmp_path, left):
    for folder in left:  # tests/runs.py and notebooks/build.py are imported by these names
        (tmp_path / folder).mkdir()
    shutil.copy(COURSE / "pyproject.toml", tmp_path)
    for name in ("test_solvers.py", "test_chapters.py"):
        shutil.copy(COURSE / "tests" / name, tmp_path)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "N and NAME must be given, such as: make chapter N=09 NAME=score_sdes"),
        (("", "", ""), "N and NAME must be given"),
        (("09",), "N and NAME must be given"),
        (("09", "a", "b", "c"), "N and NAME must be given"),
        (("9", "score"), "N must be two digits, such as 09, got '9'"),
        (("clinic", "score"), "N must be two digits"),
        (("٠٩", "score"), "N must be two digits"),
        (("28", "score", "T"), "N must be in the table of chapters or 27, got 28"),
        (("27", "score"), "TITLE must be given, since the table of chapters has no 27"),
        (("03", "score"), "N=03 is taken by 03_ddpm; choose another number"),
        (("09", "Score SDEs"), "NAME must be small letters, digits and single _"),
        (("09", "../score"), "NAME must be small letters, digits and single _"),
        (("09", "score_"), "NAME must be small letters, digits and single _"),
        (("09", "score", 'a "b"'), "TITLE must be one line without"),
        (("09", "score", "a | b"), "TITLE must be one line without"),
        (("09", "score", "a\nb"), "TITLE must be one line without"),
        (("09", "score", "{{N}}"), "TITLE must be one line without"),
        (("09", "score", "  "), "TITLE must be one line without"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(course, capsys, arguments, says):
    before = contents(course)
    assert new_chapter.main(list(arguments), course) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert says in err
    assert contents(course) == before


@pytest.mark.parametrize("layout", new_chapter.LAYOUTS)
def test_nothing_is_overwritten(course, capsys, layout):
    place = new_chapter.LAYOUTS[layout].format(file="09_score", number="09")
    (course / place).write_text("mine", encoding="utf-8")
    before = contents(course)
    assert new_chapter.main(["09", "score"], course) == 2
    assert f"{place} exists already" in capsys.readouterr().err
    assert contents(course) == before


def test_no_chapter_of_the_course_holds_what_must_still_be_filled_in():
    written = [*COURSE.glob("notebooks/source/*.py"), *COURSE.glob("solutions/source/*.py")]
    written += [*COURSE.glob("diffusion_course/grading/answers/*.py"), COURSE / chapters.TABLE]
    for path in written:
        assert new_chapter.PLACEHOLDER not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_hands_over_name_and_title_whatever_they_hold(course):
    shutil.copy(COURSE / "Makefile", course)
    printer = course / "print"
    printer.write_text('#!/bin/sh\nshift; for a in "$@"; do echo "[$a]"; done\n', encoding="utf-8")
    printer.chmod(0o755)
    title = 'It\'s $(shell echo bad) `echo worse` "$HOME" 100 %'
    done = subprocess.run(
        ["make", "--no-print-directory", "-o", ".venv/.installed-dev", "chapter", f"PY={printer}",
         "N=09", "NAME=a b", f"TITLE={title}"],
        cwd=course, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-3:] == ["[09]", "[a b]", f"[{title}]"], done.stderr
