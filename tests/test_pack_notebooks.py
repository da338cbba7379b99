"""A pack's notebooks: their first cells find the course, and the one for Colab is graded."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from packs import COURSE, WHEEL, code, notebook, packed

from diffusion_course import paths
from diffusion_course.app import colab, runner
from diffusion_course.grading import answers, batch, journal, submissions


@pytest.fixture(scope="module")
def files():
    return packed()


# The first cells


def first_cell(files, name):
    return next(c for c in code(notebook(files, name).cells) if "import setup" in c)


def test_the_first_cell_of_every_notebook_finds_the_course_and_imports_setup(files):
    (wheel_name,) = (Path(name).name for name in files if name.endswith(".whl"))
    for name in files:
        if name.endswith(".ipynb"):
            cell = first_cell(files, name.removeprefix("workshop/"))
            assert cell.startswith(colab.FIND.format(wheel=wheel_name))
            rest = cell.removeprefix(colab.FIND.format(wheel=wheel_name))
            assert rest == "from diffusion_course import setup\n\ncourse = setup()"
            assert "--no-deps" in cell and "jax" not in re.sub(r"#.*", "", cell)
            assert max(map(len, cell.splitlines())) <= 100


def finds(tmp_path, monkeypatch, installed=False, address=None):
    """What the finding cell installs in a folder: the arguments of pip, or nothing."""
    from IPython.core.inputtransformer2 import TransformerManager

    content = tmp_path / "content"
    text = colab.FIND.format(wheel=WHEEL).replace("/content", str(content))
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            # IPython puts the variables into the line.
            asked.append((name, line.replace("{wheel}", space["wheel"])))

    def find_spec(name):
        return object() if installed else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.delenv("DIFFUSION_COURSE_WHEEL", raising=False)
    if address:
        monkeypatch.setenv("DIFFUSION_COURSE_WHEEL", address)
    space = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(text), space)
    return asked


@pytest.mark.parametrize(
    "place",
    [".", "..", "content", "content/drive/MyDrive", "content/drive/MyDrive/a folder"],
)
def test_the_wheel_is_found_where_a_participant_puts_it(place, tmp_path, monkeypatch, capsys):
    here = tmp_path / "workshop" / "notebooks"
    folder = here / place if place.startswith(".") else tmp_path / place
    for made in (here, folder):
        made.mkdir(parents=True, exist_ok=True)
    (folder / WHEEL).write_bytes(b"")
    (here / "diffusion_course-8-py3-none-any.whl").write_bytes(b"")  # of another pack
    monkeypatch.chdir(here)
    ((magic, line),) = finds(tmp_path, monkeypatch)
    assert magic == "pip"
    *options, path = line.split(" ", 4)
    assert options == ["install", "--quiet", "--no-deps", "--no-index"]
    assert Path(path.strip('"')).resolve() == (folder / WHEEL).resolve()


def test_an_address_goes_first_and_an_installed_course_before_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / WHEEL).write_bytes(b"")
    address = f"https://example.org/{WHEEL}"
    ((_, line),) = finds(tmp_path, monkeypatch, address=address)
    assert line.endswith(f' "{address}"')
    assert finds(tmp_path, monkeypatch, installed=True, address=address) == []


def test_without_a_wheel_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        finds(tmp_path, monkeypatch)
    text = stop.value.code
    assert "\n" not in text
    for word in (WHEEL, "Files", "Drive", "DIFFUSION_COURSE_WHEEL", "run this cell again"):
        assert word in text


def test_a_notebook_without_setup_is_refused():
    empty = {"cells": [], "metadata": {}}
    with pytest.raises(runner.Mistake, match="no cell of the notebook says 'from diffusion_course"):
        colab.findable(empty, WHEEL, "notebooks", [])


# The one notebook for Colab


def test_the_one_notebook_is_the_others_one_after_the_other_each_from_a_fresh_start(files):
    whole = notebook(files, "colab.ipynb")
    nbformat.validate(whole)
    assert len({cell.id for cell in whole.cells}) == len(whole.cells)
    begin = 2
    assert code(whole.cells[:begin]) == [first_cell(files, "notebooks/03_ddpm.ipynb")]
    for what, name in (
        ("Chapter", "notebooks/01_forward_process"), ("Exercises", "exercises/01_forward_process"),
        ("Chapter", "notebooks/03_ddpm"), ("Exercises", "exercises/03_ddpm"),
    ):  # fmt: skip
        alone = nbformat.read(COURSE / f"{name}.ipynb", as_version=4)
        part = whole.cells[begin : begin + len(alone.cells)]
        begin += len(alone.cells)
        mine, theirs = code(part), code(alone.cells)
        number = name.split("/")[1][:2]
        assert mine[0] == (
            f"# {what} of chapter {number}: begins afresh and forgets what ran above.\n%reset -f\n"
            "from diffusion_course import setup\n\ncourse = setup()"
        )
        assert mine[1:] == theirs[1:]
        assert [c.metadata.get("nbgrader") for c in part] == [
            c.metadata.get("nbgrader") for c in alone.cells
        ]
    assert begin == len(whole.cells)
    assert not [c for c in whole.cells if c.get("outputs") or c.get("execution_count")]
    assert len(files["workshop/colab.ipynb"]) < 1_000_000


def test_the_first_page_keeps_its_own_way_of_setting_up():
    part = colab.joined([("Chapter", "00", runner.read_json(FIRST))], WHEEL, "t")["cells"]
    assert [c for c in map(colab.source, part) if c.endswith("course = setup(wait=False)")]


def test_a_chapter_that_simulates_devices_has_a_kernel_of_its_own():
    alone, other = [
        ("Chapter", name[:2], runner.read_json(COURSE / "notebooks" / f"{name}.ipynb"))
        for name in ("22_scaling", "01_forward_process")
    ]
    exercises = ("Exercises", "22", runner.read_json(COURSE / "exercises" / "22_scaling.ipynb"))
    head = colab.source(colab.joined([alone, exercises], WHEEL, "t")["cells"][1])
    assert head.endswith('course = setup("cpu", devices=8)')
    with pytest.raises(runner.Mistake, match=r"22 needs a kernel of its own.*got it with 01"):
        colab.joined([other, alone], WHEEL, "t")


FIRST = COURSE / "notebooks" / "00_start_here.ipynb"


def test_the_one_notebook_is_graded_as_the_exercises_of_each_chapter(files, tmp_path):
    """Answers, checks and setup of each chapter are those of the separate notebooks."""
    (tmp_path / "anna.ipynb").write_bytes(files["workshop/colab.ipynb"])
    known = answers.chapters()
    found, refused = submissions.collect(tmp_path, known)
    assert refused == []
    assert [(s.student, s.chapter, s.path) for s in found] == [
        ("anna", "01", "anna.ipynb"), ("anna", "03", "anna.ipynb"),
    ]  # fmt: skip
    for submission in found:
        (path,) = (COURSE / "exercises").glob(f"{submission.chapter}_*.ipynb")
        alone = submissions.read(path.read_bytes())
        setup = [c.source for c in submissions.setup_cells(submission.cells)]
        assert setup == [c.source for c in submissions.setup_cells(alone)]
        for exercise in known[submission.chapter]:
            mine, theirs = (
                submissions.answer_cells(c, exercise) for c in (submission.cells, alone)
            )
            assert [c.source for c in mine] == [c.source for c in theirs] != []
    only, _ = submissions.collect(tmp_path, known, wanted="03")
    assert [s.chapter for s in only] == ["03"]


def test_every_chapter_of_the_one_notebook_has_its_rows_once(files, tmp_path, monkeypatch):
    """Also after an interruption: the journal knows the first chapter already."""
    folder = tmp_path / "in"
    folder.mkdir()
    for student in ("anna", "ben"):
        (folder / f"{student}.ipynb").write_bytes(files["workshop/colab.ipynb"])
    graded = []

    def grade_one(submission, settings, only=None):
        graded.append((submission.student, submission.chapter))
        name = f"{submission.chapter}.1"
        return [batch.Row(submission.student, name, 1.0, 1, "right", "", submission.path)]

    monkeypatch.setattr(batch, "grade_one", grade_one)
    settings = batch.Settings(seed="s", walled=False, jobs=1)
    wanted = [("anna", "01.1"), ("anna", "03.1"), ("ben", "01.1"), ("ben", "03.1")]
    with journal.Journal(tmp_path / "notes") as notes:
        for _ in range(2):
            result = batch.grade(folder, notes, settings)
            assert [(row.student, row.exercise) for row in result.rows] == wanted
    assert len(graded) == 4  # the second run takes all of them from the journal


def test_grading_reads_the_line_that_begins_a_part_for_every_chapter():
    for path in paths.chapters(COURSE / "notebooks"):
        number = paths.chapter_number(path.name)
        line = colab.PART.format(what="Chapter", number=number)
        assert submissions._PART.match(line).groups() == ("Chapter", number)
        (link,) = colab.LINK.finditer(f"[a](../notebooks/{path.name})")
        assert link[2] == f"../notebooks/{path.name}"


@pytest.mark.parametrize("number", ["3", "99", "aa", "03 "])
def test_a_part_that_no_pack_has_written_changes_nothing(number, files, tmp_path):
    """Whoever writes such a line into a notebook gets no chapter that is not there."""
    text = files["workshop/exercises/03_ddpm.ipynb"].decode()
    changed = json.loads(text)
    line = f"# Exercises of chapter {number}: begins afresh\n"
    changed["cells"].insert(0, nbformat.v4.new_code_cell(line))
    (tmp_path / "ben.ipynb").write_text(json.dumps(changed))
    found, refused = submissions.collect(tmp_path, answers.chapters())
    assert [s.chapter for s in found] == ["03"] and refused == []
    assert len(found[0].cells) == len(changed["cells"])


def test_a_chapter_that_comes_twice_counts_once(files, tmp_path):
    twice = json.loads(files["workshop/colab.ipynb"])
    twice["cells"] *= 2
    (tmp_path / "cleo.ipynb").write_text(json.dumps(twice))
    found, refused = submissions.collect(tmp_path, answers.chapters())
    assert [s.chapter for s in found] == ["01", "03"] and refused == []
