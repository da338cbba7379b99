"""The workshop's archive: what is in it and what is not, its wheel, its page, its commands."""

import base64
import hashlib
import io
import json
import re
import shutil
import zipfile
from importlib import metadata
from types import SimpleNamespace

import nbformat
import pytest
from packs import COURSE, WHEEL, code, command, notebook, packed

from diffusion_course import paths
from diffusion_course.app import cli, colab, pack, runner, table, wheel
from diffusion_course.grading import answers


@pytest.fixture(scope="module")
def files():
    return packed()


@pytest.fixture(scope="module")
def wheel_files(files):
    (name,) = (name for name in files if name.endswith(".whl"))
    archive = zipfile.ZipFile(io.BytesIO(files[name]))
    assert archive.testzip() is None
    return {name: archive.read(name) for name in archive.namelist()}


# What is in it


def test_a_pack_holds_the_chosen_chapters_in_the_courses_order_and_nothing_else(files):
    names = [name.removeprefix("workshop/") for name in files]
    version = metadata.version("diffusion-course")
    assert names == [
        "README.md",
        f"diffusion_course-{version}-1workshop-py3-none-any.whl",
        "colab.ipynb",
        "notebooks/01_forward_process.ipynb",
        "exercises/01_forward_process.ipynb",
        "notebooks/03_ddpm.ipynb",
        "exercises/03_ddpm.ipynb",
    ]


def test_the_same_course_gives_the_same_bytes_at_any_time(monkeypatch):
    files = {"a.py": b"text", "b.whl": b"wheel"}
    first = wheel.archive(files)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert wheel.archive(files) == first != wheel.archive({"a.py": b"texts", "b.whl": b"wheel"})
    for entry in zipfile.ZipFile(io.BytesIO(first)).infolist():
        assert (entry.date_time, entry.create_system) == ((1980, 1, 1, 0, 0, 0), 3)
        assert entry.external_attr == 0o100644 << 16
    monkeypatch.setattr(wheel, "wheel", lambda: (WHEEL, b"wheel"))
    packed = pack.pack(COURSE, ["03", "12", "00_start", "9", "5"])
    assert packed == pack.pack(COURSE, ["5", "3", "0", "09", "12", "05"])
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    chapters = [name[19:21] for name in names if name.startswith("workshop/notebooks/")]
    assert chapters == ["00", "03", "05", "09", "12"]


def test_no_solution_is_in_it_but_what_every_installation_holds(files, wheel_files):
    """Every line of a solution that the stub does not have is missing from the exercises."""
    shown = {name: data.decode() for name, data in files.items() if not name.endswith(".whl")}
    assert not [name for name, text in shown.items() if "SOLUTION" in text]
    assert not [name for name in wheel_files if re.search(r"solutions|tests|ipynb|\.pyc", name)]
    for name in ("01_forward_process", "03_ddpm"):
        master = nbformat.read(COURSE / "solutions" / f"{name}.ipynb", as_version=4)
        given = "\n".join(c.source for c in notebook(files, f"exercises/{name}.ipynb").cells)
        solved = [c for c in code(master.cells) if "### BEGIN SOLUTION" in c]
        lines = [line.strip() for c in solved for line in _solution(c)]
        assert len(lines) > 10
        assert not [line for line in lines if len(line) > 25 and line in given]
    # Every exercise is there with its stub.
    stubs = code(notebook(files, "colab.ipynb").cells)
    for exercise in (*answers.chapters()["01"], *answers.chapters()["03"]):
        if function := getattr(exercise, "function", None):
            assert [c for c in stubs if f"def {function}(" in c and "NotImplementedError" in c]


def _solution(cell):
    return re.search(r"### BEGIN SOLUTION.*?\n(.*)### END SOLUTION", cell, re.S)[1].splitlines()


def test_links_lead_to_what_is_packed_or_are_text(files):
    solved = notebook(files, "exercises/01_forward_process.ipynb").cells
    text = "\n".join(cell.source for cell in solved)
    assert "](../notebooks/01_forward_process.ipynb)" in text
    assert "02_denoising.ipynb" not in text and "hapter 02" in text
    assert not re.search(r"\]\([^)]*ipynb\)", json.dumps(notebook(files, "colab.ipynb").cells))
    assert colab._linked("[the page](../docs/a-page.md#part).", "notebooks", []) == "the page."


