"""Folders of submissions, none of them trusted, and the student notebooks they come from."""

import json
import os
import re

import nbformat
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from oracles import examples

from diffusion_course.grading import answers, assign
from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.submissions import (
    Cell,
    Unreadable,
    answer_cells,
    collect,
    excerpt,
    read,
    setup_cells,
)

many = settings(examples, max_examples=100)


def exercise(name, function):
    return Exercise(name, "A test", function, (Part("all", 2, lambda rng: []),), lambda x: x)


HALVE, WHY = exercise("01.1", "halve"), Written("01.2", "Why?", 3)
DOUBLE, DDPM = exercise("03.1", "double"), exercise("03.2", "ddpm")
CHAPTERS = {"01": (HALVE, WHY), "03": (DOUBLE, DDPM)}


def answer(wanted, source=None):
    """An answer cell as students get it."""
    source = source or f"def {wanted.function}(x):\n    return x"
    cell = new_code_cell(source)
    cell.metadata["nbgrader"] = {"grade_id": assign.grade_id("answer", wanted.id)}
    return cell


def written(text):
    cell = new_markdown_cell(text)
    cell.metadata["nbgrader"] = {"grade_id": assign.grade_id("written", WHY.id)}
    return cell


def content(*cells):
    return nbformat.writes(new_notebook(cells=list(cells)))


FIRST, THIRD = content(answer(HALVE), written("Because.")), content(answer(DOUBLE), answer(DDPM))


@pytest.fixture
def hand_in(tmp_path):
    """Writes a file below the folder of submissions; returns what is collected of them all."""
    folder = tmp_path / "submissions"
    folder.mkdir()

    def add(path, text=None, **options):
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        return collect(folder, CHAPTERS, **options)

    add.folder = folder
    return add


def found_in(collected):
    return [(s.student, s.chapter, s.path) for s in collected[0]]


def reason(collected):
    """Why the only file is refused."""
    found, (refused,) = collected
    assert not found and refused.status == "unreadable"
    return refused.message


# ------------------------------------------------------------------------- whose, and which


def test_one_notebook_per_student(hand_in):
    hand_in("bert.ipynb", THIRD)
    found, refused = hand_in("anna.ipynb", FIRST)
    assert found_in((found, refused)) == [
        ("anna", "01", "anna.ipynb"),
        ("bert", "03", "bert.ipynb"),
    ]
    assert refused == [] and found[0].sha256 != found[1].sha256


def test_one_folder_per_student(hand_in):
    hand_in("anna/01_forward.ipynb", FIRST)
    hand_in("anna/deep/below/03_ddpm.ipynb", THIRD)
    collected = hand_in("bert/01_forward.ipynb", FIRST)
    assert found_in(collected) == [
        ("anna", "01", "anna/01_forward.ipynb"),
        ("anna", "03", "anna/deep/below/03_ddpm.ipynb"),
        ("bert", "01", "bert/01_forward.ipynb"),
    ]


def test_notebooks_and_folders_may_be_mixed(hand_in):
    hand_in("anna.ipynb", FIRST)
    collected = hand_in("bert/01_forward.ipynb", FIRST)
    assert [s for s, *_ in found_in(collected)] == ["anna", "bert"]


def test_one_chapter_may_be_asked_for(hand_in):
    hand_in("anna/01.ipynb", FIRST)
    hand_in("bert/01.ipynb", "not json")
    found, refused = hand_in("anna/03.ipynb", THIRD, wanted="03")
    assert [s.chapter for s in found] == ["03"]
    assert [r.student for r in refused] == ["bert"]  # whatever it was meant to be


def test_a_renamed_notebook_is_recognised_by_its_cells(hand_in):
    assert found_in(hand_in("anna/01_final_FINAL.ipynb", THIRD))[0][1] == "03"


def test_a_notebook_without_answers_is_recognised_by_its_name(hand_in):
    found, _ = hand_in("anna/03_ddpm.ipynb", content(new_code_cell("x = 1")))
    assert found[0].chapter == "03"
    assert answer_cells(found[0].cells, DOUBLE) == []


