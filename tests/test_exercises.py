"""The exercises: the stub earns nothing, the solution everything, a mistake less, and says so."""

import ast
import importlib
import inspect
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from other_slips import SLIPS

from diffusion_course.grading import alone, answers, assign
from diffusion_course.grading.answers import writing
from diffusion_course.grading.arrays import as_result
from diffusion_course.grading.calling import call
from diffusion_course.grading.exercise import CALLED, Exercise, Written
from diffusion_course.grading.judging import Key

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
build = importlib.import_module("build")

CHAPTERS = answers.chapters()
EXERCISES = [e for group in CHAPTERS.values() for e in group if isinstance(e, Exercise)]
CHECKS = (0,)  # the seed of `check` in a notebook; batch grading has others

ALL = [e for group in CHAPTERS.values() for e in group]

each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)


@cache
def source(chapter):
    (path,) = (COURSE / "solutions" / "source").glob(f"{chapter}_*.py")
    return path


@cache
def master(chapter):
    return build.read_source(source(chapter))


def cell_of(notebook, role, exercise):
    wanted = assign.grade_id(role, exercise)
    (cell,) = (
        c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == wanted
    )
    return cell


@cache
def names_of(chapter):
    """What the setup cells of a chapter define."""
    space = {}
    for cell in master(chapter).cells:
        if cell.metadata.get("tags") == ["setup"]:
            exec(cell.source, space)
    return space


def defined(exercise, answer_source):
    """The exercise's function after a cell with this source."""
    space = dict(names_of(exercise.id[:2]))
    exec(answer_source, space)
    return space[exercise.function]


@cache
def key(exercise_id, seed=CHECKS):
    """Inputs and what is right on them, once for all answers to an exercise."""
    exercise = answers.find(exercise_id)
    return Key(exercise, exercise.cases(seed))


def verdict(exercise, answer_source, seeds=(CHECKS,)):
    """The verdicts on an answer cell with this source, on the inputs of each seed."""
    function = defined(exercise, answer_source)
    keys = [key(exercise.id, seed) for seed in seeds]
    return [k.verdict([[call(function, case) for case in part] for part in k.cases]) for k in keys]


def test_the_numbers_that_12_5_says_a_mended_sampler_prints():
    (task,) = (c.source for c in master("12").cells if "Mended, it prints" in c.source)
    (demo,) = (c.source for c in master("12").cells if c.source.startswith("exact = Gauss"))
    space = dict(names_of("12"))
    exec("from diffusion_course.grading.inputs import GaussianDenoiser", space)
    exec(cell_of(master("12"), "answer", "12.5").source, space)
    demo = demo.replace("broken_sample", "sample_edm").partition("print(")[0]
    exec(demo, space)
    printed = "{:.3f} and {:.3f}".format(*space["spread"])
    assert f"Mended, it prints {printed}" in task


@each_exercise
def test_the_solution_earns_every_point_on_the_inputs_of_many_seeds(exercise):
    text = cell_of(master(exercise.id[:2]), "answer", exercise.id).source
    for found in verdict(exercise, text, (CHECKS, *((seed, 1234) for seed in range(3, 8)))):
        assert found.message == "" and found.points == exercise.points == found.possible


@each_exercise
def test_the_stub_earns_nothing_and_says_what_to_return(exercise):
    student = assign.student_version(master(exercise.id[:2]))
    text = cell_of(student, "answer", exercise.id).source
    assert re.search(r'raise NotImplementedError\("return .+"\)', text)
    (found,) = verdict(exercise, text)
    assert found.points == 0 and found.status == "not attempted"


def given(value):
    """An argument as a student gets it, but for JAX: float32 rounds alike in NumPy."""
    return value.copy() if isinstance(value, np.ndarray) else value


@each_exercise
def test_every_mistake_earns_less_and_is_named(exercise):
    wanted, wrong = key(exercise.id), []
    for message, mistake in exercise.mistakes.items():
        with np.errstate(all="ignore"):
            found = wanted.verdict(
                [[as_result(mistake(*map(given, case))) for case in part] for part in wanted.cases]
            )
        said = {part.message.partition(CALLED)[0] for part in found.parts} - {""}
        # Another may come first if it does the same to these inputs; a part shows no second one.
        if said != {message}:
            wrong.append(f"{message}: {found.message}")
        assert found.points < exercise.points, message
    assert not wrong
    assert len(exercise.mistakes) >= 3


def trivial(exercise, case):
    """Arrays of the right shapes that took no thought: numbers, and every argument as it came."""
    shapes = [array.shape for array in as_result(exercise.oracle(*map(given, case)))]
    numbers = {number: number for number in (0.0, 1.0)}
    handed_back = {
        name: np.asarray(value, float)
        for name, value in zip(inspect.signature(exercise.oracle).parameters, case, strict=True)
        if isinstance(value, np.ndarray | float)
    }
    for name, value in (numbers | handed_back).items():
        fits = all(np.shape(value) in ((), shape) for shape in shapes)
        filled = [np.broadcast_to(value, shape) for shape in shapes] if fits else [np.array(np.nan)]
        yield name, tuple(filled)