def test_only_links_to_notebooks_are_changed():
    text = (
        "[a](02_x.ipynb) [b](../exercises/01_y.ipynb) ![c](01_y.ipynb) [d](https://x.org/a.ipynb)"
    )
    changed = colab._linked(text, "notebooks", ["exercises/01_y.ipynb", "notebooks/02_z.ipynb"])
    assert changed == ("a [b](../exercises/01_y.ipynb) ![c](01_y.ipynb) [d](https://x.org/a.ipynb)")
    assert colab._linked("[a](02_x.ipynb)", "exercises", ["notebooks/02_x.ipynb"]) == "a"


NESTED = pytest.param("[" * 100_000, id="nested without end")


@pytest.mark.parametrize(
    "text",
    ["no notebook", "{}", "[1]", '{"cells": 5}', '{"cells": [{"source": "x"}]}', NESTED],
)
def test_a_damaged_notebook_is_told_with_the_remedy(text, tmp_path):
    (tmp_path / "01_x.ipynb").write_text(text)
    with pytest.raises(runner.Mistake, match=r"01_x\.ipynb is no notebook; get a new copy"):
        runner.read_json(tmp_path / "01_x.ipynb")


WHOLE = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell(colab.SETUP)]
)


@pytest.mark.parametrize(
    "place, value",
    [
        (["metadata"], None),
        (["nbformat_minor"], None),
        (["cells", 0, "metadata"], None),
        (["cells", 0, "source"], [1, 2]),
        (["cells", 0, "cell_type"], "weird"),
        (["cells", 1, "outputs"], None),
    ],
)
@pytest.mark.parametrize("reader", [runner.read_json, runner.read])
def test_a_notebook_that_is_damaged_anywhere_is_refused_by_both_readers(
    reader, place, value, tmp_path
):
    file, notebook = tmp_path / "01_x.ipynb", json.loads(nbformat.writes(WHOLE))
    file.write_text(json.dumps(notebook))
    assert len(reader(file)["cells"]) == 2
    *before, last = place
    inner = notebook
    for key in before:
        inner = inner[key]
    inner[last] = value
    if value is None:
        del inner[last]
    file.write_text(json.dumps(notebook))
    with pytest.raises(runner.Mistake, match=r"01_x\.ipynb is no notebook; get a new copy"):
        reader(file)