@pytest.mark.parametrize("name", ["homework.ipynb", "02_other.ipynb", "99.ipynb", "٠١.ipynb"])
def test_a_notebook_of_no_chapter_is_refused(hand_in, name):
    text = reason(hand_in(f"anna/{name}", content(new_code_cell("x = 1"))))
    assert text == "no exercise of the course is in it"


@pytest.mark.parametrize(
    "source",
    [
        "def halve(x):\n    return x / 2",
        "import numpy as np\n\n@np.vectorize\ndef halve(x):\n    return x / 2",
        "halve = lambda x: x / 2",
        "%time\ndef halve(x):\n    return x / 2",
        "!pip install x\nhalve = make()",
    ],
)
def test_where_metadata_is_lost_an_answer_is_found_by_its_functions_name(hand_in, source):
    others = [new_code_cell(s) for s in ("halve(3)", "x = 'def halve(x)'", "def halves(): ...")]
    found, _ = hand_in("anna.ipynb", content(new_code_cell(source), *others))
    assert found[0].chapter == "01"
    (cell,) = answer_cells(found[0].cells, HALVE)
    assert cell.source == source and cell.grade_id == ""


def test_metadata_goes_before_the_functions_name(hand_in):
    draft = new_code_cell("def halve(x):\n    return x")
    found, _ = hand_in("anna.ipynb", content(draft, answer(HALVE, "def halve(x): return x / 2")))
    (cell,) = answer_cells(found[0].cells, HALVE)
    assert cell.source.endswith("x / 2")


def test_an_answer_that_was_turned_into_text_is_none(hand_in):
    text = new_markdown_cell("def halve(x): ...", metadata=answer(HALVE).metadata)
    found, _ = hand_in("anna/01.ipynb", content(text, written("x")))
    assert answer_cells(found[0].cells, HALVE) == []


def test_a_missing_exercise_has_no_cells(hand_in):
    found, _ = hand_in("anna.ipynb", content(answer(DDPM)))
    assert answer_cells(found[0].cells, DOUBLE) == []
    assert len(answer_cells(found[0].cells, DDPM)) == 1


@pytest.mark.parametrize(
    "name", ["03_ddpm (1).ipynb", "Copy of 03_ddpm.ipynb", "03_ddpm-Copy1.ipynb", "x/03_ddpm.ipynb"]
)
def test_of_two_notebooks_of_a_chapter_one_is_graded_and_the_other_named(hand_in, name):
    hand_in(f"anna/{name}", THIRD + " ")
    found, (refused,) = hand_in("anna/03_ddpm.ipynb", THIRD)
    assert found_in((found, [])) == [("anna", "03", "anna/03_ddpm.ipynb")]
    assert (refused.student, refused.path, refused.status) == ("anna", f"anna/{name}", "duplicate")
    assert "anna/03_ddpm.ipynb is this student's notebook of chapter 03" in refused.message


@pytest.mark.parametrize(
    ("start", "student"),
    [
        ("Anna Lee_12345_assignsubmission_file_/", "Anna Lee"),
        ("Anna Lee_12345_assignsubmission_file_", "Anna Lee"),
        ("leeanna_12345_67890_", "leeanna"),
        ("Homework_alee_attempt_2026-01-01-10-00-00_", "alee"),
    ],
)
def test_downloads_of_learning_platforms_are_one_student_each(hand_in, start, student):
    hand_in(start + "01_forward.ipynb", FIRST)
    hand_in(start + "03_empty.ipynb", content(new_code_cell("x = 1")))  # known by its name only
    found, refused = hand_in(start + "notes.txt", "x")
    assert [(s.student, s.chapter) for s in found] == [(student, "01"), (student, "03")]
    assert [r.student for r in refused] == [student]


def test_of_several_attempts_the_last_is_graded(hand_in):
    for day, text in (("02", THIRD + " "), ("01", THIRD), ("03", THIRD + "  ")):
        hand_in(f"HW_anna_attempt_2026-01-{day}-10-00-00_03.ipynb", text)
    found, refused = hand_in("")
    assert [s.path for s in found] == ["HW_anna_attempt_2026-01-03-10-00-00_03.ipynb"]
    assert {r.status for r in refused} == {"duplicate"} and len(refused) == 2