@each_exercise
def test_a_trivial_answer_earns_nothing(exercise):
    wanted = key(exercise.id)
    made = [[dict(trivial(exercise, case)) for case in part] for part in wanted.cases]
    for name in made[0][0]:
        same_answer = [[results.get(name, (np.array(np.nan),)) for results in p] for p in made]
        assert wanted.verdict(same_answer).points == 0, name


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: f"{slip.exercise}: {slip.says}")
def test_another_slip_earns_less_and_the_numbers_tell_why(slip):
    exercise = answers.find(slip.exercise)
    text = cell_of(master(slip.exercise[:2]), "answer", slip.exercise).source
    assert text.count(slip.old) == 1
    (found,) = verdict(exercise, text.replace(slip.old, slip.new))
    assert found.points < exercise.points
    assert slip.says in found.message
    assert not any(slip.says in message for message in exercise.mistakes)


@each_exercise
def test_inputs_are_drawn_from_the_seed_and_are_lopsided(exercise):
    def numbers(seed):
        arrays = []
        for part in exercise.cases(seed):
            for case in part:
                arrays += [np.ravel(v) for v in case if isinstance(v, np.ndarray | float)]
        return np.concatenate(arrays).astype(float)

    first, again, other = numbers([5]), numbers([5]), numbers([6])
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


# ------------------------------------------------------------------------- graded alone

RULE = """
Each exercise is graded alone. A function may use JAX, NumPy and other packages, and functions and
constants of your own in other cells. It may not use the function of another exercise; of
`diffusion_course` it may use only what the exercise's cells import.
"""


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_notebook_states_the_rule(chapter):
    assert RULE.strip() in master(chapter).cells[0].source


def notebook_of(chapter):
    """The names of a master's notebook after all its cells but the checks: as students have them.

    Each cell is compiled under a name of its own, as a kernel does it.
    """
    space = {"__name__": "__main__"}
    for number, cell in enumerate(master(chapter).cells):
        given = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and not given.get("locked") and "setup()" not in cell.source:
            code = cell.source if given or "def " not in cell.source else definitions(cell.source)
            exec(compile(code, f"<cell {number}>", "exec"), space)
    return space


def definitions(text):
    """The imports and functions of a cell, without what it tries out with them."""
    tree = ast.parse(text)
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    return ast.unparse(ast.Module([node for node in tree.body if isinstance(node, kept)], []))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_solution_uses_what_an_answer_may_not(chapter):
    space = notebook_of(chapter)
    for exercise in (e for e in CHAPTERS[chapter] if isinstance(e, Exercise)):
        terms = exercise.terms(CHAPTERS[chapter])
        said = alone.refusal(space[exercise.function], terms["others"], terms["library"])
        assert said == "", exercise.id


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_answer_may_use_of_the_package_what_the_cells_of_its_exercise_import(chapter):
    imported, current = {}, None
    for cell in master(chapter).cells:
        head = re.search(r"^## (\d\d\.\d)", cell.source, re.M)
        current = head[1] if cell.cell_type == "markdown" and head else current
        if cell.cell_type != "code" or "%pip" in cell.source:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("diffusion_course"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                imported.setdefault(current, []).extend(names)
    assert imported.pop(None) == ["diffusion_course.grading.check"]
    declared = {e.id: list(e.library) for e in CHAPTERS[chapter] if isinstance(e, Exercise)}
    assert imported == {name: library for name, library in declared.items() if library}


@each_exercise
def test_the_stub_has_the_arguments_that_the_function_is_called_with(exercise):
    student = assign.student_version(master(exercise.id[:2]))
    (stub,) = (
        node for node in ast.parse(cell_of(student, "answer", exercise.id).source).body
        if isinstance(node, ast.FunctionDef) and node.name == exercise.function
    )  # fmt: skip
    assert [a.arg for a in stub.args.args] == exercise.terms(())["parameters"]


# ------------------------------------------------------------------------------- the text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_ids_count_from_one_and_every_head_states_what_the_specification_says(chapter):
    group, cells = CHAPTERS[chapter], master(chapter).cells
    assert [e.id for e in group] == [f"{chapter}.{n}" for n in range(1, len(group) + 1)]
    assert 4 <= len(group) <= 8
    assert any(isinstance(e, Written) for e in group)
    for exercise in group:
        head = re.compile(rf"^## {re.escape(exercise.id)} · {re.escape(exercise.title)}$", re.M)
        (cell,) = (c for c in cells if c.cell_type == "markdown" and head.search(c.source))
        plural = "s" if exercise.points != 1 else ""
        kinds = "warm-up|implement|derive and check|debug this|stretch|written"
        assert re.search(
            rf"^\*({kinds}) · \d+ minutes · {exercise.points} point{plural}\*$", cell.source, re.M
        )


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_title_points_and_check_are_not_written_into_the_source(chapter):
    text = source(chapter).read_text(encoding="utf-8")
    assert not re.search(r"(?m)^# ## \d\d\.\d ·|· \d+ points?\*$|^check\(", text)
    for exercise in CHAPTERS[chapter]:
        assert f"# ## {exercise.id}\n" in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_a_folded_hint_and_an_expected_output(chapter):
    texts = "\n".join(c.source for c in master(chapter).cells if c.cell_type == "markdown")
    for exercise in CHAPTERS[chapter]:
        begin = texts.index(f"## {exercise.id} ·")
        end = texts.find("\n## ", begin + 1)
        text = texts[begin : end if end > 0 else None]
        assert "<details><summary>Hint</summary>" in text and "</details>" in text
        if isinstance(exercise, Exercise):
            assert "**Expected.**" in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_solution_reaches_the_student(chapter):
    student = assign.student_version(master(chapter))
    everything = "\n".join(c.source for c in student.cells)
    assert "SOLUTION" not in everything
    shown = {line.strip() for c in student.cells for line in c.source.splitlines()}
    for cell in master(chapter).cells:
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        inside = re.findall(r"### BEGIN SOLUTION.*?\n(.*?)### END SOLUTION", cell.source, re.S)
        lines = (line.strip() for text in inside for line in text.splitlines())
        secret = {line for line in lines if line and line != "return x"}
        assert secret and not secret & shown


def test_the_students_notebooks_are_made_from_the_masters(tmp_path):
    shutil.copytree(COURSE / "solutions", tmp_path / "solutions")
    made = {path.name: path.read_bytes() for path in assign.write_exercises(tmp_path)}
    committed = {path.name: path.read_bytes() for path in (COURSE / "exercises").glob("*.ipynb")}
    assert made == committed and len(made) == len(CHAPTERS)


# ------------------------------------------------------------------- how they are written down


def scaled(x, factor):
    """A right function; this text holds no x * factor that an edit could mean."""
    doubled = 2 * x
    return doubled * factor


def mistake(*changes):
    (found,) = writing.read_mistakes(
        scaled, "\n        ".join(["    it is wrong", *changes])
    ).values()
    return found


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        (["2 * x -> x"], 15.0),
        (["2 * x -> x", "doubled * -> doubled +"], 8.0),
        (["2 * ->"], 15.0),
        (["doubled *", "    factor -> -doubled"], -6.0),
        (["return right - x"], 27.0),
        (["return scaled(factor, x) + 1"], 31.0),
        (["return doubled -> x = 0; return x + doubled"], 30.0),
    ],
)
def test_a_mistake_is_an_edit_of_the_right_function_or_another_body(changes, value):
    assert mistake(*changes)(3.0, 5.0) == value and scaled(3.0, 5.0) == 30.0