@pytest.mark.parametrize("fault", [{"outputs": [5]}, {"outputs": ["text"]}])
def test_an_output_that_is_none_is_told_as_well(fault, tmp_path):
    notebook = json.loads(nbformat.writes(WHOLE))
    notebook["cells"][1] |= fault
    (tmp_path / "01_x.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(runner.Mistake, match=r"01_x\.ipynb is no notebook; get a new copy"):
        runner.read(tmp_path / "01_x.ipynb")


def test_a_raw_cell_stays_one_in_a_pack():
    notebook = json.loads(nbformat.writes(WHOLE))
    notebook["cells"].append(json.loads(json.dumps(nbformat.v4.new_raw_cell("x"))))
    joined = colab.joined([("Chapter", "01", notebook)], WHEEL, "A title")
    nbformat.validate(joined)
    assert joined["cells"][-1]["cell_type"] == "raw"


def test_small_faults_that_jupyter_mends_are_no_reason_to_throw_a_notebook_away(tmp_path):
    notebook = json.loads(nbformat.writes(WHOLE))
    notebook["nbformat_minor"] = 4  # which has no identities of cells
    notebook["metadata"]["kernelspec"] = {"name": "python3"}  # without a name for people
    (tmp_path / "01_x.ipynb").write_text(json.dumps(notebook))
    for reader in (runner.read_json, runner.read):
        assert len(reader(tmp_path / "01_x.ipynb")["cells"]) == 2


def test_what_colab_has_saved_is_packed_too(tmp_path):
    notebook = json.loads(nbformat.writes(WHOLE))
    for cell in notebook["cells"]:
        cell["metadata"] = {"id": cell.pop("id")}
    notebook["nbformat_minor"] = 0
    notebook["metadata"] = {"colab": {"provenance": []}}
    (tmp_path / "01_x.ipynb").write_text(json.dumps(notebook))
    read = runner.read_json(tmp_path / "01_x.ipynb")
    joined = colab.joined([("Chapter", "01", read), ("Exercises", "01", read)], WHEEL, "A title")
    nbformat.validate(joined)
    assert len({cell["id"] for cell in joined["cells"]}) == len(joined["cells"]) == 6


# The wheel


def test_what_a_build_leaves_in_the_source_tree_is_not_taken_for_the_installation(
    tmp_path, monkeypatch
):
    before = wheel.wheel()
    left = tmp_path / "diffusion_course.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: diffusion-course\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("diffusion-course") == "9"  # it is found first
    assert wheel.wheel() == before


def test_the_wheel_holds_the_package_and_its_record_is_right(wheel_files):
    root = COURSE / "diffusion_course"
    here = {p.relative_to(COURSE).as_posix() for p in root.rglob("*") if p.is_file()}
    here = {name for name in here if "__pycache__" not in name}
    assert {name for name in wheel_files if ".dist-info/" not in name} == here
    (record,) = (name for name in wheel_files if name.endswith("/RECORD"))
    rows = [row.split(",") for row in wheel_files[record].decode().splitlines()]
    assert {name for name, *_ in rows} == set(wheel_files)
    for name, digest, size in rows:
        if name != record:
            found = hashlib.sha256(wheel_files[name]).digest()
            assert digest == "sha256=" + base64.urlsafe_b64encode(found).decode().rstrip("=")
            assert int(size) == len(wheel_files[name])
    about = {name.split(".dist-info/")[1] for name in wheel_files if ".dist-info/" in name}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt"} <= about
    assert any(name.endswith("LICENSE") for name in about)  # the licence asks for it


def test_pyproject_packs_the_same_files_and_the_chapters(wheel_files):
    import tomllib

    tools = tomllib.loads((COURSE / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    data = {p.relative_to(COURSE / "diffusion_course").as_posix()
            for pattern in tools["package-data"]["diffusion_course"]
            for p in (COURSE / "diffusion_course").glob(pattern)}  # fmt: skip
    mine = {n.removeprefix("diffusion_course/") for n in wheel_files if ".dist-info/" not in n}
    assert {name for name in mine if not name.endswith(".py")} == data
    shared = {p.relative_to(COURSE).as_posix() for patterns in tools["data-files"].values()
              for pattern in patterns for p in COURSE.glob(pattern)}  # fmt: skip
    folders = (COURSE / "notebooks", COURSE / "exercises")
    chapters = {p.relative_to(COURSE).as_posix() for f in folders for p in paths.chapters(f)}
    assert shared == {"notebooks/chapters.toml", *chapters}


def test_a_course_that_is_not_installed_is_told_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(wheel.metadata, "distributions", lambda name: [])
    code, err = command(capsys, "pack", "03", "--out", str(tmp_path / "x.zip"))
    assert code == 2 and "not installed" in err and "make lab" in err
    assert not list(tmp_path.iterdir())


# The page for the room


def test_the_rooms_page_names_what_is_there_with_the_times_of_the_table(files):
    page = files["workshop/README.md"].decode()
    chapters, measured = table.read(COURSE)
    assert f"Measured on {measured}." in page
    assert page.index("notebooks/01_forward") < page.index("notebooks/03_ddpm")
    for name in ("01_forward_process", "03_ddpm"):
        assert (
            f"{chapters[name].title} | `notebooks/{name}.ipynb` | {chapters[name].warm:g} s |"
            in (page)
        )
    assert "| `exercises/03_ddpm.ipynb` | 115 min |" in page  # 15+10+10+10+15+20+20+15
    for name in re.findall(r"[\w/.-]+\.(?:ipynb|whl)", page):
        assert f"workshop/{name.removeprefix('./')}" in files, name
    assert "{" not in page


def test_every_command_of_the_rooms_page_is_one_of_the_courses(files):
    page = files["workshop/README.md"].decode()
    lines = re.findall(r"(?m)(?:^|[/\\`])diffusion-course ([^`\n]+)", page)
    assert len(lines) == 5
    for line in lines:
        cli.parser().parse_args(line.split())
    assert "doctor --workshop" in lines and "run 01" in lines


def test_a_chapter_without_time_or_exercises_has_its_row():
    page = pack.readme([table.Chapter("99_new", "New", None)], "somewhere", {}, WHEEL)
    assert "| 99 New | `notebooks/99_new.ipynb` | not measured | | |\n" in page
    assert "# Workshop: New\n" in page


def test_words_are_listed_as_one_says_them():
    assert [pack._list(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


# The commands


def test_pack_writes_a_file_and_does_not_replace_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pack, "pack", lambda course, names: f"{course.name} {names}".encode())
    out = tmp_path / "room.zip"
    assert command(capsys, "pack", "03", "7", "--out", str(out)) == (0, "")
    assert out.read_bytes().endswith(b" ['03', '7']")
    code, err = command(capsys, "pack", "01", "--out", str(out))
    assert code == 2 and "there already" in err and "--force" in err and err.count("\n") == 1
    assert out.read_bytes().endswith(b" ['03', '7']")
    assert command(capsys, "pack", "01", "--out", str(out), "--force") == (0, "")
    assert out.read_bytes().endswith(b" ['01']")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99"], "'99' is not a chapter; choose one of: 00_start_here, 01_forward_process"),
        (["03", "nope"], "'nope' is not a chapter"),
        (["0"], ""),
        (["03", "--out", "x.tar"], "ends in .zip"),
        (["03", "--out", "nowhere/x.zip"], "in a folder that exists"),
        (["03", "--course", "."], "no notebooks in ."),
        (["03", "22"], "chapter 22 needs a kernel of its own"),
    ],
)
def test_pack_says_in_one_line_what_it_cannot_use(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wheel, "wheel", lambda: (WHEEL, b"wheel"))
    code, err = command(capsys, "pack", *arguments)
    if not said:  # 0 is 00_start_here, which has no exercises
        assert (code, err) == (0, "")
        return
    assert code == 2 and said in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_told_in_one_line(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for text in ("[[part]", "measured = 'x'", "[[part]]\nchapter = 3\n"):
        (tmp_path / "notebooks" / "chapters.toml").write_text(text)
        with pytest.raises(runner.Mistake, match=r"chapters\.toml cannot be used"):
            table.read(tmp_path)
    with pytest.raises(runner.Mistake, match=r"chapters\.toml cannot be used \(FileNotFound"):
        table.read(tmp_path / "none")


# What pip alone brings


@pytest.fixture
def small(tmp_path):
    """A course of one chapter."""
    course = tmp_path / "course"
    for name in ("notebooks/01_a.ipynb", "exercises/01_a.ipynb", "notebooks/chapters.toml",
                 "solutions/01_a.ipynb", "notebooks/build.py"):  # fmt: skip
        path = course / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return course


def test_notebooks_copies_chapters_and_exercises_and_keeps_answers(small, tmp_path, capsys):
    room = tmp_path / "my room"
    copy = ["notebooks", str(room), "--course", str(small)]
    assert command(capsys, *copy) == (0, "")
    copied = sorted(p.relative_to(room).as_posix() for p in room.rglob("*") if p.is_file())
    assert copied == ["exercises/01_a.ipynb", "notebooks/01_a.ipynb", "notebooks/chapters.toml"]
    (room / "exercises" / "01_a.ipynb").write_text("my answers")
    (room / "notebooks" / "01_a.ipynb").unlink()
    code, err = command(capsys, *copy)
    assert code == 2 and "already there" in err and "--force" in err and err.count("\n") == 1
    assert not (room / "notebooks" / "01_a.ipynb").exists()  # all of it or nothing
    assert command(capsys, *copy, "--force") == (0, "")
    assert (room / "exercises" / "01_a.ipynb").read_text() == "exercises/01_a.ipynb"
    assert (room / "notebooks" / "01_a.ipynb").exists()
    assert cli.main(copy) == 0 and "wrote 0 files" in capsys.readouterr().out
    code, err = command(capsys, "notebooks", str(small), "--course", str(small))
    assert code == 2 and "the course itself" in err


def test_chapters_that_the_wheel_brought_are_found(small, tmp_path, monkeypatch):
    def nowhere(start=None):
        raise runner.Mistake("no notebooks")

    monkeypatch.setattr(runner, "course_folder", nowhere)
    monkeypatch.setattr(pack.paths, "source_tree", lambda: tmp_path / "site")
    monkeypatch.setattr(wheel, "installed", lambda: None)
    with pytest.raises(runner.Mistake):
        pack.course_folder()
    # pip install --target puts it beside the package …
    share = tmp_path / "site" / "share" / "diffusion-course"
    shutil.copytree(small, share)
    assert pack.course_folder() == share.resolve()
    with pytest.raises(runner.Mistake):  # whoever names a folder means that folder
        pack.course_folder("elsewhere")

    class Installed:  # … and an ordinary installation where its record says
        name = "chapters.toml"

        def locate(self):
            return small / "notebooks" / "chapters.toml"

    monkeypatch.setattr(wheel, "installed", lambda: SimpleNamespace(files=[Installed()]))
    assert pack.course_folder() == small.resolve()