def test_thousands_of_files_have_a_hundred_rows(hand_in):
    hand_in("bert/x.txt", "x")
    for n in range(1000):
        hand_in.folder.joinpath("bert", f"{n}.txt").touch()
    hand_in("anna/y.txt", "y")
    _, refused = hand_in("carl.ipynb", FIRST)
    assert [r.student for r in refused] == ["anna"] + ["bert"] * 101
    assert refused[-1].message == "and 901 other files of this student"


def test_an_empty_folder_holds_nothing(hand_in):
    assert hand_in("") == ([], [])


# -------------------------------------------------------------------------- no notebooks


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("def halve(x): ...", "not JSON"),
        (FIRST[:-20], "not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00", "not JSON"),
        (b"PK\x03\x04" + bytes(60), "not JSON"),
        (FIRST.encode() + b"\xff", "not JSON"),
        (b'"\xe9"', "not JSON"),
        ("[" * 10**6, "not JSON"),
        ('{"cells": ' * 10**5, "not JSON"),
        ('{"cells": ' + "9" * 10**5 + "}", "not JSON"),
        ("[]", "no list of cells"),
        ("null", "no list of cells"),
        ('"cells"', "no list of cells"),
        ("{}", "no list of cells"),
        ('{"cells": {}}', "no list of cells"),
        ('{"cells": null}', "no list of cells"),
        ('{"worksheets": [{"cells": []}], "nbformat": 3}', "format 4"),
        ('{"cells": [7]}', "cell 1 is malformed"),
        ('{"cells": [{"cell_type": "code"}, {}]}', "cell 2 is malformed"),
        ('{"cells": [{"cell_type": 1, "source": ""}]}', "cell 1 is malformed"),
        ('{"cells": [{"cell_type": "code", "source": 3}]}', "cell 1 is malformed"),
        ('{"cells": [{"cell_type": "code", "source": ["a", 1]}]}', "cell 1 is malformed"),
        ('{"cells": [{"cell_type": "code", "source": null}]}', "cell 1 is malformed"),
        ('{"cells": []}', "no exercise of the course"),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_notebook_is_refused_with_the_reason(hand_in, text, says):
    assert says in reason(hand_in("anna.ipynb", text))