@pytest.mark.parametrize(
    "change", ["3 * x -> x", "doubled -> x", "2 * x", "x, factor -> factor, x", "-> x"]
)
def test_an_edit_must_find_its_place_once_and_below_the_def(change):
    with pytest.raises(ValueError, match=r"stands once in scaled, got .* \(it is wrong\)"):
        mistake(change)(3.0, 5.0)


def test_a_message_stands_once_and_something_stands_below_it():
    with pytest.raises(ValueError, match="'it is wrong' stands twice"):
        writing.read_mistakes(scaled, "it is wrong\n    2 -> 3\nit is wrong\n    2 -> 4")
    with pytest.raises(ValueError, match="nothing stands below the message 'so is this'"):
        writing.read_mistakes(scaled, "it is wrong\n    2 -> 3\nso is this")


@pytest.mark.parametrize("text", ["## 01.1", "## 01.1\nwarm-up", "## 01.1\n*warm-up · 2 points*"])
def test_a_head_without_kind_and_minutes_is_refused(text):
    cell = build.nbformat.v4.new_markdown_cell(text)
    with pytest.raises(ValueError, match=r"below ## 01\.1 must stand \*its kind · N minutes\*"):
        assign.complete([cell])


def test_a_check_that_the_source_writes_itself_is_refused():
    cell = build.nbformat.v4.new_code_cell("check('01.1', f)", metadata={"role": "check"})
    with pytest.raises(ValueError, match="is added to the answer's: remove it"):
        assign.complete([cell])


def test_a_head_of_no_exercise_is_refused():
    with pytest.raises(ValueError, match=r"got '01\.9'"):
        assign.complete([build.nbformat.v4.new_markdown_cell("## 01.9\n*warm-up · 5 minutes*")])


@cache
def sections(chapter):
    """The headings of a chapter's numbered sections."""
    (path,) = (COURSE / "notebooks" / "source").glob(f"{chapter}_*.py")
    return re.findall(r"(?m)^# ## (\d+ · .+)$", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
def test_an_exercise_names_the_section_that_says_it_right(exercise):
    chapter = exercise.id.partition(".")[0]
    known = "\n".join(sections(chapter))
    assert exercise.section in sections(chapter), (
        f"{exercise.id}: in answers/chapter_{chapter}.py, section must be one of\n{known}"
    )