def test_odd_metadata_is_no_metadata(hand_in):
    cells = [
        {"cell_type": "code", "source": "def halve(x): ...", "metadata": metadata}
        for metadata in (None, [], "nbgrader", {"nbgrader": []}, {"nbgrader": {"grade_id": 7}},
                         {"tags": "setup"}, {"tags": {"setup": 1}}, {"tags": [["setup"]]})
    ]  # fmt: skip
    found, _ = hand_in("anna.ipynb", json.dumps({"cells": cells}))
    assert {(c.grade_id, c.setup) for c in found[0].cells} == {("", False)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_what_an_editor_saved_in_another_unicode_encoding_is_read(encoding):
    text = content(written("Größe β"))
    assert read(text.encode(encoding))[0].source == "Größe β"


def test_a_file_that_is_too_large_is_not_read(hand_in):
    hand_in("anna.ipynb", "")
    os.truncate(hand_in.folder / "anna.ipynb", 21_000_000)  # takes no room on the disk
    assert reason(hand_in("")) == "21 MB: larger than 20 MB"


def test_a_file_with_another_ending_is_named(hand_in):
    assert "does not end in .ipynb" in reason(hand_in("anna/answers.txt", FIRST))


def test_a_link_to_a_file_elsewhere_is_not_followed(hand_in, tmp_path):
    (tmp_path / "secret.ipynb").write_text(FIRST)
    (hand_in.folder / "anna.ipynb").symlink_to(tmp_path / "secret.ipynb")
    assert reason(hand_in("")) == "not an ordinary file"


def test_a_link_to_nothing_or_to_itself_is_refused(hand_in):
    (hand_in.folder / "anna.ipynb").symlink_to("anna.ipynb")
    (hand_in.folder / "bert.ipynb").symlink_to("nowhere.ipynb")
    found, refused = hand_in("")
    assert not found and {r.message for r in refused} == {"not an ordinary file"}


def test_a_link_to_a_folder_is_not_entered(hand_in, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "01.ipynb").write_text(FIRST)
    (hand_in.folder / "anna").symlink_to(tmp_path / "others")
    (hand_in.folder / "bert.ipynb").symlink_to(hand_in.folder)
    found, refused = hand_in("")
    assert found == [] and [r.student for r in refused] == ["anna", "bert"]


def test_a_pipe_is_not_waited_for(hand_in):
    os.mkfifo(hand_in.folder / "anna.ipynb")
    assert reason(hand_in("")) == "not an ordinary file"


def test_a_folder_that_is_called_like_a_notebook_is_a_folder(hand_in):
    (hand_in.folder / "empty.ipynb").mkdir()
    found, refused = hand_in("anna.ipynb/01.ipynb", FIRST)
    assert found_in((found, [])) == [("anna.ipynb", "01", "anna.ipynb/01.ipynb")]
    assert [(r.student, r.status) for r in refused] == [("empty.ipynb", "missing")]


@pytest.mark.parametrize(
    "path",
    [
        "anna/.ipynb_checkpoints/01-checkpoint.ipynb",
        ".ipynb_checkpoints/01-checkpoint.ipynb",
        "anna/.01.ipynb",
        "anna/._01.ipynb",
        ".DS_Store",
        ".git/config.ipynb",
        "__MACOSX/anna/01.ipynb",
        "anna/__pycache__/x.pyc",
        "anna/deep/below/.hidden",
    ],
)
def test_hidden_and_temporary_files_are_skipped_and_whose_folder_holds_no_other_has_a_row(
    hand_in, path
):
    found, refused = hand_in(path, FIRST)
    rows = [(r.student, r.path, r.status) for r in refused]
    assert not found and rows == ([("anna", "anna", "missing")] if path[:4] == "anna" else [])


def test_whoever_handed_in_nothing_or_another_chapter_has_a_row(hand_in):
    (hand_in.folder / "empty").mkdir()
    (hand_in.folder / "Anna Lee_7_assignsubmission_file_").mkdir()
    hand_in("bert.ipynb", THIRD)
    hand_in("carl/01.ipynb", FIRST)
    found, refused = hand_in("dora.ipynb", "not json", wanted="03")
    assert [s.student for s in found] == ["bert"]
    assert [(r.student, r.path, r.status) for r in refused] == [
        ("carl", "", "missing"),
        ("Anna Lee", "Anna Lee_7_assignsubmission_file_", "missing"),
        ("dora", "dora.ipynb", "unreadable"),
        ("empty", "empty", "missing"),
    ]
    assert refused[0].message == "no notebook of chapter 03"


def test_a_folder_of_submissions_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(OSError):
        collect(tmp_path / "gone", CHAPTERS)


@pytest.mark.parametrize(
    "other", ["anna\u200b", "anna\xa0", " anna", "anna\n", "\u202eanna", "ａnna"]
)
def test_students_whose_names_look_alike_keep_their_own_points(hand_in, other):
    hand_in(f"{other}.ipynb", THIRD)
    found, refused = hand_in("anna.ipynb", FIRST)
    assert {s.chapter: s.student for s in found} == {"01": "anna", "03": f"{printed(other)} (2)"}
    assert not refused and all(s.path.isprintable() for s in found)
    assert len({s.path for s in found}) == 2


def printed(name):
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def test_a_file_beside_a_students_folder_is_not_that_students(hand_in):
    hand_in("alice/03.ipynb", THIRD)
    found, refused = hand_in("alice.ipynb", content(answer(DOUBLE, "def double(x): return 0")))
    assert {s.path: s.student for s in found} == {
        "alice/03.ipynb": "alice",
        "alice.ipynb": "alice (alice.ipynb)",
    }
    assert refused == []


def test_files_whose_printed_names_are_one_are_graded_each(hand_in):
    for name in ("M\udcfc.ipynb", "M\\udcfc.ipynb"):
        hand_in(name, FIRST)
    found, _ = hand_in("")
    assert len(found) == len({s.path for s in found}) == len({s.student for s in found}) == 2


def test_of_long_texts_only_the_beginning_is_kept(hand_in):
    text = "x" * 6_000_000
    cells = [new_markdown_cell(text), written(text), new_code_cell("y = 1")]
    cells[2].metadata["nbgrader"] = {"grade_id": text}
    for name in ("anna", "bert"):
        hand_in(f"{name}/01.ipynb", content(*cells))
    found, refused = hand_in("")
    assert len(found) == 2 and not refused
    assert sum(len(c.source) + len(c.grade_id) for s in found for c in s.cells) < 10_000
    assert excerpt(found[0].cells, WHY).startswith("xxx")
    many_texts = content(*[written("x" * 4000) for _ in range(21)])
    assert "too many of them are written answers" in hand_in("carl.ipynb", many_texts)[1][0].message


def test_a_hidden_folder_of_submissions_is_read(hand_in, tmp_path):
    hand_in("anna.ipynb", FIRST)
    hidden = hand_in.folder.rename(tmp_path / ".hidden")
    assert len(collect(hidden, CHAPTERS)[0]) == 1


NAMES = ["Anna B Schmidt", "Jürgen Müßig", "毛泽东", "a\nb", "=cmd|'calc'!A0", "-1", "$x_1$",
         "'", "a;b,c", "<script>alert(1)<script>"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_student_may_have_any_name(hand_in, name):
    shown = name.replace("\n", " ")
    assert found_in(hand_in(f"{name}.ipynb", FIRST)) == [(shown, "01", f"{shown}.ipynb")]
    (hand_in.folder / f"{name}.ipynb").unlink()
    assert found_in(hand_in(f"{name}/my work.ipynb", FIRST))[0][0] == shown


def test_names_that_are_no_utf8_stay_apart_and_can_be_written(hand_in):
    for name in (b"M\xfcller", b"M\xf6ller"):
        with open(os.fsencode(hand_in.folder) + b"/" + name + b".ipynb", "w") as file:
            file.write(FIRST)
    found, refused = hand_in("")
    assert len({s.student for s in found}) == 2 and refused == []
    for submission in found:
        (submission.student + submission.path).encode("utf-8")


@pytest.mark.parametrize("text", ["\ud800", "é\udcff"])
def test_half_a_character_in_an_answer_can_be_written(text):
    cells = [{"cell_type": "markdown", "source": text, "metadata": written("").metadata}]
    excerpt(read(json.dumps({"cells": cells}).encode()), WHY).encode("utf-8")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cells", "cell_type", "source", "metadata", "nbgrader", "grade_id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
cells = st.fixed_dictionaries(
    {"cell_type": st.sampled_from(["code", "markdown"]) | json_values, "source": json_values},
    optional={"metadata": json_values},
)
notebooks = st.fixed_dictionaries({"cells": st.lists(cells | json_values, max_size=3)})


@many
@given(st.binary(max_size=200) | (notebooks | json_values).map(lambda v: json.dumps(v).encode()))
@example(b"[" * 10**6)
@example(b'{"cells": [{"cell_type": "code", "source": "\\ud800"}]}')
def test_any_bytes_are_cells_or_unreadable(text):
    try:
        found = read(text)
    except Unreadable:
        return
    assert all(isinstance(cell, Cell) for cell in found)
    for wanted in (HALVE, WHY):
        answer_cells(found, wanted)
    setup_cells(found)
    excerpt(found, WHY).encode("utf-8")


@many
@given(st.text(max_size=60) | st.sampled_from(["(" * 10**4, "-" * 10**5, "halve = " * 9000]))
def test_any_source_may_be_searched_for_a_function(source):
    answer_cells((Cell("code", f"halve\n{source}", "", False),), HALVE)


# ----------------------------------------------------------------- written answers and setup


def test_a_written_answer_is_shown_on_one_line():
    found = read(content(written("## Why\n\nBecause  it\nis."), new_markdown_cell("x")).encode())
    assert excerpt(found, WHY) == "## Why Because it is."


def test_a_long_answer_is_cut():
    text = excerpt(read(content(written("words " * 100)).encode()), WHY)
    assert len(text) == 200 and text.endswith("…")


def test_without_its_cell_there_is_no_written_answer():
    assert excerpt(read(FIRST.replace("written-01-2", "other").encode()), WHY) == ""


def setup(source):
    return new_code_cell(source, metadata={"tags": ["setup"]})


def test_setup_cells_are_the_tagged_ones():
    found = read(content(new_code_cell("import os"), setup("a = 1"), setup("b = 2")).encode())
    assert [c.source for c in setup_cells(found)] == ["a = 1", "b = 2"]


def test_where_tags_are_lost_the_first_cells_with_imports_are_the_setup():
    sources = ["x = 0", "import jax", "from math import pi", "import late"]
    parts = [answer(HALVE, "import os"), *map(new_code_cell, sources), new_markdown_cell("import")]
    found = setup_cells(read(content(*parts).encode()))
    assert [c.source for c in found] == ["import jax", "from math import pi"]


# --------------------------------------------------------- masters and student notebooks

SOLUTION = """def halve(x):
    half = 0.5
    ### BEGIN SOLUTION return an array of x's shape
    secret = half * x
    return secret
    ### END SOLUTION"""


@pytest.fixture
def course(monkeypatch):
    monkeypatch.setattr(answers, "chapters", lambda: CHAPTERS)


def source_cell(make, source, **header):
    return make(source, metadata=header)


def master():
    """A master as it is read from its source, every cell with its metadata."""
    notebook = new_notebook(
        metadata={
            "jupytext": {"formats": "ipynb,source//py:percent"},
            "language_info": {"name": "python"},
        },
        cells=[
            source_cell(new_code_cell, "import numpy as np", role="setup"),
            source_cell(new_code_cell, SOLUTION, role="answer", exercise="01.1"),
            source_cell(new_code_cell, 'check("01.1", halve)', role="check", exercise="01.1"),
            source_cell(
                new_markdown_cell,
                "### BEGIN SOLUTION\nHalf of it.\n### END SOLUTION",
                role="written",
                exercise="01.2",
            ),
            new_markdown_cell("The end."),
        ],
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        assign.expand(cell)
        if cell.cell_type == "code":
            cell.execution_count = 3
            cell.outputs = [new_output("stream", text="secret output\n")]
    return notebook


def test_the_metadata_is_nbgraders(course):
    cells = master().cells
    found = [c.metadata["nbgrader"] for c in cells if "nbgrader" in c.metadata]
    names = [data["grade_id"] for data in found]
    assert names == ["answer-01-1", "check-01-1", "written-01-2"]
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-]+", name) for name in names)
    # nbgrader's kinds: an answer is filled in, a check is read-only, a written one is both.
    kinds = [tuple(data[k] for k in ("solution", "grade", "locked", "task")) for data in found]
    assert kinds == [
        (True, False, False, False),
        (False, True, True, False),
        (True, True, False, False),
    ]
    assert [data.get("points") for data in found] == [None, 2, 3]
    assert [data["cell_type"] for data in found] == ["code", "code", "markdown"]
    assert {data["schema_version"] for data in found} == {3}
    assert cells[0].metadata == {"tags": ["setup"]} and cells[4].metadata == {}


def test_names_of_cells_are_unique_over_the_course():
    wanted = [e.id for group in CHAPTERS.values() for e in group]
    names = [assign.grade_id(role, e) for role in assign.ROLES for e in wanted]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"role": "solution", "exercise": "01.1"}, "role must be one of .* got 'solution'"),
        ({"role": "answer"}, "role must be one of"),
        ({"exercise": "01.1"}, "got None"),
        ({"role": "answer", "exercise": "01.9"}, r"exercise must be one of .* got '01\.9'"),
        ({"role": "check", "exercise": "1.1"}, r"exercise must be one of .* got '1\.1'"),
    ],
)
def test_an_unknown_role_or_exercise_is_refused(course, header, says):
    with pytest.raises(ValueError, match=says):
        assign.expand(source_cell(new_code_cell, "", **header))


def test_students_get_no_solution_and_no_output(course):
    student = assign.student_version(master())
    text = nbformat.writes(student)
    assert "secret" not in text and "SOLUTION" not in text and "Half of it" not in text
    assert all(c.execution_count is None for c in student.cells if c.cell_type == "code")
    assert student.cells[1].source == (
        "def halve(x):\n    half = 0.5\n"
        '    raise NotImplementedError("return an array of x\'s shape")'
    )
    assert student.cells[3].source == assign.PROMPT
    assert "jupytext" not in student.metadata


def test_students_get_the_same_cells_and_the_master_stays_as_it_is(course):
    original = master()
    before = nbformat.writes(original)
    student = assign.student_version(original)
    assert [c.id for c in student.cells] == [c.id for c in original.cells]
    assert [c.metadata for c in student.cells] == [c.metadata for c in original.cells]
    assert student.cells[0].source == original.cells[0].source
    assert nbformat.writes(original) == before


def test_a_stub_is_valid_python_that_raises(course):
    space = {}
    exec(assign.student_version(master()).cells[1].source, space)
    with pytest.raises(NotImplementedError, match="return an array of x's shape"):
        space["halve"](3.0)


def test_a_solution_may_have_several_pieces(course):
    notebook = master()
    notebook.cells[1].source = f"{SOLUTION}\n\nkept = 1\n\n{SOLUTION}"
    text = assign.student_version(notebook).cells[1].source
    assert text.count("raise NotImplementedError") == 2 and "kept = 1" in text


BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


@pytest.mark.parametrize(
    "marks",
    [[], [BEGIN], [END], [END, BEGIN], [BEGIN, BEGIN, END], [BEGIN, END, END], [BEGIN, END, BEGIN]],
)
def test_marks_that_do_not_pair_up_are_refused(course, marks):
    notebook = master()
    notebook.cells[1].source = "\n".join(f"{mark}\nx = 1" for mark in marks)
    with pytest.raises(ValueError, match=r"cell cell-1.* BEGIN .*END SOLUTION"):
        assign.student_version(notebook)


def test_a_stub_s_message_may_hold_quotes_and_backslashes(course):
    notebook, message = master(), r'return "β\alpha", an array'
    notebook.cells[1].source = f"def halve(x):\n    {BEGIN} {message}\n    x\n    {END}"
    space = {}
    exec(assign.student_version(notebook).cells[1].source, space)
    with pytest.raises(NotImplementedError) as raised:
        space["halve"](1)
    assert str(raised.value) == message


@pytest.mark.parametrize("cell", [0, 2, 4])
def test_marks_in_a_cell_that_is_no_answer_are_refused(course, cell):
    notebook = master()
    notebook.cells[cell].source = SOLUTION
    with pytest.raises(ValueError, match=f"cell cell-{cell} holds a solution's mark"):
        assign.student_version(notebook)


@pytest.fixture
def folder(course, tmp_path):
    """A course folder with one master."""
    (tmp_path / "solutions").mkdir()
    nbformat.write(master(), tmp_path / "solutions" / "01_forward.ipynb")
    return tmp_path


def test_exercises_are_written_byte_by_byte_the_same_twice(folder):
    (path,) = assign.write_exercises(folder)
    first = path.read_bytes()
    assert path == folder / "exercises" / "01_forward.ipynb" and first.endswith(b"}\n")
    assert assign.write_exercises(folder) == [path] and path.read_bytes() == first
    nbformat.validate(nbformat.read(path, as_version=4))


def test_a_crash_leaves_the_exercise_of_before(folder, monkeypatch):
    (path,) = assign.write_exercises(folder)
    first = path.read_bytes()
    changed = master()
    changed.cells[0].source += "\n# changed"
    nbformat.write(changed, folder / "solutions" / "01_forward.ipynb")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        assign.write_exercises(folder)
    assert list((folder / "exercises").iterdir()) == [path] and path.read_bytes() == first


def test_an_exercise_whose_master_is_gone_is_removed_and_nothing_else(folder):
    (folder / "exercises").mkdir()
    for name in ("02_gone.ipynb", "README.md", "notes.ipynb"):
        (folder / "exercises" / name).write_text("x")
    assign.write_exercises(folder)
    left = sorted(path.name for path in (folder / "exercises").iterdir())
    assert left == ["01_forward.ipynb", "README.md", "notes.ipynb"]


def test_an_exercise_that_is_handed_in_untouched_is_recognised(folder):
    assign.write_exercises(folder)
    (submission,), refused = collect(folder / "exercises", CHAPTERS)
    assert submission.chapter == "01" and refused == []
    assert len(answer_cells(submission.cells, HALVE)) == 1
    assert excerpt(submission.cells, WHY) == assign.PROMPT
    assert [c.source for c in setup_cells(submission.cells)] == ["import numpy as np"]
